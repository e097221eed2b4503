"""Convert a data set to a folder of shards: in parallel, in a fixed order, and resumable.

The rows are divided into blocks. One process converts a block, which becomes one shard. The division depends only on
the rows and the options, so that the same input gives the same bytes with any number of processes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from asr_load import signals
from asr_load.audio.clip import CHANNELS_CANCEL, SHORTEST_S, SKIP_REASONS, Clip, Recording, Rules, Skipped
from asr_load.audio.convert import convert
from asr_load.audio.prepared import (
    FORMAT,
    MANIFEST,
    PARTIAL,
    Manifest,
    Options,
    ShardInfo,
    SkippedClips,
    file_sha256,
    read_manifest,
)
from asr_load.audio.shard import verify, write_shard
from asr_load.audio.source import Source, UniqueIds
from asr_load.decode import Malformed, decode
from asr_load.errors import InputError
from asr_load.files import alone_in, encode_json, write_atomically
from asr_load.text import count_of

BLOCK_ROWS = 128
"""Rows of a block: a shard of about 70 MB for utterances of 12 s. An interruption loses at most the running blocks."""


class Block(msgspec.Struct):
    """The result of a block of rows, kept as JSON next to its shard until the folder is complete."""

    ids: list[str]
    resume: dict[str, Any]
    """The source's state after this block's rows."""
    clips: int = 0
    clips_with_text: int = 0
    audio_s: float = 0.0
    sha256: str = ""
    skipped: list[tuple[str, str]] = []
    """(reason, id) of each skipped row."""
    notes: list[tuple[str, str]] = []
    """(note, id) for each kept row with something to report."""
    recordings: int = 0
    """Number of kept rows; `clips` is higher if long recordings were cut."""


def prepare(source: Source, options: Options, out: Path, processes: int = 1, block_rows: int = BLOCK_ROWS) -> Manifest:
    """Write a complete prepared folder to `out` and return its manifest.

    Continues an interrupted call with the same source and options. Replaces anything else that prepare wrote there,
    which stays valid until then. Raises InputError if no clip is left to send, or OSError if `out` cannot be written.
    """
    whole = _already_whole(out, source, options)
    if whole is not None:
        return whole
    job = msgspec.json.encode({"format": FORMAT, "source": source.origin, "options": options, "block_rows": block_rows})
    partial = out / PARTIAL
    expected = options.limit or source.total
    if expected is not None:
        processes = min(processes, -(-expected // block_rows))
    with _lock(out):
        _open_partial(partial, job)
        with _progress(expected) as advance, _workers(processes) as submit:
            blocks = _convert_all(
                source, options, partial, submit=submit, processes=processes, block_rows=block_rows, advance=advance
            )
        return _finish(out, source, options, blocks)


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(alone_in(out))
        except BlockingIOError:
            raise InputError(
                f"--out {out}: another prepare is writing there; wait for it, or choose another folder"
            ) from None
        yield


def refuse_another(out: Path, source: Source) -> None:
    """Raise InputError if the folder holds a data set other than `source`, or a manifest.json of another program."""
    try:
        present = decode((out / MANIFEST).read_bytes(), _Kind)
    except OSError:
        return
    except Malformed:
        raise InputError(f"--out {out} has a {MANIFEST} that prepare did not write: choose another folder") from None
    keys = ("dataset", "subset", "split")
    held, wanted = ([origin.get(key) for key in keys] for origin in (present.source, source.origin))
    if held != wanted:
        has, wants = (" ".join(filter(None, words)) for words in (held, wanted))
        raise InputError(f"--out {out} holds {has}, not {wants}: choose another folder, or add --overwrite")


class _Kind(msgspec.Struct):
    """The part of a manifest, of any format, that identifies the data set."""

    source: dict[str, Any]


def _already_whole(out: Path, source: Source, options: Options) -> Manifest | None:
    with contextlib.suppress(InputError):
        manifest = read_manifest(out)
        if (manifest.format, manifest.source, manifest.options) == (FORMAT, source.origin, options):
            verify(out, manifest)
            return manifest
    return None


def _open_partial(partial: Path, job: bytes) -> None:
    description = partial / "job.json"
    if not description.is_file() or description.read_bytes() != job:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_atomically(description, job)


Submit = Callable[[list[Recording], dict[str, Any], Rules, Path], "Future[Block]"]


def _convert_all(
    source: Source,
    options: Options,
    partial: Path,
    *,
    submit: Submit,
    processes: int,
    block_rows: int,
    advance: Callable[[Block], None],
) -> list[Block]:
    """Convert blocks until the rows are used up or the limit is reached.

    With a limit, each round takes as many rows as recordings are still missing. So it reads no more than necessary, and
    the division into blocks does not depend on the speed of the processes.
    """
    done = _read_done(partial)
    unique = UniqueIds()
    for block in done:
        for name in block.ids:
            unique(name)
    rows = source.rows(done[-1].resume if done else None)
    recordings = iter(rows)
    running: deque[Future[Block]] = deque()
    blocks: list[Block] = []

    def add(block: Block) -> None:
        blocks.append(block)
        advance(block)

    started, exhausted = 0, False
    while not exhausted:
        wanted = options.limit - sum(block.recordings for block in blocks) if options.limit else sys.maxsize
        if wanted == 0:
            break
        while wanted > 0 and not exhausted:
            size = min(block_rows, wanted)
            wanted -= size
            if started < len(done):
                add(done[started])
                exhausted = len(done[started].ids) < size
            else:
                batch = [replace(row, id=unique(row.id)) for row in islice(recordings, size)]
                exhausted = len(batch) < size
                if batch:
                    running.append(submit(batch, rows.state(), options.rules, _block_path(partial, started)))
            started += 1
            while len(running) > processes:
                add(running.popleft().result())
        while running:
            add(running.popleft().result())
    return blocks


def _block_path(partial: Path, number: int) -> Path:
    return partial / f"block-{number:05d}.arrow"


def _read_done(partial: Path) -> list[Block]:
    """The blocks that an interrupted call finished, up to the first missing one."""
    done: list[Block] = []
    while True:
        path = _block_path(partial, len(done))
        try:
            block = decode(path.with_suffix(".json").read_bytes(), Block)
        except (FileNotFoundError, Malformed):
            return done
        if block.clips and not (path.is_file() and file_sha256(path) == block.sha256):
            return done
        done.append(block)


def _note(block: Block, id: str, note: str) -> None:
    block.notes.append((note, id))


def convert_block(recordings: list[Recording], resume: dict[str, Any], rules: Rules, path: Path) -> Block:
    """Convert a block's rows to a shard at `path`. Writes its description, as .json next to it, last."""
    block = Block([row.id for row in recordings], resume)

    def clips() -> Iterator[Clip]:
        for recording in recordings:
            try:
                parts = convert(recording, rules, functools.partial(_note, block, recording.id))
            except Skipped as skipped:
                block.skipped.append((skipped.reason, recording.id))
                continue
            block.recordings += 1
            block.clips_with_text += bool(recording.text.strip())
            for clip in parts:
                block.audio_s += clip.duration_s
                yield clip
                del clip  # an hour takes 150 MB, and the next clip is about to be made

    block.clips, block.sha256 = write_shard(path, clips())
    write_atomically(path.with_suffix(".json"), msgspec.json.encode(block))
    return block


