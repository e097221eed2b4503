"""The section on streaming in Locust's HTML report: verdict, table, and the charts of the web UI with their data.

The report stays one file that needs no network.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

from asr_load.results.live import Live
from asr_load.results.metrics import METRICS
from asr_load.results.slo import slo_lines
from asr_load.results.summary import Figures, Summary, rates_line, run_lines
from asr_load.results.verdict import Validity, clock

MARK = '<section class="asr-report asr-streaming">'
COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")
TITLES = ("Mean", "p50", "p90", "p95", "p99", "Max")
SHARES = ("p50", "p95", "p99")
MANY = 0.05
"""Share of requests that may fail before the server is failing."""

NOTHING = "\N{EN DASH}"

_ICON = "M12 2C6.5 2 2 6.5 2 12s4.5 10 10 10 10-4.5 10-10S17.5 2 12 2m1 15h-2v-6h2zm0-8h-2V7h2z"


def asset(name: str) -> str:
    """chart.js or chart.css, as text."""
    return (files("asr_load.web") / name).read_text("utf-8")


def metrics(summary: Summary) -> dict[str, tuple[Figures, float]]:
    """The metrics of a run by the name they are shown with, and what makes their figures what the name says."""
    figures = {metric: getattr(summary, metric.name) for metric in METRICS.values()}
    return {metric.heading: (row, metric.scale) for metric, row in figures.items() if row.n or metric.usual}


def number(value: float | None) -> float | int | str:
    """A value as tables show it, at most 0.1 % off: one decimal from 100 on, two from 1 on; a dash for None."""
    if value is None:
        return NOTHING
    value = float(f"{value:.4g}") if abs(value) < 1 else round(value, 1 if abs(value) >= 100 else 2)
    return int(value) if value == int(value) else value


def compact(points: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Points as charts need them: with four digits that count."""
    return [
        {
            "t": point["t"],
            "users": point["users"],
            "tokens_per_s": _short(point["tokens_per_s"]),
            "rtfx": _short(point["rtfx"]),
            "failures": point["failures"],
            **{metric: {share: _short(point[metric][share]) for share in SHARES} for metric in ("ttft", "itl")},
        }
        for point in points
    ]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def add_streaming_section(
    report: str, summary: Summary, points: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Locust's HTML report with the figures of a finished run, exact from its records, and the charts of its course.

    `points` are those of `Live.points()`; `stages` are dicts of `t` (seconds since the epoch) and `name`.
    """
    requests = summary.requests
    rows = [
        [name, row.n, *(number(None if value is None else value * scale) for value in _values(row))]
        for name, (row, scale) in metrics(summary).items()
    ]
    throughput = (
        ("requests/s", summary.requests_per_s),
        ("output tokens/s", summary.output_tokens_per_s),
        ("seconds of audio per second (RTFx)", summary.rtfx),
    )
    words = [
        f"{requests.total} requests: {requests.success} succeeded, {requests.fail} failed"
        + (f", {requests.unfinished} were in flight at the end" if requests.unfinished else "")
        + ". Latencies are of those that succeeded, exact from the records.",
        ", ".join(f"{number(value)} {name}" for name, value in throughput)
        + f", over {number(summary.wall_s)} s with {number(summary.audio_s)} s of audio.",
    ]
    words += run_lines(summary.metadata)
    if summary.references:
        words.append(f"{rates_line(summary)}.")
    words += slo_lines(summary.slo)
    head = _head(
        summary.validity, server_of(summary, None), words, _table(["Metric", "Count", *TITLES], rows), requests.failures
    )
    return _insert(report, head, points, stages)


def add_live_section(report: str, live: Live, validity: Validity, stages: Sequence[Mapping[str, Any]] = ()) -> str:
    """Locust's HTML report with the figures so far, within 0.25 %, of a test that is still running."""
    rows = [[row["name"], row["count"], *(number(row[name]) for name in COLUMNS[1:])] for row in live.table()]
    words = [f"The test was still running: {live.requests} requests so far, figures within 0.25 %."]
    table = _table(["Metric", "Count", *TITLES[1:]], rows)
    head = _head(validity, server_of(None, live), words, table, live.failures)
    return _insert(report, head, live.points(), stages)


def _values(row: Figures) -> list[float | None]:
    return [getattr(row, name) for name in COLUMNS]


class Server(NamedTuple):
    """How the server does, in words, and whether it is failing: an SLO is missed, or more than one request in twenty
    fails."""

    line: str
    failures: int
    failing: bool


def server_of(summary: Summary | None, live: Live | None) -> Server:
    """By the summary of a finished test or, until there is one, by the live view."""
    if summary is not None:
        failures, judged = summary.requests.fail, summary.requests.success + summary.requests.fail
        missed = any(not result.ok for result in summary.slo)
        return Server(summary.server, failures, missed or failures > MANY * judged)
    if live is None or not live.requests:
        return Server("no answer yet", 0, failing=False)
    failures = live.failures.total()
    return Server(f"errors {failures / live.requests:.1%}", failures, failures > MANY * live.requests)


def look(validity: Validity, server: Server) -> str:
    """How the box of a test looks: no client's health makes it green over a server that fails."""
    if validity.verdict == "client-bound":
        return validity.verdict
    if server.failing:
        return "failing"
    return "suspect" if server.failures else validity.verdict


def _head(validity: Validity, server: Server, words: list[str], table: str, failures: Mapping[str, int]) -> str:
    rows = [list(row) for row in failures.items()]
    return "\n".join(
        [
            "<h2>Streaming</h2>",
            _verdict(validity, server),
            *(f"<p>{html.escape(line)}</p>" for line in words),
            table,
            _clients(validity),
            _table(["Failures by outcome", "Count"], rows) if rows else "",
        ]
    )


def _clients(validity: Validity) -> str:
    if len(validity.clients) < 2:
        return ""
    titles = [
        "Worker",
        "Host",
        "Loop lag p99 (ms)",
        "CPU mean (%)",
        "Longest GC pause (ms)",
        "Clock to the master's (ms)",
    ]
    rows = [
        [
            client.worker,
            client.host,
            number(client.loop_lag_p99 * 1e3),
            number(client.cpu_mean * 100),
            number(client.gc_pause_max * 1e3),
            clock(client),
        ]
        for client in validity.clients
    ]
    return _table(titles, rows)


def _insert(report: str, head: str, points: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]]) -> str:
    if MARK in report:
        return report
    data = msgspec.json.encode({"points": compact(points), "stages": list(stages)}).decode().replace("<", "\\u003c")
    section = "\n".join(
        [
            f"<style>{asset('chart.css')}</style>",
            MARK,
            head,
            f'<script type="application/json">{data}</script>',
            "</section>",
            f"<script>{asset('chart.js')}</script>",
        ]
    )
    # The last one: a library that the report carries inside holds this tag in a string.
    before, end, after = report.rpartition("</body>")
    return f"{before}{section}\n{end}{after}" if end else report


def _table(titles: list[str], rows: Iterable[list[Any]]) -> str:
    def line(tag: str, cells: Iterable[Any]) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="asr-table"><table><thead>{line("th", titles)}</thead><tbody>{body}</tbody></table></div>'


def _verdict(validity: Validity, server: Server) -> str:
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in validity.reasons)
    return (
        f'<div class="asr-verdict" data-verdict="{look(validity, server)}">'
        f'<svg aria-hidden="true" viewBox="0 0 24 24"><path d="{_ICON}"/></svg>'
        f"<div><strong>Client: {html.escape(validity.client)}</strong> "
        f"<span>reads late by {validity.stamp_lag['p99'] * 1e3:.1f} ms at p99</span> "
        f"<span>event loop late by {validity.loop_lag['p99'] * 1e3:.1f} ms at p99</span> "
        f"<span>CPU {validity.cpu['mean'] * 100:.0f} % of a core</span>"
        f"<div><strong>Server: {html.escape(server.line)}</strong></div>{reasons and f'<ul>{reasons}</ul>'}</div></div>"
    )
