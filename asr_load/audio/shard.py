"""Read and write prepared folders: Arrow IPC shards and their manifest. Format: asr_data/README.md."""

from __future__ import annotations

import bisect
import functools
import hashlib
import re
import shlex
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from asr_load.audio.clip import Clip, Rules
from asr_load.audio.dither import DITHER_FIRST, DITHER_STEP, DITHERED
from asr_load.decode import Malformed, decode
from asr_load.errors import InputError
from asr_load.files import open_regular
from asr_load.languages import language_code
from asr_load.shipped import command

FORMAT = 3
READABLE = (2, FORMAT)
"""Format 2 has one dither place per clip instead of a list."""

MANIFEST = "manifest.json"
PARTIAL = ".partial"
"""Folder next to the manifest during preparation."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("duration_s", pa.float64()),
        ("sample_rate", pa.int32()),
        ("sha256", pa.string()),
        ("dither_at", pa.list_(pa.int32())),
        ("speech_end_s", pa.float64()),
        ("audio_b64", pa.string()),
    ]
)
_ONE_PLACE = SCHEMA.set(SCHEMA.get_field_index("dither_at"), pa.field("dither_at", pa.int32()))
OLDER_SCHEMAS = (_ONE_PLACE, _ONE_PLACE.remove(SCHEMA.get_field_index("speech_end_s")))
"""Schemas of format 2. The oldest lacks the end of speech."""

SHARD_NAME = re.compile(r"shard-[0-9]{5,}-of-[0-9]{5,}\.arrow")
PAGE = 4096

BATCH_ROWS = 16
BATCH_BYTES = 32_000_000
"""Maximum clips, and bytes of base64, in a record batch, which is held in memory while a shard is written. A batch of
Arrow strings cannot hold more than 2 GB."""

KNOWN_BATCHES = 256
"""Number of record batches whose small columns are cached: reading one clip's columns from Arrow takes half as long as
reading those of its whole batch."""


class Options(msgspec.Struct, frozen=True):
    """The options of a prepared folder. `limit` 0 sets no limit. `language` is a code of languages.py, also if an
    earlier version wrote a name; it decides how words are compared."""

    rules: Rules
    limit: int
    language: str

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "language", language_code(self.language))


class ShardInfo(msgspec.Struct, frozen=True):
    """A shard's entry in the manifest."""

    file: str
    rows: int
    sha256: str


class SkippedClips(msgspec.Struct):
    """Clips that share a reason for skipping them, or a note."""

    count: int = 0
    ids: list[str] = msgspec.field(default_factory=list)

    def add(self, id: str) -> None:
        self.count += 1
        self.ids.append(id)


class Manifest(msgspec.Struct):
    """manifest.json. It exists only in a complete folder and contains no times, so that it is reproducible."""

    format: int
    source: dict[str, Any]
    options: Options
    clips: int
    clips_with_text: int
    audio_s: float
    skipped: dict[str, SkippedClips]
    shards: list[ShardInfo]
    noted: dict[str, SkippedClips] = {}
    """Kept clips that prepare reports, by note."""


