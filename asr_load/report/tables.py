"""Tables of a run, as text in cells, shared by the console, the HTML report and the Markdown export."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from asr_load.report.words import clock, ms, number, percent
from asr_load.results.figures import Figures
from asr_load.results.metrics import METRICS
from asr_load.results.summary import ByReplica, ByUserClass, Summary
from asr_load.text import visible

FEW = {"p90": 10, "p95": 20, "p99": 100}
"""Number of values below which a percentile is hardly more than the maximum."""

LATENCIES = ("TTFT p50, ms", "TTFT p95, ms", "E2E p50, ms", "E2E p95, ms")
RTF = "RTF p50"


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
            faint |= {(len(rows), at) for at, name in ((3, "p90"), (4, "p95"), (5, "p99")) if row.n < FEW[name]}
            rows.append((title, *_cells(row, metric.scale, digits), f"{row.n:,}"))
    headings = ("", "mean", "p50", "p90", "p95", "p99", "max", "n")
    return Table("Latencies of successful requests, in ms", headings, rows, faint=frozenset(faint))


def lengths(summary: Summary) -> Table:
    """Latencies and error rate by clip length."""
    rows = []
    for row in summary.by_duration:
        bounds = f"{row.from_s:g} and more" if row.to_s is None else f"{row.from_s:g} to {row.to_s:g}"
        four = map(ms, (row.ttft.p50, row.ttft.p95, row.e2el.p50, row.e2el.p95))
        rate = percent(getattr(row, summary.rate))
        rows.append((bounds, str(row.n), *four, number(row.rtf.p50, 3), rate))
    headings = ("seconds", "n", *LATENCIES, RTF, summary.rate.upper())
    faint = faint_p95([row.n for row in summary.by_duration], 2)
    return Table("By clip length", headings, rows, numbers=True, faint=faint)


def user_classes(summary: Summary) -> Table:
    """Figures by user class, for a locustfile with several."""
    rate = summary.rate
    rows = [
        (row.name, str(row.n), str(row.fail), *_of_part(row), percent(getattr(row, rate)))
        for row in summary.by_user_class
    ]
    headings = ("", "n", "fail", *LATENCIES, RTF, rate.upper())
    return Table("By user class", headings, rows, faint=faint_p95([row.n for row in summary.by_user_class], 3))


def replicas(summary: Summary) -> Table:
    """Figures by server address, if there are several."""
    rows = [(row.address, percent(row.share), str(row.n), str(row.fail), *_of_part(row)) for row in summary.by_replica]
    headings = ("", "share", "n", "fail", *LATENCIES, RTF)
    return Table("By replica", headings, rows, faint=faint_p95([row.n for row in summary.by_replica], 4))


def faint_p95(counts: Sequence[int], first: int) -> frozenset[tuple[int, int]]:
    """Cells of p95 in rows with so few requests that it is hardly more than the maximum. `first`: number of the first
    of the columns LATENCIES."""
    return frozenset((row, first + at) for row, n in enumerate(counts) if n < FEW["p95"] for at in (1, 3))


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
    return Table("Workers (in ms; the clock is relative to the master's)", headings, rows)


def _of_part(row: ByUserClass | ByReplica) -> Iterator[str]:
    """The cells below LATENCIES and RTF."""
    yield from map(ms, (row.ttft.p50, row.ttft.p95, row.e2el.p50, row.e2el.p95))
    yield number(row.rtf.p50, 3)


def _cells(row: Figures, scale: float, digits: int) -> Iterable[str]:
    values = (row.mean, row.p50, row.p90, row.p95, row.p99, row.max)
    return [number(None if value is None else value * scale, digits) for value in values]
