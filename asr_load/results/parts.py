"""Split a run's requests into parts that have something in common: a user class, a length, a speaker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from asr_load.errors import InputError
from asr_load.results.accuracy import Accuracy, Whole, measure
from asr_load.results.figures import Figures, figures_of
from asr_load.results.normalizers import Scoring
from asr_load.results.sound import Measured
from asr_load.stream.record import Record

K = TypeVar("K", int, str)


@dataclass
class Part(Generic[K]):
    """The requests of a run that have a key in common."""

    key: K
    counted: list[Record] = field(default_factory=list)
    """Requests that count for throughput."""
    sound: list[Record] = field(default_factory=list)
    """Those of `counted` that latencies, error rates and accuracy describe."""
    recordings: list[Whole] = field(default_factory=list)

    @cached_property
    def good(self) -> list[Record]:
        """The successful requests that latencies describe."""
        return [record for record in self.sound if record.ok]

    @property
    def failed(self) -> int:
        """Number of failures that count for the error rate."""
        return sum(record.failed for record in self.sound)

    def figures(self, metric: str) -> Figures:
        """Figures of a metric in METRICS."""
        return figures_of(metric, self.good)

    def accuracy(self, scoring: Scoring) -> Accuracy:
        """Error rates of the recordings."""
        return measure(((whole.reference, whole.text) for whole in self.recordings), scoring)


def by(
    run: Measured,
    key: Callable[[Record], K],
    recordings: Iterable[Whole] = (),
    key_of_recording: Callable[[Whole], K] | None = None,
) -> list[Part[K]]:
    """Split a run's requests by their keys. Parts are sorted by key.

    A recording, which may consist of several requests, belongs to the part of the request that completed it, or to that
    of `key_of_recording`."""
    parts: dict[K, Part[K]] = {}

    def part_of(own: K) -> Part[K]:
        if own not in parts:
            parts[own] = Part(own)
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
