"""Split a run's requests into parts that have something in common: a user class, a length, a speaker."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from asr_load.errors import InputError
from asr_load.results.accuracy import Accuracy, Recording, measure, reference_pairs
from asr_load.results.metrics import Figures
from asr_load.results.normalizers import Scoring
from asr_load.results.runfile import RunInfo
from asr_load.results.sound import Measured, Selection
from asr_load.stream.record import Record

LENGTHS = (0, 5, 10, 20, 30)
"""Lower bounds of the length buckets, in seconds of audio; a bucket excludes its upper bound."""


K = TypeVar("K", int, str)


@dataclass
class Part(Selection, Generic[K]):
    """The requests of a run that have a key in common."""

    key: K = field(kw_only=True)
    recordings: list[Recording] = field(default_factory=list)

    def accuracy(self, scoring: Scoring) -> Accuracy:
        """Error rates of the recordings."""
        return measure(((whole.reference, whole.text) for whole in self.recordings), scoring)


def by(
    run: Selection,
    key: Callable[[Record], K],
    recordings: Iterable[Recording] = (),
    key_of_recording: Callable[[Recording], K] | None = None,
) -> list[Part[K]]:
    """Split a run's requests by their keys. Parts are sorted by key.

    A recording, which may consist of several requests, belongs to the part of the request that completed it, or to that
    of `key_of_recording`."""
    parts: dict[K, Part[K]] = {}

    def part_of(own: K) -> Part[K]:
        if own not in parts:
            parts[own] = Part(key=own)
        return parts[own]

    all_sound = len(run.sound) == len(run.counted)
    sound = set() if all_sound else set(map(id, run.sound))
    for record in run.counted:
        part = part_of(key(record))
        part.counted.append(record)
        if all_sound or id(record) in sound:
            part.sound.append(record)
    for whole in recordings:
        part_of(key_of_recording(whole) if key_of_recording else key(whole.last)).recordings.append(whole)
    return [parts[own] for own in sorted(parts)]


class PartFigures(msgspec.Struct, kw_only=True):
    """Figures of a part of a run: `n` successful requests, which the figures describe."""

    n: int
    ttft: Figures
    e2el: Figures
    rtf: Figures


class ByDuration(PartFigures):
    """Figures by clip length, in seconds; `to_s` None means no upper bound."""

    from_s: float
    to_s: float | None
    wer: float | None
    cer: float | None = None


class ByUserClass(PartFigures):
    """Figures of one user class, which also had `fail` failed requests."""

    name: str
    fail: int
    itl: Figures
    wer: float | None
    cer: float | None = None


class ByReplica(PartFigures):
    """Figures of one address: its `share` of all requests, and its `fail` failed ones."""

    address: str
    share: float
    fail: int


def _figures_of(part: Part[Any]) -> dict[str, Any]:
    """The fields of PartFigures."""
    return {"n": len(part.good), **{name: part.figures(name) for name in ("ttft", "e2el", "rtf")}}


def _rates_of(accuracy: Accuracy) -> dict[str, Any]:
    return {"wer": accuracy.wer, "cer": accuracy.cer}


def by_user_class(run: Selection, info: RunInfo) -> list[ByUserClass]:
    """Figures of each user class; empty if there is only one."""
    parts = {part.key: part for part in by(run, lambda record: record.user_class)}
    rows = []
    for name in (each.name for each in info.user_classes):
        part = parts.get(name, Part(key=name))
        rates = _rates_of(measure(reference_pairs(part.good, info.scoring), info.scoring))
        rows.append(ByUserClass(name=name, fail=part.failed, itl=part.figures("itl"), **rates, **_figures_of(part)))
    return rows


def by_replica(run: Selection) -> list[ByReplica]:
    """Figures of each server address; empty if there is only one."""
    parts = [part for part in by(run, lambda record: record.replica or "") if part.key and part.sound]
    if len(parts) < 2:
        return []
    shares = [len(part.sound) / len(run.sound) for part in parts]
    return [
        ByReplica(address=part.key, share=share, fail=part.failed, **_figures_of(part))
        for part, share in zip(parts, shares, strict=True)
    ]


def by_duration(run: Measured, scoring: Scoring) -> list[ByDuration]:
    """Latencies by the length of clips, and error rates by that of recordings, which are longer if clips are parts of
    them."""

    def bucket(one: Record | Recording) -> int:
        return bisect_right(LENGTHS, one.audio_s) - 1

    return [
        ByDuration(
            from_s=LENGTHS[part.key],
            to_s=None if part.key + 1 == len(LENGTHS) else LENGTHS[part.key + 1],
            **_rates_of(part.accuracy(scoring)),
            **_figures_of(part),
        )
        for part in by(run, bucket, run.recordings, key_of_recording=bucket)
        if part.good or part.recordings
    ]


def values_of(manifest: Path, column: str) -> dict[str, str]:
    """A column's value for each clip of a manifest, by the id that prepare gives the clip. Raises InputError."""
    # Late: most reports need none of these, and urllib3, which they import, must not be imported before Locust.
    from asr_load.audio.cell import file_name
    from asr_load.audio.columns import AUDIO_COLUMNS, pick_column
    from asr_load.audio.manifest import read_rows
    from asr_load.audio.source import UniqueIds

    rows = read_rows(manifest)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if column not in columns:
        raise InputError(f"--by {column}: {manifest} has no such column; its columns are {', '.join(columns)}")
    audio = pick_column(None, AUDIO_COLUMNS, columns, "audio")
    values: dict[str, str] = {}
    # Manifests in folders name clips by the column id first, data sets on the hub by the file first.
    by_id, by_file = UniqueIds(), UniqueIds()
    for number, row in enumerate(rows):
        name = file_name(row.get(audio)) if audio else None
        stem, own = Path(name).stem if name else None, row.get("id")
        value = "" if row.get(column) is None else str(row[column])
        for unique, wanted in ((by_id, own or stem), (by_file, stem or own)):
            values.setdefault(unique(str(wanted or f"row-{number:06d}")), value)
    return values