def _finish(out: Path, source: Source, options: Options, blocks: list[Block]) -> Manifest:
    skipped = {reason: SkippedClips() for reason in SKIP_REASONS}
    noted: dict[str, SkippedClips] = {}
    for block in blocks:
        for reason, name in block.skipped:
            skipped[reason].add(name)
        for note, name in block.notes:
            noted.setdefault(note, SkippedClips()).add(name)
    full = [(number, block) for number, block in enumerate(blocks) if block.clips]
    if not full:
        shutil.rmtree(out / PARTIAL)
        why = _skipped(skipped, options.rules)
        raise InputError(f"no clip is left to send: {'skipped ' + why if why else 'the data set has no rows'}")
    shards = [
        ShardInfo(f"shard-{number:05d}-of-{len(full):05d}.arrow", block.clips, block.sha256)
        for number, (_, block) in enumerate(full)
    ]
    (out / MANIFEST).unlink(missing_ok=True)
    for old in out.glob("shard-*-of-*.arrow"):
        old.unlink()
    for shard, (number, _) in zip(shards, full, strict=True):
        _block_path(out / PARTIAL, number).replace(out / shard.file)
    manifest = Manifest(
        format=FORMAT,
        source=source.origin,
        options=options,
        clips=sum(block.clips for block in blocks),
        clips_with_text=sum(block.clips_with_text for block in blocks),
        audio_s=round(sum(block.audio_s for block in blocks), 3),
        skipped=skipped,
        noted=noted,
        shards=shards,
    )
    if not skipped["not_scored"].count:
        del skipped["not_scored"]  # occurs in few data sets
    write_atomically(out / MANIFEST, encode_json(manifest))
    shutil.rmtree(out / PARTIAL)
    return manifest


