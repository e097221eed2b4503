"""Prepared folders: Arrow IPC shards and the manifest that makes them whole. The format: asr_data/README.md."""

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
from asr_load.audio.payload import DITHER_FIRST, DITHER_STEP, DITHERED
from asr_load.decode import Malformed, decode
from asr_load.errors import InputError
from asr_load.files import open_regular
from asr_load.languages import language_code
from asr_load.shipped import command

FORMAT = 3
READABLE = (2, FORMAT)
"""Format 2 has one place for dither in a clip, where this one has a list."""

MANIFEST = "manifest.json"
PARTIAL = ".partial"
"""Beside the manifest while a folder is being prepared."""

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
"""Of shards of format 2. The oldest do not say where speech ends."""

SHARD_NAME = re.compile(r"shard-[0-9]{5,}-of-[0-9]{5,}\.arrow")
PAGE = 4096

BATCH_ROWS = 16
BATCH_BYTES = 32_000_000
"""Clips, and base64 of their audio, in a record batch at most: what is held in memory while a shard is written. A batch
of Arrow strings cannot hold more than 2 GB."""

KNOWN_BATCHES = 256
"""Record batches whose small columns are kept: to read one clip's from Arrow takes half as long as all of its batch."""


class Options(msgspec.Struct, frozen=True):
    """What a prepared folder was asked to hold; `limit` 0 is no limit. `language` tells how words are compared: a code
    of languages.py, however an earlier version wrote it."""

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
    """Clips that one reason kept out, or of which one thing is to be said."""

    count: int = 0
    ids: list[str] = msgspec.field(default_factory=list)

    def add(self, id: str) -> None:
        self.count += 1
        self.ids.append(id)


class Manifest(msgspec.Struct):
    """manifest.json. It exists only when the folder is whole, and holds no time of day."""

    format: int
    source: dict[str, Any]
    options: Options
    clips: int
    clips_with_text: int
    audio_s: float
    skipped: dict[str, SkippedClips]
    shards: list[ShardInfo]
    noted: dict[str, SkippedClips] = {}
    """Clips that were kept, by the reason why prepare reports them."""


class _HashingFile:
    """A file that knows the SHA-256 of what was written to it."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # of a call that was ended, or a link of somebody's
        self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        self.closed = True

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def write_shard(path: Path, clips: Iterable[Clip]) -> tuple[int, str]:
    """Write clips to an Arrow file, a few at a time. Returns the rows and the file's SHA-256; no file for no rows."""
    draft = path.with_name(path.name + ".tmp")
    file = _HashingFile(draft)
    rows = 0
    try:
        with pa.ipc.new_file(pa.PythonFile(file, mode="w"), SCHEMA) as writer:
            batch: list[Clip] = []
            for clip in clips:
                batch.append(clip)
                rows += 1
                if len(batch) == BATCH_ROWS or sum(len(each.audio_b64) for each in batch) >= BATCH_BYTES:
                    writer.write_batch(_record_batch(batch))
                    batch.clear()
                del clip  # an hour is 150 MB, and the next one is made now
            if batch:
                writer.write_batch(_record_batch(batch))
    finally:
        file.close()
    if rows:
        draft.replace(path)
    else:
        draft.unlink()
    return rows, file.hexdigest()