def write_shard(path: Path, clips: Iterable[Clip]) -> tuple[int, str]:
    """Write clips to an Arrow file, a few at a time. Returns the number of rows and the file's SHA-256. Writes no file
    if there are no clips; its hash is then empty."""
    draft = path.with_name(path.name + ".tmp")
    draft.unlink(missing_ok=True)  # left by an interrupted call, or a planted link
    rows = 0
    with draft.open("xb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        batch: list[Clip] = []
        for clip in clips:
            batch.append(clip)
            rows += 1
            if len(batch) == BATCH_ROWS or sum(len(clip.audio_b64) for clip in batch) >= BATCH_BYTES:
                writer.write_batch(_record_batch(batch))
                batch.clear()
            del clip  # an hour takes 150 MB, and the next clip is about to be made
        if batch:
            writer.write_batch(_record_batch(batch))
    if not rows:
        draft.unlink()
        return 0, ""
    draft.replace(path)
    return rows, file_sha256(path)


def _record_batch(clips: list[Clip]) -> pa.RecordBatch:
    small = [pa.array([getattr(clip, name) for clip in clips], SCHEMA.field(name).type) for name in SCHEMA.names[:-1]]
    # Do not copy a single long clip.
    audio = clips[0].audio_b64 if len(clips) == 1 else b"".join(clip.audio_b64 for clip in clips)
    ends = np.cumsum([0, *(len(clip.audio_b64) for clip in clips)]).astype(np.int32)
    column = pa.StringArray.from_buffers(len(clips), pa.py_buffer(ends), pa.py_buffer(audio))
    return pa.record_batch([*small, column], SCHEMA)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a complete prepared folder. Raises InputError for anything else."""
    path = folder / MANIFEST
    hint = _how_to_prepare(folder)
    if not folder.exists():
        raise InputError(f"--data {folder}: there is no such folder; {hint}")
    if not folder.is_dir():
        raise InputError(f"--data {folder} is a file, not a prepared folder; {hint}")
    try:
        with open_regular(path) as file:
            manifest = decode(file.read(), Manifest)
    except FileNotFoundError:
        if inner := sorted(str(first.parent) for first in folder.glob("*/shard-00000-of-*.arrow")):
            raise InputError(
                f"--data {folder} is not a prepared folder, but contains some: {', '.join(inner[:5])}"
            ) from None
        raise InputError(f"--data {folder} is not a prepared folder (it has no {MANIFEST}); {hint}") from None
    except OSError as error:
        raise InputError(f"--data {folder}: {MANIFEST} cannot be read ({error.strerror})") from None
    except Malformed as error:
        raise InputError(f"--data {folder}: {MANIFEST} is not the output of prepare ({error}); {hint}") from None
    if manifest.format not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise InputError(f"--data {folder} has format {manifest.format}, but this version reads {known}; {hint}")
    for shard in manifest.shards:
        if not SHARD_NAME.fullmatch(shard.file):
            raise InputError(f"--data {folder}: {MANIFEST} names {shard.file!r}, which is not a shard; {hint}")
    return manifest


def _how_to_prepare(folder: Path) -> str:
    """The command that prepares the folder, or the data set if --data names one."""
    named = str(folder)
    raw = folder.exists() and not ((folder / MANIFEST).exists() or (folder / PARTIAL).exists())
    on_hub = not folder.parent.exists() and not folder.is_absolute()
    if not (raw or on_hub or named.startswith("preset:")):
        return f"prepare it: {command('prepare')} --dataset DATASET --out {shlex.quote(named)}"
    # Never suggest writing into a folder of recordings.
    base = folder.resolve().stem if folder.is_file() else folder.resolve().name.removeprefix("preset:")
    name = re.sub(r"[^\w.-]+", "-", base) or "NAME"
    return f"prepare it: {command('prepare')} --dataset {shlex.quote(named)} --out asr_data/{name}"


def open_shards(folder: Path | str) -> Shards:
    """Open a prepared folder, memory-mapped. Raises InputError if it is incomplete."""
    return Shards(Path(folder))


class Shards:
    """The clips of a prepared folder by number, 0 to len - 1, memory-mapped: opening it reads no audio.

    Raises InputError if the folder is incomplete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.manifest_sha256 = file_sha256(folder / MANIFEST)
        self._batches: list[pa.RecordBatch] = []
        self._first: list[int] = []
        rows = 0
        for shard in self.manifest.shards:
            before = rows
            for batch in _open_batches(folder, shard.file):
                self._batches.append(batch)
                self._first.append(rows)
                rows += batch.num_rows
            if rows - before != shard.rows:
                raise InputError(
                    f"--data {folder}: {shard.file} has {rows - before} rows, not {shard.rows}; prepare it again"
                )
        if rows == 0:
            raise InputError(f"--data {folder} holds no clips; prepare it again")
        self._rows = rows
        self._ids: frozenset[str] | None = None
        self._clips = functools.lru_cache(KNOWN_BATCHES)(self._read)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, number: int) -> Clip:
        if not 0 <= number < self._rows:
            raise IndexError(number)
        at = bisect.bisect_right(self._first, number) - 1
        clip = self._clips(at)[number - self._first[at]]
        # Touch each page, so that audio is read from disk now and not while the request is being sent.
        memoryview(clip.audio_b64)[::PAGE].tobytes()
        return clip

    def ids(self) -> frozenset[str]:
        """The ids of all clips, read on the first call."""
        if self._ids is None:
            self._ids = frozenset(id for batch in self._batches for id in batch.column("id").to_pylist())
        return self._ids

    @property
    def dithered_throughout(self) -> bool:
        """Whether each second of a clip has a dither place; earlier versions stored one place per clip."""
        return self.manifest.format == FORMAT

    @property
    def audio_format(self) -> str:
        """The format of the clips, one of AUDIO_FORMATS."""
        return self.manifest.options.rules.audio_format

    @property
    def lengths(self) -> np.ndarray:
        """The durations of all clips in seconds, shape (len,)."""
        return np.concatenate([batch.column("duration_s").to_numpy() for batch in self._batches])

    def _read(self, at: int) -> list[Clip]:
        batch = self._batches[at]
        known, unknown = batch.schema.names, [None] * batch.num_rows
        small = [batch.column(name).to_pylist() if name in known else unknown for name in SCHEMA.names[:-1]]
        if batch.schema in OLDER_SCHEMAS:
            at_column = SCHEMA.get_field_index("dither_at")
            small[at_column] = [[place] for place in small[at_column]]
        # Use views: Arrow would copy up to a megabyte for the value of a row.
        column = batch.column("audio_b64")
        _, offsets, audio = column.buffers()
        ends = memoryview(offsets).cast("i")[column.offset : column.offset + batch.num_rows + 1]
        views = [memoryview(audio)[first:last] for first, last in pairwise(ends)]
        return [Clip(*values) for values in zip(*small, views, strict=True)]


