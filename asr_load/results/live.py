"""The live view of a run: percentiles of the last seconds and of the whole run so far, and their history.

A stream counts in the second in which it ended, on the master's clock. A second is shown when all workers have reported
past it. These figures are only for display; files are computed from the records themselves."""

from __future__ import annotations

import math
import sys
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from asr_load.results.accuracy import Sample
from asr_load.results.metrics import METRICS, STREAMED, Figures
from asr_load.results.slo import Goodput, Slo, SloResult
from asr_load.stream.record import Record

WINDOW_S = 10
PERCENTILES = (50, 90, 95, 99)
CHARTED = (50, 95, 99)
DRAWN, REALTIME_DRAWN = ("ttft", "e2el", "itl", "rtf"), ("ttft", "ttfs", "itl", "rtf_live")
"""Metrics with a chart, for requests over HTTP and for realtime sessions."""
POINT = 7 + len(DRAWN) * len(CHARTED)
STEP = math.log(1.005)
"""Width of a histogram's bucket, so that a percentile of the whole run is off by at most 0.25 %."""


class Histogram:
    """Counts of positive values in buckets of equal ratio. Its size depends on their spread, not on their number."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.n = 0
        self.max = self.sum = 0.0

    def add(self, values: np.ndarray) -> None:
        """Add values, shape (n,)."""
        if not values.size:
            return
        self._counts.update(np.rint(np.log(np.maximum(values, 1e-6)) / STEP).astype(int).tolist())
        self.n += values.size
        self.sum += values.sum().item()
        self.max = max(self.max, values.max().item())

    def percentiles(self, wanted: Sequence[float]) -> list[float | None]:
        """Percentiles, within 0.25 %; None without values."""
        if not self.n:
            return [None] * len(wanted)
        buckets = sorted(self._counts)
        reached = np.cumsum([self._counts[bucket] for bucket in buckets])
        places = [int(np.searchsorted(reached, share / 100 * self.n)) for share in wanted]
        return [min(math.exp(buckets[min(place, len(buckets) - 1)] * STEP), self.max) for place in places]

    def counts_up_to(self, bounds: Sequence[float]) -> list[int]:
        """The number of values up to each of these bounds, which rise; bounds are within 0.25 %."""
        buckets = sorted(self._counts)
        reached = np.cumsum([0, *(self._counts[bucket] for bucket in buckets)])
        tops = [math.exp((bucket + 0.5) * STEP) for bucket in buckets]
        counts: list[int] = reached[np.searchsorted(tops, np.asarray(bounds), "right")].tolist()
        return counts


class _Second:
    def __init__(self) -> None:
        self.parts: dict[str, list[np.ndarray]] = {metric.name: [] for metric in STREAMED}
        self.successes = 0
        self.met = 0
        """Requests that met all limits of --goodput."""
        self.tokens = 0
        self.uncounted = False
        """Whether a response came without a token count."""
        self.audio_s = 0.0
        self.failures: Counter[str] = Counter()

    def add(self, record: Record, goodput: Goodput | None) -> None:
        if record.failed:
            self.failures[sys.intern(record.outcome)] += 1  # interned, because each second keeps its own counter
        if record.ok:
            self.successes += 1
            self.tokens += record.known_tokens or 0
            self.uncounted |= record.known_tokens is None
            self.audio_s += record.audio_s
            self.met += goodput is not None and goodput.meets(record)

    def values(self, name: str) -> np.ndarray:
        """A metric's values, shape (n,)."""
        return np.concatenate([np.empty(0), *self.parts[name]])