def _record_batch(clips: list[Clip]) -> pa.RecordBatch:
    small = [pa.array([getattr(clip, name) for clip in clips], SCHEMA.field(name).type) for name in SCHEMA.names[:-1]]
    # One long clip is not copied.
    audio = clips[0].audio_b64 if len(clips) == 1 else b"".join(clip.audio_b64 for clip in clips)
    ends = np.cumsum([0, *(len(clip.audio_b64) for clip in clips)]).astype(np.int32)
    column = pa.StringArray.from_buffers(len(clips), pa.py_buffer(ends), pa.py_buffer(audio))
    return pa.record_batch([*small, column], SCHEMA)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a whole prepared folder. Raises InputError on anything else."""
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
                f"--data {folder} is not a prepared folder, but holds some: {', '.join(inner[:5])}"
            ) from None
        raise InputError(f"--data {folder} is not a prepared folder (it has no whole {MANIFEST}); {hint}") from None
    except OSError as error:
        raise InputError(f"--data {folder}: {MANIFEST} cannot be read ({error.strerror})") from None
    except Malformed as error:
        raise InputError(f"--data {folder}: {MANIFEST} is not what prepare writes ({error}); {hint}") from None
    if manifest.format not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise InputError(f"--data {folder} has format {manifest.format}, this version reads {known}; {hint}")
    for shard in manifest.shards:
        if not SHARD_NAME.fullmatch(shard.file):
            raise InputError(f"--data {folder}: {MANIFEST} names {shard.file!r}, which is no shard; {hint}")
    return manifest


def _how_to_prepare(folder: Path) -> str:
    """The command that makes a prepared folder of what --data names, if that is a data set."""
    named = str(folder)
    raw = folder.exists() and not ((folder / MANIFEST).exists() or (folder / PARTIAL).exists())
    on_hub = not folder.parent.exists() and not folder.is_absolute()
    if not (raw or on_hub or named.startswith("preset:")):
        return f"prepare it: {command('prepare')} --dataset DATASET --out {shlex.quote(named)}"
    # Never a proposal to write into somebody's recordings.
    own = folder.resolve().stem if folder.is_file() else folder.resolve().name.removeprefix("preset:")
    name = re.sub(r"[^\w.-]+", "-", own) or "NAME"
    return f"prepare it: {command('prepare')} --dataset {shlex.quote(named)} --out asr_data/{name}"


def open_shards(folder: Path | str) -> Shards:
    """The clips of a prepared folder, memory-mapped. Raises InputError if it is not whole."""
    return Shards(Path(folder))


class Shards:
    """Clips of a prepared folder by number, 0 to len - 1, memory-mapped: opening reads no audio.

    Raises InputError if the folder is not whole.
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
        # One byte of each page: what is not in memory is read now, and not while the request is being sent.
        memoryview(clip.audio_b64)[::PAGE].tobytes()
        return clip

    def ids(self) -> frozenset[str]:
        """The ids of all clips: read once, when they are first asked for."""
        if self._ids is None:
            self._ids = frozenset(id for batch in self._batches for id in batch.column("id").to_pylist())
        return self._ids

    @property
    def dithered_throughout(self) -> bool:
        """Whether each second of a clip has a place for dither; an earlier version found one in a clip."""
        return self.manifest.format == FORMAT

    @property
    def audio_format(self) -> str:
        """One of AUDIO_FORMATS."""
        return self.manifest.options.rules.audio_format

    @property
    def lengths(self) -> np.ndarray:
        """Of all clips, in seconds: shape (len,)."""
        return np.concatenate([batch.column("duration_s").to_numpy() for batch in self._batches])

    def _read(self, at: int) -> list[Clip]:
        batch = self._batches[at]
        known, unknown = batch.schema.names, [None] * batch.num_rows
        small = [batch.column(name).to_pylist() if name in known else unknown for name in SCHEMA.names[:-1]]
        if batch.schema in OLDER_SCHEMAS:
            at_column = SCHEMA.get_field_index("dither_at")
            small[at_column] = [[place] for place in small[at_column]]
        # Views: Arrow's own value of a row would be a copy of up to a megabyte.
        column = batch.column("audio_b64")
        _, offsets, audio = column.buffers()
        ends = memoryview(offsets).cast("i")[column.offset : column.offset + batch.num_rows + 1]
        views = [memoryview(audio)[first:last] for first, last in pairwise(ends)]
        return [Clip(*values) for values in zip(*small, views, strict=True)]


def _check_batch(batch: pa.RecordBatch) -> None:
    """Raise ValueError, or Arrow's error, where a batch holds what no batch of ours does. Reads no audio."""
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
        raise ValueError("its audio lies elsewhere")
    seconds, rates = (_numbers(batch.column(name)) for name in ("duration_s", "sample_rate"))
    if not (np.isfinite(seconds) & (seconds > 0) & (rates > 0)).all():
        raise ValueError("a clip has no length, or no rate")
    _check_places(batch.column("dither_at"))
    if "speech_end_s" in batch.schema.names:
        ends_s = _numbers(batch.column("speech_end_s"))
        if not ((ends_s > 0) & (ends_s <= seconds)).all():
            raise ValueError("its speech ends elsewhere")


def _check_places(column: pa.Array) -> None:
    """Raise ValueError where a clip's places for dither do not rise, overlap, or are none of those of base64."""
    if column.type == pa.int32():  # of format 2
        fits = _numbers(column) >= 0
    else:
        ends = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
        at = _numbers(column.values)[ends[0] : ends[-1]]
        counts, gaps = np.diff(ends), np.diff(at)
        if not counts.all() or column.values.null_count:
            raise ValueError("a clip has no place for dither")
        # From the last place of a clip to the first one of the next is no gap.
        gaps[np.cumsum(counts)[:-1] - 1] = DITHERED
        fits = np.concatenate([(at >= 0) & (at % DITHER_STEP == DITHER_FIRST), gaps >= DITHERED])
    if not fits.all():
        raise ValueError("its dither lies elsewhere")


def _numbers(column: pa.Array) -> np.ndarray:
    """A column without nulls as a view, shape (n,). Arrow's own to_numpy imports pandas: a quarter of a second, and
    35 MB for each worker."""
    kind = "f" if pa.types.is_floating(column.type) else "i"
    values = np.frombuffer(column.buffers()[1], f"{kind}{column.type.bit_width // 8}")
    return values[column.offset : column.offset + len(column)]


_verified: dict[tuple[Path, str], tuple[int, int, int]] = {}
"""Shards whose bytes are those of their manifest, by their hash: inode, size and time of the file then."""


def verify(folder: Path, manifest: Manifest) -> None:
    """Raise InputError where a shard's bytes are not those that the manifest was written for: read once by a process,
    and again when the file is another one."""
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
            raise InputError(f"--data {folder}: {shard.file} is not as it was prepared; prepare it again")
        _verified[key] = state


def _open_batches(folder: Path, name: str) -> list[pa.RecordBatch]:
    try:
        open_regular(folder / name).close()
        reader = pa.ipc.open_file(pa.memory_map(str(folder / name)))
        if reader.schema not in (SCHEMA, *OLDER_SCHEMAS):
            raise InputError(f"--data {folder}: {name} has other columns than this version writes; prepare it again")
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in batches:
            _check_batch(batch)
        return batches
    except (OSError, pa.ArrowException, ValueError) as error:
        raise InputError(f"--data {folder}: {name} cannot be read ({error}); prepare it again") from error