def _check_batch(batch: pa.RecordBatch) -> None:
    """Raise ValueError, or Arrow's error, for a batch that prepare cannot have written. Reads no audio."""
    if not batch.num_rows:
        return
    for column in batch.columns:
        if column.null_count:
            raise ValueError("it holds nulls")
    for column in batch.columns[:-1]:
        column.validate(full=True)
    audio = batch.columns[-1]
    _, offsets, data = audio.buffers()
    ends = np.frombuffer(offsets, np.int32)[audio.offset : audio.offset + batch.num_rows + 1]
    if len(ends) != batch.num_rows + 1 or ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] > len(data or b""):
        raise ValueError("its audio is out of bounds")
    seconds, rates = (_numbers(batch.column(name)) for name in ("duration_s", "sample_rate"))
    if not (np.isfinite(seconds) & (seconds > 0) & (rates > 0)).all():
        raise ValueError("a clip has no duration or sample rate")
    _check_places(batch.column("dither_at"))
    if "speech_end_s" in batch.schema.names:
        ends_s = _numbers(batch.column("speech_end_s"))
        if not ((ends_s > 0) & (ends_s <= seconds)).all():
            raise ValueError("the end of speech is outside of a clip")


def _check_places(column: pa.Array) -> None:
    """Raise ValueError if a clip's dither places do not rise, overlap, or do not fit the groups of base64."""
    if column.type == pa.int32():  # of format 2
        fits = _numbers(column) >= 0
    else:
        ends = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
        at = _numbers(column.values)[ends[0] : ends[-1]]
        counts, gaps = np.diff(ends), np.diff(at)
        if not counts.all() or column.values.null_count:
            raise ValueError("a clip has no dither place")
        # The distance from a clip's last place to the next clip's first one is not a gap.
        gaps[np.cumsum(counts)[:-1] - 1] = DITHERED
        fits = np.concatenate([(at >= 0) & (at % DITHER_STEP == DITHER_FIRST), gaps >= DITHERED])
    if not fits.all():
        raise ValueError("a dither place is out of bounds")


def _numbers(column: pa.Array) -> np.ndarray:
    """A column without nulls as a view, shape (n,). Arrow's to_numpy imports pandas, which costs 0.25 s and 35 MB per
    worker."""
    kind = "f" if pa.types.is_floating(column.type) else "i"
    values = np.frombuffer(column.buffers()[1], f"{kind}{column.type.bit_width // 8}")
    return values[column.offset : column.offset + len(column)]


_verified: dict[tuple[Path, str], tuple[int, int, int]] = {}
"""Inode, size and modification time of each shard whose hash was verified, by its path and hash."""


def verify(folder: Path, manifest: Manifest) -> None:
    """Raise InputError if a shard's hash differs from the manifest's. Each process hashes a shard once, and again if
    the file changes."""
    for shard in manifest.shards:
        path = folder / shard.file
        try:
            now = path.stat()
            state = (now.st_ino, now.st_size, now.st_mtime_ns)
            key = (path.absolute(), shard.sha256)
            if _verified.get(key) == state:
                continue
            digest = file_sha256(path)
        except OSError as error:
            raise InputError(f"--data {folder}: {shard.file} cannot be read ({error.strerror})") from None
        if digest != shard.sha256:
            raise InputError(f"--data {folder}: {shard.file} has changed since it was prepared; prepare it again")
        _verified[key] = state


def _open_batches(folder: Path, name: str) -> list[pa.RecordBatch]:
    try:
        open_regular(folder / name).close()
        reader = pa.ipc.open_file(pa.memory_map(str(folder / name)))
        if reader.schema not in (SCHEMA, *OLDER_SCHEMAS):
            raise InputError(f"--data {folder}: {name} has unknown columns; prepare it again")
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in batches:
            _check_batch(batch)
        return batches
    except (OSError, pa.ArrowException, ValueError) as error:
        raise InputError(f"--data {folder}: {name} cannot be read ({error}); prepare it again") from error
