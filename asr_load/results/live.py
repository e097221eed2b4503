"""A run while it runs: percentiles of the last seconds and of the whole run so far, and their course over time.

Fed with records as they are written, so a stream counts in the second in which it ended. What is shown here is for the
eye: files are written from the records themselves.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from asr_load.stream.record import Record

WINDOW_S = 10
PERCENTILES = (50, 90, 95, 99)
CHARTED = (50, 95, 99)
FEW = 16
"""Values below which numpy costs more than it saves."""

STEP = math.log(1.005)
"""Width of a histogram's bucket: a percentile of the whole run is at most 0.25 % off."""

SCALES = {"TTFT": 1e3, "ITL": 1e3, "TPOT": 1e3, "E2E": 1e3, "RTF": 1.0}
"""The metrics that are shown, and what makes their records' values milliseconds (RTF has no unit)."""


def values_of(record: Record) -> dict[str, list[float]]:
    """A success's values by metric, in the units that are shown."""
    found: dict[str, list[Any]] = {
        "TTFT": [record.ttft],
        "ITL": record.itl,
        "TPOT": [record.tpot],
        "E2E": [record.e2el],
        "RTF": [record.rtf],
    }
    return {name: [value * SCALES[name] for value in values if value is not None] for name, values in found.items()}


class Histogram:
    """Counts of positive values in buckets of equal ratio; its size depends on their spread, not on their number."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.n = 0
        self.max = 0.0

    def add(self, values: Sequence[float]) -> None:
        if not values:
            return
        if len(values) < FEW:
            buckets = [round(math.log(max(value, 1e-6)) / STEP) for value in values]
        else:
            buckets = np.rint(np.log(np.maximum(values, 1e-6)) / STEP).astype(int).tolist()
        self._counts.update(buckets)
        self.n += len(values)
        self.max = max(self.max, *values)

    def percentiles(self, wanted: Iterable[float]) -> list[float | None]:
        """The values below which so many percent lie, within 0.25 %; None while there are no values."""
        if not self.n:
            return [None for _ in wanted]
        buckets = sorted(self._counts)
        reached = np.cumsum([self._counts[bucket] for bucket in buckets])
        places = [int(np.searchsorted(reached, share / 100 * self.n)) for share in wanted]
        return [min(math.exp(buckets[min(place, len(buckets) - 1)] * STEP), self.max) for place in places]


class _Second:
    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {name: [] for name in SCALES}
        self.tokens = 0
        self.audio_s = 0.0
        self.failures: Counter[str] = Counter()


class Live:
    """The live view of one run. `tick` closes a second: call it once a second."""

    def __init__(self) -> None:
        self._run = {name: Histogram() for name in SCALES}
        self._now = _Second()
        self._window: deque[_Second] = deque(maxlen=WINDOW_S)
        self._points: list[tuple[float, bytes]] = []
        """As JSON, a fifth of what dictionaries would take: a test may go on for days."""
        self.requests = 0
        self.failures: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        """Take a record that is not a warm-up."""
        self.requests += 1
        if not record.ok:
            self._now.failures[record.outcome] += 1
            self.failures[record.outcome] += 1
            return
        for name, values in values_of(record).items():
            self._now.values[name] += values
            self._run[name].add(values)
        self._now.tokens += record.output_tokens or 0
        self._now.audio_s += record.audio_s

    def tick(self, at: float, elapsed: float, users: int) -> None:
        """Close a second that took `elapsed` seconds, at `at` seconds since the epoch."""
        second, self._now = self._now, _Second()
        self._window.append(second)
        point: dict[str, Any] = {
            "t": round(at, 3),
            "users": users,
            "tokens_per_s": second.tokens / elapsed,
            "rtfx": second.audio_s / elapsed,
            "failures": dict(second.failures),
        }
        for name in ("TTFT", "ITL"):
            values = second.values[name]
            shown = np.percentile(values, CHARTED).tolist() if values else [None] * len(CHARTED)
            point[name.lower()] = dict(zip((f"p{share}" for share in CHARTED), shown, strict=True))
        self._points.append((point["t"], msgspec.json.encode(point)))

    def points(self, after: float = 0.0) -> list[dict[str, Any]]:
        """A point for each second after a time: `t` (since the epoch), `users`, `tokens_per_s`, `rtfx`, `failures` by
        outcome, and `ttft` and `itl` with p50, p95 and p99 in ms (None where no stream ended in that second)."""
        first = len(self._points)
        while first and self._points[first - 1][0] > after:
            first -= 1
        return [msgspec.json.decode(point) for _, point in self._points[first:]]

    def table(self) -> list[dict[str, Any]]:
        """Rows `name`, `count`, `p50` … `p99`, `max`: each metric over the last 10 s and over the run."""
        rows = []
        for name, scale in SCALES.items():
            label = f"{name} (ms)" if scale > 1 else name
            recent = [value for second in (*self._window, self._now) for value in second.values[name]]
            shown = np.percentile(recent, PERCENTILES).tolist() if recent else [None] * len(PERCENTILES)
            rows.append(_row(f"{label}, last {WINDOW_S} s", len(recent), shown, max(recent, default=None)))
            whole = self._run[name]
            peak = whole.max if whole.n else None
            rows.append(_row(f"{label}, whole run", whole.n, whole.percentiles(PERCENTILES), peak))
        return rows


def _row(name: str, count: int, percentiles: list[float | None], peak: float | None) -> dict[str, Any]:
    columns = {f"p{share}": value for share, value in zip(PERCENTILES, percentiles, strict=True)}
    shown = {key: None if value is None else round(value, 3) for key, value in {**columns, "max": peak}.items()}
    return {"name": name, "count": count, **shown}
