"""Tables of a run, as text in cells, shared by the console, the HTML report and the Markdown export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from asr_load.report.words import clock, ms, number, percent
from asr_load.results.metrics import METRICS, Figures
from asr_load.results.parts import PartFigures
from asr_load.results.summary import Summary
from asr_load.text import visible

FEW_VALUES = {"p90": 10, "p95": 20, "p99": 100}
"""Number of values below which a percentile is hardly more than the maximum."""

LATENCY_HEADINGS = ("TTFT p50, ms", "TTFT p95, ms", "E2E p50, ms", "E2E p95, ms")


@dataclass(frozen=True)
class Table:
    """Headings and rows of text without control characters. The first column names a row, unless `numbers` is set."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numbers: bool = False
    faint: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    """Row and column of cells to print faintly, because they rest on too few values."""
    names: Sequence[int] = ()
    """Further columns that hold names and not numbers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", [tuple(map(visible, row)) for row in self.rows])


def latencies(summary: Summary) -> Table:
    """Each metric over all successful requests."""
    rows: list[Sequence[str]] = []
    faint: set[tuple[int, int]] = set()
    for metric in METRICS.values():
        row: Figures = getattr(summary, metric.name)
        if row.n or metric.usual:
            # RTF has no unit, unlike the table's other rows, which are in ms.
            title, digits = (metric.title, 1) if metric.unit else (f"{metric.title} (no unit)", 3)
            faint |= {(len(rows), at) for at, name in ((3, "p90"), (4, "p95"), (5, "p99")) if row.n < FEW_VALUES[name]}
            *values, n = msgspec.structs.astuple(row.scaled(metric.scale))
            rows.append((title, *(number(value, digits) for value in values), f"{n:,}"))
    headings = ("", "mean", "p50", "p90", "p95", "p99", "max", "n")
    return Table("Latencies of successful requests, in ms", headings, rows, faint=frozenset(faint))


def lengths(summary: Summary) -> Table:
    """Latencies and error rate by clip length."""
    first = [
        (f"{row.from_s:g} and more" if row.to_s is None else f"{row.from_s:g} to {row.to_s:g}", str(row.n))
        for row in summary.by_duration
    ]
    return _part_table("By clip length", ("seconds", "n"), first, summary.by_duration, summary.rate, numbers=True)


def user_classes(summary: Summary) -> Table:
    """Figures by user class, for a locustfile with several."""
    first = [(row.name, str(row.n), str(row.fail)) for row in summary.by_user_class]
    return _part_table("By user class", ("", "n", "fail"), first, summary.by_user_class, summary.rate)


def replicas(summary: Summary) -> Table:
    """Figures by server address, if there are several."""
    first = [(row.address, percent(row.share), str(row.n), str(row.fail)) for row in summary.by_replica]
    return _part_table("By replica", ("", "share", "n", "fail"), first, summary.by_replica)


def _part_table(
    title: str,
    headings: Sequence[str],
    first: Sequence[Sequence[str]],
    parts: Sequence[PartFigures],
    rate: str = "",
    *,
    numbers: bool = False,
) -> Table:
    """A table of parts, with their first cells, latencies, RTF and, if given, error rate (wer or cer)."""
    rows = [
        (*cells, *latency_cells(part.ttft, part.e2el), number(part.rtf.p50, 3))
        + ((percent(getattr(part, rate)),) if rate else ())
        for cells, part in zip(first, parts, strict=True)
    ]
    faint = faint_p95([part.n for part in parts], len(headings))
    return Table(
        title,
        (*headings, *LATENCY_HEADINGS, "RTF p50", *filter(None, [rate.upper()])),
        rows,
        numbers=numbers,
        faint=faint,
    )


def latency_cells(ttft: Figures, e2el: Figures) -> Iterator[str]:
    """The cells below LATENCY_HEADINGS."""
    return map(ms, (ttft.p50, ttft.p95, e2el.p50, e2el.p95))


def faint_p95(counts: Sequence[int], first: int) -> frozenset[tuple[int, int]]:
    """Cells of p95 in rows with so few requests that it is hardly more than the maximum. `first`: number of the first
    of the columns LATENCY_HEADINGS."""
    return frozenset((row, first + at) for row, n in enumerate(counts) if n < FEW_VALUES["p95"] for at in (1, 3))


def clients(summary: Summary) -> Table:
    """The load of each worker process, its event loop's lag, and its clock."""
    headings = ("", "host", "loop lag p99", "loop lag max", "CPU", "CPU max", "longest GC", "clock")
    rows = [
        (
            str(client.worker),
            client.host,
            *map(ms, (client.loop_lag_p99, client.loop_lag_max)),
            *map(percent, (client.cpu_mean, client.cpu_max)),
            ms(client.gc_pause_max),
            clock(client),
        )
        for client in summary.validity.clients
    ]
    return Table("Workers (in ms; the clock is relative to the master's)", headings, rows, names=(1,))
