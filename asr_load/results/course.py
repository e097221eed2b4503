"""A run over time, from its records: figures for each stretch of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from asr_load.results.live import CHARTED, DRAWN, REALTIME_DRAWN
from asr_load.results.metrics import METRICS
from asr_load.results.runfile import RunInfo
from asr_load.stream.record import Record

WIDTHS = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
"""Round lengths of a stretch, in seconds."""


def width_for(seconds: float, most: int) -> float:
    """The shortest of WIDTHS that cuts this many seconds into at most `most` stretches."""
    return next((width for width in WIDTHS if seconds / width <= most), seconds / most)


def span(records: Sequence[Record]) -> tuple[float, float]:
    """First start and last end, in seconds since the epoch; (0, 0) without records."""
    if not records:
        return 0.0, 0.0
    return min(record.started_at for record in records), max(record.end for record in records)


def course(records: Sequence[Record], info: RunInfo, width: float) -> list[dict[str, Any]]:
    """Cut a run into stretches of `width` seconds, each a point as in `Live.points` but without goodput. A request
    counts in the stretch in which it ended; `t` is a stretch's end, and `in_flight` its mean."""
    first, last = span(records)
    count = stretches(first, last, width) if records else 0
    parts: list[list[Record]] = [[] for _ in range(count)]
    for record in records:
        parts[min(int((record.end - first) / width), count - 1)].append(record)
    in_flight = _in_flight(records, first, width, count)
    drawn = REALTIME_DRAWN if info.realtime else DRAWN
    points = []
    for number, part in enumerate(parts):
        begin = first + number * width
        end = last if number == count - 1 else begin + width
        load = {"users": _users(info, end), "in_flight": in_flight[number]}
        points.append(_point(part, begin, max(end, begin + 1e-3), drawn) | load)
    return points


def stretches(first: float, last: float, width: float) -> int:
    """Number of stretches of a run. A rest shorter than half a stretch belongs to the last one, because rates over a
    moment mean nothing."""
    return max(int((last - first) / width + 0.5), 1)


def _point(part: Sequence[Record], begin: float, end: float, drawn: Sequence[str]) -> dict[str, Any]:
    good, seconds = [record for record in part if record.ok], end - begin
    counted = all(record.known_tokens is not None for record in good)
    failed = Counter(record.outcome for record in part if record.failed)
    point: dict[str, Any] = {
        "t": end,
        "successes_per_s": len(good) / seconds,
        "tokens_per_s": sum(record.known_tokens or 0 for record in good) / seconds if counted else None,
        "rtfx": sum(record.audio_s for record in good) / seconds,
        "failures_per_s": {name: count / seconds for name, count in sorted(failed.items())},
    }
    for name in drawn:
        values = METRICS[name].values(good) * METRICS[name].scale
        shown = np.percentile(values, CHARTED, overwrite_input=True).tolist() if values.size else [None] * len(CHARTED)
        point[name] = {f"p{share}": value for share, value in zip(CHARTED, shown, strict=True)}
    return point


def _users(info: RunInfo, at: float) -> int:
    return next((count for changed, count in reversed(info.users) if changed <= at), 0)


def _in_flight(records: Sequence[Record], first: float, width: float, count: int) -> list[float]:
    """Mean number of requests in flight in each stretch: the seconds that requests spend in it divided by its
    length."""
    borders = first + width * np.arange(count + 1.0)
    starts = np.sort([record.started_at for record in records])
    ends = np.sort([record.end for record in records])
    if count:
        borders[-1] = max(float(ends[-1]), borders[-2] + 1e-3)
    busy = _seconds_until(starts, borders) - _seconds_until(ends, borders)
    return [float(value) for value in np.diff(busy) / np.diff(borders)]


def _seconds_until(times: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """For each border, the sum of the seconds from all earlier times to it; shapes (n,), (m,) -> (m,)."""
    before = np.searchsorted(times, borders)
    sums = np.concatenate([[0.0], np.cumsum(times - times[0])]) if times.size else np.zeros(1)
    summed: np.ndarray = before * (borders - (times[0] if times.size else 0.0)) - sums[before]
    return summed


def in_flight_at_start(records: Sequence[Record]) -> np.ndarray:
    """For each record, the number of requests in flight when it began, including itself; shape (n,)."""
    begins = np.array([record.started_at for record in records])
    ends = np.sort([record.end for record in records])
    begun: np.ndarray = np.searchsorted(np.sort(begins), begins, "right")
    return begun - np.searchsorted(ends, begins, "right")