class Live:
    """The live view of one run, in seconds since `began` (in seconds since the epoch). A record counts in the second in
    which it ended, however late it arrives. `drawn`: metrics with a chart; `goodput`: limits for goodput; `accuracy`:
    scores a sample of the transcripts; `slos`: limits to judge."""

    def __init__(
        self,
        began: float,
        drawn: Sequence[str] = DRAWN,
        goodput: Goodput | None = None,
        accuracy: Sample | None = None,
        slos: Sequence[Slo] = (),
    ) -> None:
        self.began, self._drawn, self._goodput, self.accuracy = began, drawn, goodput, accuracy
        limited = [slo.metric for slo in slos if slo.metric in METRICS]
        self._run = {name: Histogram() for name in (*(metric.name for metric in STREAMED), *limited)}
        self._open: dict[int, _Second] = {}
        """Seconds that may still receive records, by number."""
        self._load: dict[int, tuple[int, int]] = {}
        self._last_load = 0, 0
        """Numbers of users and of requests in flight."""
        self._window: deque[_Second] = deque(maxlen=WINDOW_S)
        self._points = array("d")
        """POINT numbers for each second: 152 bytes, because a test may run for days. NaN means no value."""
        self._failed: dict[int, dict[str, int]] = {}
        """Failures by outcome, by number of the second; only for seconds with failures."""
        self.requests = self.successes = 0
        self.audio_s, self.tokens = 0.0, 0
        """Seconds of audio, and known output tokens, of successful requests."""
        self.failures: Counter[str] = Counter()

    def add(self, records: Sequence[Record], ends: Sequence[float]) -> None:
        """Add records, without warm-up, and the time when each ended, in seconds since the epoch."""
        self.requests += len(records)
        self.successes += sum(record.ok for record in records)
        self.failures.update(record.outcome for record in records if record.failed)
        self.audio_s += sum(record.audio_s for record in records if record.ok)
        self.tokens += sum(record.known_tokens or 0 for record in records if record.ok)
        if self.accuracy is not None:
            for record in records:
                if record.ok:
                    self.accuracy.add(record)
        by_second: dict[int, list[Record]] = {}
        for record, end in zip(records, ends, strict=True):
            by_second.setdefault(math.floor(end - self.began), []).append(record)
        for number, together in by_second.items():
            good = [record for record in together if record.ok]
            values = {name: METRICS[name].values(good) * METRICS[name].scale for name in self._run}
            for name, histogram in self._run.items():
                histogram.add(values[name])
            if number < self.closed:
                self._add_late(number, together)
                continue
            second = self._open.setdefault(number, _Second())
            for record in together:
                second.add(record, self._goodput)
            for name, parts in second.parts.items():
                parts.append(values[name])

    def _add_late(self, number: int, records: Sequence[Record]) -> None:
        """Add to the sums of a closed second; its percentiles stay as they are."""
        if number < 0:  # before a reset of the view
            return
        late = _Second()
        for record in records:
            late.add(record, self._goodput)
        start = number * POINT
        self._points[start + 3] += late.successes
        self._points[start + 4] += math.nan if late.uncounted else late.tokens
        self._points[start + 5] += late.audio_s
        self._points[start + 6] += late.met
        if late.failures:
            self._failed[number] = dict(Counter(self._failed.get(number, {})) + late.failures)

    @property
    def is_realtime(self) -> bool:
        """Whether the charts are those of realtime sessions."""
        return self._drawn is REALTIME_DRAWN

    @property
    def load(self) -> tuple[int, int]:
        """The last known numbers of users and of requests in flight."""
        return self._load[max(self._load)] if self._load else self._last_load

    @property
    def histograms(self) -> Mapping[str, Histogram]:
        """The values of each metric over the whole test, in its unit."""
        return self._run

    @property
    def closed(self) -> int:
        """Number of closed seconds."""
        return len(self._points) // POINT

    def tick(self, now: float, users: int, in_flight: int, complete_until: float) -> None:
        """Record the numbers of users and of requests in flight, which count for the second whose end is closest, and
        close the seconds that ended before `complete_until`, for which all records have arrived. Call this once a
        second; times are seconds since the epoch."""
        if self.accuracy is not None:
            self.accuracy.score()
        self._load[max(math.floor(now - self.began + 0.5) - 1, self.closed)] = users, in_flight
        while self.closed < math.floor(min(now, complete_until) - self.began):
            self._close_second()

    def close(self, now: float) -> None:
        """Close all seconds up to now, when no more records will come. The end of the test cuts the last one short."""
        last = math.floor(now - self.began)
        last += last + 1 in self._open  # clocks differ slightly
        while self.closed <= last:
            self._close_second()

    def _close_second(self) -> None:
        number = self.closed
        second = self._open.pop(number, None) or _Second()
        self._last_load = self._load.pop(number, self._last_load)
        self._window.append(second)
        if second.failures:
            self._failed[number] = dict(second.failures)
        tokens = math.nan if second.uncounted else second.tokens
        met = math.nan if self._goodput is None else second.met
        point = [round(self.began + number + 1, 3), *self._last_load, second.successes, tokens, second.audio_s, met]
        for name in self._drawn:
            values = second.values(name)
            point += np.percentile(values, CHARTED).tolist() if values.size else [math.nan] * len(CHARTED)
        self._points.extend(point)

    def slo_results(self, slos: Iterable[Slo]) -> list[SloResult]:
        """Judge SLOs over the whole test so far, except those without a value yet. Percentiles are within 0.25 %; WER
        and CER are those of the sampled transcripts."""
        values = [(slo, self._value(slo)) for slo in slos]
        return [SloResult(slo.name, slo.limit, value, value <= slo.limit) for slo, value in values if value is not None]

    def _value(self, slo: Slo) -> float | None:
        if slo.metric == "errors":
            ended = self.successes + self.failures.total()
            return self.failures.total() / ended if ended else None
        if slo.metric not in METRICS:
            scored = self.accuracy
            return scored.rate if scored is not None and scored.references and scored.name == slo.metric else None
        whole = self._run.get(slo.metric)
        if whole is None or not whole.n:
            return None
        if slo.share is None:
            return whole.sum / whole.n
        return whole.max if slo.share == 1 else whole.percentiles([100 * slo.share])[0]

    def points(self, after: float = 0.0) -> list[dict[str, Any]]:
        """One point for each closed second that ended after `after`: `t` (its end, since the epoch), `users`,
        `in_flight`, `successes_per_s`, `tokens_per_s` (None if a response came without a token count), `rtfx`,
        `goodput_per_s` (None without --goodput), `failures_per_s` by outcome, and for each charted metric p50, p95 and
        p99 in its unit (None if no stream ended in that second)."""
        first = self.closed
        while first and self._points[(first - 1) * POINT] > after:
            first -= 1
        return [self._point(number) for number in range(first, self.closed)]

    def recent(self) -> list[dict[str, Any]]:
        """Points of the last closed seconds, at most WINDOW_S."""
        return [self._point(number) for number in range(max(self.closed - WINDOW_S, 0), self.closed)]

    def _point(self, number: int) -> dict[str, Any]:
        t, users, in_flight, successes, *figures = self._points[number * POINT : (number + 1) * POINT]
        values = iter(None if math.isnan(value) else value for value in figures)
        point: dict[str, Any] = {
            "t": t,
            "users": int(users),
            "in_flight": int(in_flight),
            "successes_per_s": int(successes),
            "tokens_per_s": next(values),
            "rtfx": next(values),
            "goodput_per_s": next(values),
            "failures_per_s": self._failed.get(number, {}),
        }
        for name in self._drawn:
            point[name] = {f"p{share}": next(values) for share in CHARTED}
        return point

    def table(self) -> dict[str, tuple[Figures, Figures]]:
        """By metric, its figures over the last 10 s and over the run, in its unit and without a mean. Metrics of
        realtime sessions only if there are any."""
        rows = {}
        for metric in STREAMED:
            whole = self._run[metric.name]
            if metric.is_realtime and not whole.n:
                continue
            seconds = (*self._window, *self._open.values())
            recent = np.concatenate([np.empty(0), *(second.values(metric.name) for second in seconds)])
            shown = np.percentile(recent, PERCENTILES).tolist() if recent.size else [None] * len(PERCENTILES)
            rows[metric.name] = (
                _figures([*shown, recent.max().item() if recent.size else None], recent.size),
                _figures([*whole.percentiles(PERCENTILES), whole.max if whole.n else None], whole.n),
            )
        return rows


def _figures(values: Iterable[float | None], count: int) -> Figures:
    p50, p90, p95, p99, highest = (None if value is None else round(value, 3) for value in values)
    return Figures(None, p50, p90, p95, p99, highest, count)
