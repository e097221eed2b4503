"""A finished test over time, from its records, as its live view showed it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from asr_load.results.live import DRAWN, REALTIME_DRAWN, Live
from asr_load.results.runfile import RunInfo
from asr_load.results.slo import Goodput
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


MOST_POINTS, RATE_S = 600, 5
"""Maximum number of points in charts over time, about one per pixel, and the seconds that their rates average."""


LONGEST_S = 86_400
"""Seconds of a test that its charts over time show, the last ones: each second is a point of two kilobytes."""


def course(records: Sequence[Record], info: RunInfo) -> list[dict[str, Any]]:
    """The points that a finished test's live view would have (see `Live.points`), one for each second, from all of its
    records; of a longer test, only those of the last LONGEST_S seconds."""
    if not records:
        return []
    shown = [record for record in records if not record.warmup]
    drawn = REALTIME_DRAWN if info.realtime else DRAWN
    ended_at = max(span(records)[1], info.ended_at or info.began_at)
    began_at = info.began_at + max(math.ceil(ended_at - info.began_at) - LONGEST_S, 0)
    live = Live(began_at, drawn, Goodput(info.goodput) if info.goodput else None)
    live.add(shown, [record.end for record in shown])
    ends = began_at + 1 + np.arange(math.floor(ended_at - began_at))
    for end, users, in_flight in zip(ends.tolist(), _users(info, ends), _in_flight(records, ends), strict=True):
        live.tick(end, users, in_flight, complete_until=end)
    live.close(ended_at)
    return live.points()


def thinned(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most MOST_POINTS points, each with the highest values of successive points, so that no peak is hidden. Rates
    are means over RATE_S seconds then. The tab's charts do the same (charts.js)."""
    stretch = stretch_of(len(points))
    if stretch < 2:
        return list(points)
    steady = _steadied(points)
    return [_highest(steady[start : start + stretch]) for start in range(0, len(points), stretch)]


def stretch_of(seconds: int) -> int:
    """Number of seconds in each point of a chart over this many seconds."""
    return max(-(-seconds // MOST_POINTS), 1)


def _steadied(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points with rates that are means over RATE_S seconds, because streams end in clusters. Before the start there
    were no requests."""
    outcomes = sorted({name for point in points for name in point["failures_per_s"]})

    def mean(at: int, value: Callable[[Mapping[str, Any]], float | None]) -> float | None:
        values = [value(point) for point in points[max(at - RATE_S + 1, 0) : at + 1]]
        known = [each for each in values if each is not None]
        return sum(known) / RATE_S if len(known) == len(values) else None

    steady: list[Mapping[str, Any]] = []
    for at, point in enumerate(points):
        rates = {name: mean(at, itemgetter(name)) for name in ("successes_per_s", "tokens_per_s", "rtfx")}
        failures = {name: mean(at, lambda each, name=name: each["failures_per_s"].get(name, 0)) for name in outcomes}  # type: ignore[misc]
        steady.append({**point, **rates, "failures_per_s": failures})
    return steady


def _highest(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each key of some points, the highest value; a value may be such a mapping itself."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for point in points for key in point):
        values = [point[key] for point in points if point.get(key) is not None]
        is_nested = bool(values) and isinstance(values[0], Mapping)
        merged[key] = _highest(values) if is_nested else max(values, default=None)
    return merged


def stretches(first: float, last: float, width: float) -> int:
    """Number of stretches of a run. A rest shorter than half a stretch belongs to the last one, because rates over a
    moment mean nothing."""
    return max(int((last - first) / width + 0.5), 1)


def _users(info: RunInfo, ends: np.ndarray) -> list[int]:
    """Number of users at the ends of seconds; shape (n,). A change counts from the second whose end is closest, as in
    the live view."""
    times = np.array([changed for changed, _ in info.users])
    counts = [0, *(count for _, count in info.users)]
    return [counts[place] for place in np.searchsorted(times, ends + 0.5, "right")]


def _in_flight(records: Sequence[Record], ends: np.ndarray) -> list[int]:
    """Number of requests in flight at the ends of seconds; shape (n,)."""
    starts = np.sort([record.started_at for record in records])
    stops = np.sort([record.end for record in records])
    in_flight: list[int] = (np.searchsorted(starts, ends, "right") - np.searchsorted(stops, ends, "right")).tolist()
    return in_flight


def in_flight_at_start(records: Sequence[Record]) -> np.ndarray:
    """For each record, the number of requests in flight when it began, including itself; shape (n,)."""
    begins = np.array([record.started_at for record in records])
    ends = np.sort([record.end for record in records])
    begun: np.ndarray = np.searchsorted(np.sort(begins), begins, "right")
    return begun - np.searchsorted(ends, begins, "right")
