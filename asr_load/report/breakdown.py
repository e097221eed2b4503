"""Tables of a run's requests in parts: over time, by stage, by load, by worker, and by a column of a manifest."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from asr_load.audio.clip import parent_of
from asr_load.errors import InputError
from asr_load.report.tables import LATENCY_HEADINGS, Table, faint_p95, latency_cells
from asr_load.report.words import number, percent
from asr_load.results.course import in_flight_at_start, span, stretches, width_for
from asr_load.results.parts import Part, by
from asr_load.results.summary import Finished

TIME_ROWS, COLUMN_ROWS = 20, 200
"""Maximum number of rows in the table over time, and in one by a column of a manifest."""

COUNTS = ("n", "fail")


class Breakdown:
    """A run's requests, and the tables of their parts."""

    def __init__(self, finished: Finished) -> None:
        self._info, self._run, self._rate = finished.info, finished.measured, finished.summary.rate

    def over_time(self, slice_s: float | None = None) -> Table:
        """Parts by the time in which requests ended, each `slice_s` seconds long; None: at most TIME_ROWS parts."""
        first, last = span(self._run.counted)
        width = slice_s or width_for(last - first, TIME_ROWS)
        count = stretches(first, last, width)
        parts = by(self._run, lambda record: min(int((record.end - first) / width), count - 1), self._run.recordings)
        bounds = [(part.key * width, _end(part.key, count, width, last - first)) for part in parts]
        names = [f"{begin:g} to {end:.4g}" for begin, end in bounds]
        seconds = [end - begin for begin, end in bounds]
        note = "A request counts in the row in which it ended."
        return self._table("Over time", "seconds", names, parts, seconds=seconds, note=note)

    def by_stage(self) -> Table:
        """Parts by the stage in which requests began."""
        times = [at for at, _ in self._info.stages]
        parts = by(self._run, lambda record: bisect_right(times, record.begins) - 1, self._run.recordings)
        last, names, seconds = span(self._run.counted)[1], [], []
        for part in parts:
            at = part.key
            names.append(self._info.stages[at][1] if at >= 0 else "before")
            begin = times[at] if at >= 0 else span(part.counted)[0]
            seconds.append((times[at + 1] if at + 1 < len(times) else last) - begin)
        note = "A request counts in the stage in which it began."
        return self._table("By stage", "", names, parts, seconds=seconds, note=note)

    def by_load(self) -> Table:
        """Parts by the number of requests in flight, to show whether accuracy drops when the server is busy."""
        in_flight = in_flight_at_start(self._run.counted).tolist()
        lowest, *highs = np.unique(np.quantile(in_flight, [0, 1 / 3, 2 / 3, 1], method="nearest")).tolist()
        highs = highs or [lowest]
        lows = [lowest, *(high + 1 for high in highs)]
        busy = {id(record): count for record, count in zip(self._run.counted, in_flight, strict=True)}
        parts = by(self._run, lambda record: bisect_left(highs, busy[id(record)]), self._run.recordings)
        bounds = [(lows[part.key], highs[part.key]) for part in parts]
        names = [f"{low} to {high}" if low < high else f"{low}" for low, high in bounds]
        return self._table("By requests in flight at the start", "in flight", names, parts)

    def by_worker(self) -> Table:
        """Parts by the worker that sent the requests."""
        found = {part.key: part for part in by(self._run, lambda record: record.worker)}
        parts = [found.get(worker.worker, Part(key=worker.worker)) for worker in self._info.workers]
        rows = [
            (f"{worker.worker} on {worker.host}", *_cells(part), worker.reader, str(worker.cores))
            for worker, part in zip(self._info.workers, parts, strict=True)
        ]
        headings = ("", *COUNTS, *LATENCY_HEADINGS, "reader", "cores")
        return Table("By worker", headings, rows, faint=faint_p95([len(part.good) for part in parts], 1 + len(COUNTS)))

    def by_column(self, column: str, values: Mapping[str, str]) -> Table:
        """Parts by the value that a column of a manifest has for a clip, largest first. `values`: by the clip's id.
        Raises InputError if no clip has a value."""

        def value_of(clip: str) -> str | None:
            return values.get(clip, values.get(parent_of(clip)[0]))

        if not any(value_of(record.clip) is not None for record in self._run.counted):
            clips = f"(its clips have ids such as {self._run.counted[0].clip!r})" if self._run.counted else ""
            raise InputError(f"--by {column}: --manifest has none of the run's clips {clips}".rstrip())
        parts = by(self._run, lambda record: value_of(record.clip) or "", self._run.recordings)
        parts.sort(key=lambda part: (-len(part.counted), part.key))
        note = f"{len(parts) - COLUMN_ROWS} more are not shown." if len(parts) > COLUMN_ROWS else ""
        names = [part.key or "unknown" for part in parts[:COLUMN_ROWS]]
        return self._table(f"By {column}", "", names, parts[:COLUMN_ROWS], note=note)

    def _table(
        self,
        title: str,
        heading: str,
        names: Sequence[str],
        parts: Sequence[Part[Any]],
        *,
        seconds: Sequence[float] | None = None,
        note: str = "",
    ) -> Table:
        """A row for each part, with its error rate; and with its throughput if its length in seconds is given."""
        rows = [
            (name, *_cells(part, length), percent(getattr(part.accuracy(self._info.scoring), self._rate)))
            for name, part, length in zip(names, parts, seconds or repeat(None), strict=False)
        ]
        before = (heading, *COUNTS, "requests/s") if seconds else (heading, *COUNTS)
        faint = faint_p95([len(part.good) for part in parts], len(before))
        headings = (*before, *LATENCY_HEADINGS, self._rate.upper())
        return Table(title, headings, rows, note, numbers=bool(heading), faint=faint)


def _end(place: int, count: int, width: float, length: float) -> float:
    """The end of a stretch of time, in seconds since the first request; the last one ends with the run."""
    return length if place == count - 1 else (place + 1) * width


def _cells(part: Part[Any], seconds: float | None = None) -> Iterator[str]:
    """The cells below COUNTS, requests/s if `seconds` is given, and LATENCIES."""
    yield f"{len(part.good):,}"
    yield f"{part.failed:,}"
    if seconds is not None:
        yield number(sum(record.ok for record in part.counted) / seconds if seconds > 0 else None, 2)
    yield from latency_cells(part.figures("ttft"), part.figures("e2el"))
