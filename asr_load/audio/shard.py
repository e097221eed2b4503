"""Read and write the shards of a prepared folder: Arrow IPC. Format: asr_data/README.md."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from asr_load.audio.clip import Clip
from asr_load.audio.dither import DITHER_FIRST, DITHER_STEP, DITHERED
from asr_load.audio.prepared import FORMAT, MANIFEST, Manifest, file_sha256, read_manifest
from asr_load.errors import InputError
from asr_load.files import open_regular

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

PAGE = 4096

BATCH_ROWS = 16
BATCH_BYTES = 32_000_000
"""Maximum clips, and bytes of base64, in a record batch, which is held in memory while a shard is written. A batch of
Arrow strings cannot hold more than 2 GB."""

KNOWN_BATCHES = 256
"""Number of record batches whose small columns are cached: reading one clip's columns from Arrow takes half as long as
reading those of its whole batch."""


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


def open_shards(folder: Path | str) -> Shards:
    """Open a prepared folder, memory-mapped. Raises InputError if it is incomplete."""
    return Shards(Path(folder))


def prepared_folders(parents: Iterable[Path]) -> list[Path]:
    """The prepared folders in these folders, by name."""
    return sorted({path.parent for parent in parents if parent.is_dir() for path in parent.glob(f"*/{MANIFEST}")})


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
        return np.concatenate([_numbers(batch.column("duration_s")) for batch in self._batches])

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