@contextlib.contextmanager
def _workers(processes: int) -> Iterator[Submit]:
    """Yield a function that converts blocks: in this process, or in a pool that finishes running blocks on Ctrl-C."""
    if processes <= 1:

        def at_once(*block: Any) -> Future[Block]:
            future: Future[Block] = Future()
            future.set_result(convert_block(*block))
            return future

        yield at_once
        return
    # Spawn instead of fork: `datasets` runs threads, and a fork may copy a lock that one of them holds.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin_worker)
    try:
        yield functools.partial(_submit, pool)
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process died, perhaps because memory ran out; rerun the command to continue"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, *block: Any) -> Future[Block]:
    with signals.held():  # may start a process, which cannot handle signals during its first second of imports
        return pool.submit(convert_block, *block)


def _begin_worker() -> None:
    """Ignore signals, so that the parent can let the block finish; exit if the parent is killed."""
    signals.ignore()
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[Block], None]]:
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("prepare"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("clips, {task.fields[hours]:.2f} h of audio, {task.fields[rate]:.2f} h/s"),
        TimeElapsedColumn(),
    )
    began, audio_s = time.perf_counter(), 0.0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("prepare", total=total, hours=0.0, rate=0.0)

        def advance(block: Block) -> None:
            nonlocal audio_s
            audio_s += block.audio_s
            hours = audio_s / 3600
            rate = hours / max(time.perf_counter() - began, 1e-9)
            bar.update(task, advance=len(block.ids), hours=hours, rate=rate)

        yield advance


def _skipped(skipped: dict[str, SkippedClips], rules: Rules) -> str:
    """The number of skipped recordings by reason, with the option that would keep them; empty if none was skipped."""
    cures = {
        "too_long": f"over {rules.max_duration or 0:g} s; --max-duration, --no-skip-long",
        "too_short": f"under {max(rules.min_duration, SHORTEST_S):g} s"
        + ("; --min-duration" if rules.min_duration else ""),
        "silent": "below -60 dBFS",
        "undecodable": "convert with ffmpeg",
        "no_audio": "no such file",
        "not_scored": "excluded by their text",
    }
    if rules.max_duration is None:
        cures["too_long"] = "over 13 hours"
    return ", ".join(
        f"{entry.count} {reason}" + (f" ({cures[reason]})" if reason in cures else "")
        for reason, entry in skipped.items()
        if entry.count
    )


def describe(manifest: Manifest) -> str:
    """The numbers of clips that prepare kept and skipped, as one or two lines."""
    clips, shards = count_of(manifest.clips, "clip"), count_of(len(manifest.shards), "shard")
    kept = f"{clips}, {manifest.audio_s:.1f} s of audio, {shards}"
    if manifest.options.rules.chunk_long is not None:
        kept += f", recordings over {manifest.options.rules.chunk_long:g} s in parts"
    lines = [f"{kept}; skipped {_skipped(manifest.skipped, manifest.options.rules) or 'none'}"]
    if cancel := manifest.noted.get(CHANNELS_CANCEL):
        count = count_of(cancel.count, "recording")
        lines.append(f"note: the channels of {count} cancel each other; used only the louder channel")
    return "\n".join(lines)
