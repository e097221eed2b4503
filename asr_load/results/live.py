"""A run while it runs: percentiles of the last seconds and of the whole run so far, and their course over time.

Fed with records as they are written, so a stream counts in the second in which it ended. What is shown here is for the
eye: files are written from the records themselves.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from asr_load.stream.record import Record

WINDOW_S = 10
PERCENTILES = (50, 90, 95, 99)
CHARTED = (50, 95, 99)
DRAWN = ("TTFT", "ITL")
POINT = 4 + len(DRAWN) * len(CHARTED)
STEP = math.log(1.005)
"""Width of a histogram's bucket: a percentile of the whole run is at most 0.25 % off."""

SCALES = {"TTFT": 1e3, "ITL": 1e3, "TPOT": 1e3, "E2E": 1e3, "RTF": 1.0}
"""The metrics that are shown, and what makes their records' values milliseconds (RTF has no unit)."""


def values_of(successes: Sequence[Record]) -> dict[str, np.ndarray]:
    """The values of successes by metric, each of shape (n,), in the units that are shown."""
    found: dict[str, list[Any]] = {
        "TTFT": [record.ttft for record in successes],
        "ITL": [gap for record in successes for gap in record.itl],
        "TPOT": [record.tpot for record in successes],
        "E2E": [record.e2el for record in successes],
        "RTF": [record.rtf for record in successes],
    }
    return {
        name: np.array([value for value in values if value is not None], float) * SCALES[name]
        for name, values in found.items()
    }


class Histogram:
    """Counts of positive values in buckets of equal ratio; its size depends on their spread, not on their number."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.n = 0
        self.max = 0.0

    def add(self, values: np.ndarray) -> None:
        """Take values, shape (n,)."""
        if not values.size:
            return
        self._counts.update(np.rint(np.log(np.maximum(values, 1e-6)) / STEP).astype(int).tolist())
        self.n += values.size
        self.max = max(self.max, values.max().item())

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
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in SCALES}
        self.tokens = 0
        self.audio_s = 0.0
        self.failures: Counter[str] = Counter()

    def values(self, name: str) -> np.ndarray:
        """A metric's values, shape (n,)."""
        return np.concatenate([np.empty(0), *self.parts[name]])


class Live:
    """The live view of one run. `tick` closes a second: call it once a second."""

    def __init__(self) -> None:
        self._run = {name: Histogram() for name in SCALES}
        self._now = _Second()
        self._window: deque[_Second] = deque(maxlen=WINDOW_S)
        self._points = array("d")
        """POINT numbers for each second, 80 bytes: a test may go on for days. NaN is none."""
        self._failed: dict[int, dict[str, int]] = {}
        """The failures of a second by its number, where there were any."""
        self.requests = 0
        self.failures: Counter[str] = Counter()

    def add(self, records: Sequence[Record]) -> None:
        """Take records that are no warm-ups."""
        self.requests += len(records)
        failed = [record.outcome for record in records if record.failed]
        self._now.failures.update(failed)
        self.failures.update(failed)
        successes = [record for record in records if record.ok]
        for name, values in values_of(successes).items():
            self._now.parts[name].append(values)
            self._run[name].add(values)
        self._now.tokens += sum(record.output_tokens or 0 for record in successes)
        self._now.audio_s += sum(record.audio_s for record in successes)

    def tick(self, at: float, elapsed: float, users: int) -> None:
        """Close a second that took `elapsed` seconds, at `at` seconds since the epoch."""
        second, self._now = self._now, _Second()
        self._window.append(second)
        if second.failures:
            self._failed[len(self._points) // POINT] = dict(second.failures)
        point = [round(at, 3), users, second.tokens / elapsed, second.audio_s / elapsed]
        for name in DRAWN:
            values = second.values(name)
            point += np.percentile(values, CHARTED).tolist() if values.size else [math.nan] * len(CHARTED)
        self._points.extend(point)

    def points(self, after: float = 0.0) -> list[dict[str, Any]]:
        """A point for each second after a time: `t` (since the epoch), `users`, `tokens_per_s`, `rtfx`, `failures` by
        outcome, and `ttft` and `itl` with p50, p95 and p99 in ms (None where no stream ended in that second)."""
        first = len(self._points) // POINT
        while first and self._points[(first - 1) * POINT] > after:
            first -= 1
        return [self._point(number) for number in range(first, len(self._points) // POINT)]

    def _point(self, number: int) -> dict[str, Any]:
        t, users, tokens_per_s, rtfx, *percentiles = self._points[number * POINT : (number + 1) * POINT]
        point: dict[str, Any] = {"t": t, "users": int(users), "tokens_per_s": tokens_per_s, "rtfx": rtfx}
        point["failures"] = self._failed.get(number, {})
        known = iter(None if math.isnan(value) else value for value in percentiles)
        for name in DRAWN:
            point[name.lower()] = {f"p{share}": next(known) for share in CHARTED}
        return point

    def table(self) -> list[dict[str, Any]]:
        """Rows `name`, `count`, `p50` … `p99`, `max`: each metric over the last 10 s and over the run."""
        rows = []
        for name, scale in SCALES.items():
            label = f"{name} (ms)" if scale > 1 else name
            recent = np.concatenate([second.values(name) for second in (*self._window, self._now)])
            shown = np.percentile(recent, PERCENTILES).tolist() if recent.size else [None] * len(PERCENTILES)
            peak = recent.max().item() if recent.size else None
            rows.append(_row(f"{label}, last {WINDOW_S} s", recent.size, shown, peak))
            whole = self._run[name]
            peak = whole.max if whole.n else None
            rows.append(_row(f"{label}, whole run", whole.n, whole.percentiles(PERCENTILES), peak))
        return rows


def _row(name: str, count: int, percentiles: list[float | None], peak: float | None) -> dict[str, Any]:
    columns = {f"p{share}": value for share, value in zip(PERCENTILES, percentiles, strict=True)}
    shown = {key: None if value is None else round(value, 3) for key, value in {**columns, "max": peak}.items()}
    return {"name": name, "count": count, **shown}
