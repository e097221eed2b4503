"""The summary as text, at the end of a run and from its folder."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from rich.table import Table

from asr_load.errors import OneLineParser, exits_on_bad_input
from asr_load.results.capacity import CAPACITY, read_capacity
from asr_load.results.capacity_report import print_search
from asr_load.results.console import console_for
from asr_load.results.metrics import METRICS
from asr_load.results.slo import slo_lines
from asr_load.results.steady import steadiness_line
from asr_load.results.summary import ByReplica, ByUserClass, Figures, Summary, rates_line, run_lines, summarise_folder
from asr_load.results.verdict import clock
from asr_load.stream.record import RECORDS, read_records

SHOWN = 20
"""Requests that are shown one by one."""

NOTHING = "nothing succeeded"

NOTHING_FITS, FEW = 0.9, 4
"""From which WER on, over so many transcripts, the texts are of something else."""


def print_summary(folder: Path, summary: Summary, file: TextIO) -> None:
    """Print a run's summary. Its first lines are those of SGLang's own small benchmark."""
    console = console_for(file)
    out = console.out
    requests = summary.requests
    out("\n=== ASR Benchmark Summary ===")
    if requests.total and not requests.success:
        # What went wrong comes before figures that there are none of.
        why = next((reason for reason in summary.validity.reasons if reason.startswith(NOTHING)), NOTHING)
        out(f"{why[:1].upper()}{why[1:]}")
    out(f"Total: {requests.total}, Success: {requests.success}, Fail: {requests.fail}")
    out(f"Average TTFT: {_s(summary.ttft.mean)}")
    out(f"Average Latency: {_s(summary.e2el.mean)}")
    measured = (record for record in read_records(folder) if not record.warmup)
    for record in heapq.nsmallest(SHOWN, measured, key=lambda record: record.seq):
        if record.ok:
            tokens = "n/a" if record.known_tokens is None else record.known_tokens
            out(f"[{record.seq}] ok ttft={_s(record.ttft)} lat={_s(record.e2el)} tokens={tokens}")
        else:
            out(f"[{record.seq}] {record.outcome} {record.error or ''}".rstrip())
    if requests.total > SHOWN:
        out(f"… {requests.total - SHOWN} more in {folder / RECORDS}")
    out("")
    console.print(_latencies(summary))
    if len(summary.by_duration) > 1:
        console.print(_lengths(summary))
    if summary.by_user_class:
        console.print(_user_classes(summary))
    if summary.by_replica:
        console.print(_replicas(summary))
    for line in _lines(summary):
        out(line)
    if len(summary.validity.clients) > 1:
        console.print(_clients(summary))
    for line in (*_verdict(summary), f"Results: {folder}"):
        out(line)


def _lines(summary: Summary) -> Iterator[str]:
    left, coverage = summary.left_out, summary.coverage
    yield from run_lines(summary.metadata)
    if any((left.warmup, left.trim_start, left.trim_end)):
        trimmed = f"{left.trim_start} trimmed at the start, {left.trim_end} at the end"
        yield f"Left out: {left.warmup} warm-up requests, {trimmed}"
    yield f"Wall time {summary.wall_s:.1f} s, audio {summary.audio_s:.1f} s: RTFx {_n(summary.rtfx, 2)}"
    yield (
        f"Throughput: {_n(summary.requests_per_s, 2)} requests/s, {_n(summary.output_tokens_per_s, 1)} tokens/s,"
        f" {_n(summary.tokens_per_chunk, 2)} tokens per chunk"
    )
    if loop := summary.open_loop:
        chance = f"{loop.low:.2f} to {loop.high:.2f} by chance"
        yield f"Open loop: {loop.asked:.2f} requests/s asked for, {loop.due:.2f} due ({chance}), {loop.sent:.2f} sent"
    if summary.cached_tokens:
        yield f"Prompts: {summary.cached_tokens:,} of {summary.prompt_tokens:,} tokens from the server's cache"
    if cache := summary.cache_ratio:
        interval = f"95 %: {cache.low:.2f} to {cache.high:.2f}, {cache.clips} clips"
        yield f"Cache: TTFT of a clip that was sent before is {cache.ratio:.2f} times its first ({interval})"
    if summary.goodput is not None:
        yield f"Goodput: {summary.goodput:.2f} requests/s"
    if summary.references:
        yield f"Accuracy: {rates_line(summary)}{_doubt(summary)}"
    else:
        yield "Accuracy: no successful request has a reference"
    yield from _answers(summary)
    uneven = f"; {coverage.repeated} requests too many of a clip, {coverage.left_out} too few"
    yield (
        f"Clips: {coverage.sent} of {coverage.clips} sent, {coverage.passes:.2f} passes"
        + (uneven if coverage.repeated or coverage.left_out else "")
    )
    opened = summary.connections
    if opened.opened:
        took = f"{_ms(opened.connect_mean)} ms each on average, {_ms(opened.connect_max)} at most"
        dropped = f"; {opened.dropped} closed while idle" if opened.dropped else ""
        retried = f"; {opened.retried} requests sent again, as theirs was dead" if opened.retried else ""
        yield f"Connections: {opened.opened} opened, {took} (in no latency){dropped}{retried}"
    yield steadiness_line(summary.steadiness)


def _doubt(summary: Summary) -> str:
    if (getattr(summary, summary.rate) or 0) < NOTHING_FITS or summary.references < FEW:
        return ""
    return "; next to nothing fits: other clips' texts, another language, or the scripted server"


def _answers(summary: Summary) -> Iterator[str]:
    """What is to be said of answers beside their figures."""
    requests = summary.requests
    for name, count in summary.text_formats.items():
        yield f"Envelope: {name} around {count} transcripts, taken off before scoring (--text-format raw leaves it on)"
    if summary.looping:
        yield f"Loops: {summary.looping} transcripts say the same again and again, and WER counts all of it"
    if requests.fail:
        failed = ", ".join(f"{n} {name}" for name, n in requests.failures.items())
        yield f"Failures: {failed} (they have no latency, and are in no percentile)"
    if requests.unfinished:
        yield f"In flight at the end: {requests.unfinished}, cut off by it (no failures, and in no figure)"
    if summary.sent_again:
        yield f"Sent again: {summary.sent_again} requests that a busy server had refused; each try counts as one"
    if requests.truncated:
        yield f"Truncated: {requests.truncated} answers ran into --max-tokens; their WER counts what is missing"
    if requests.out_of_room:
        what = "answers ended at a limit that is not --max-tokens, such as the model's context"
        yield f"Cut short: {requests.out_of_room} {what}; their WER counts what is missing"


def _verdict(summary: Summary) -> Iterator[str]:
    validity = summary.validity
    lag, cpu = validity.loop_lag, validity.cpu
    client = f"{' and '.join(validity.readers)} reader, reads late by {validity.stamp_lag['p99'] * 1e3:.1f} ms at p99; "
    client += f"event loop by {lag['p99'] * 1e3:.1f} ms; CPU {cpu['mean']:.0%} of a core"
    # No loop was ever on time to the nanosecond: zeros are what is left of a process that was killed.
    yield f"Client: {validity.client} ({client if lag['max'] else 'not measured'})"
    yield f"Server: {summary.server}"
    if validity.verdict != "valid":
        yield f"Figures: {validity.verdict}"
    yield from (f"  - {reason}" for reason in validity.reasons)
    yield from slo_lines(summary.slo)
    if summary.passed is not None:
        why = "".join(f"; {reason}" for reason in summary.not_passed)
        yield f"SLOs: {'passed' if summary.passed else 'NOT passed'}{why}"


def _latencies(summary: Summary) -> Table:
    table = Table(title="Latencies of successes, in ms", title_justify="left")
    table.add_column("")
    for name in ("mean", "p50", "p90", "p95", "p99", "max", "n"):
        table.add_column(name, justify="right")
    for metric in METRICS.values():
        row: Figures = getattr(summary, metric.name)
        if row.n or metric.usual:
            # RTF has no unit, where the table's other rows are in ms.
            title, digits = (metric.title, 1) if metric.unit else (f"{metric.title} (no unit)", 3)
            table.add_row(title, *_cells(row, metric.scale, digits), str(row.n))
    return table


def _lengths(summary: Summary) -> Table:
    table = Table(title="By length of the clip", title_justify="left")
    for name in ("seconds", "n", "TTFT p50, ms", "TTFT p95, ms", "E2E p50, ms", "E2E p95, ms", "RTF p50"):
        table.add_column(name, justify="right")
    table.add_column(summary.rate.upper(), justify="right")
    for row in summary.by_duration:
        bounds = f"{row.from_s:g} and more" if row.to_s is None else f"{row.from_s:g} to {row.to_s:g}"
        latencies = (row.ttft.p50, row.ttft.p95, row.e2el.p50, row.e2el.p95)
        table.add_row(
            bounds,
            str(row.n),
            *map(_ms, latencies),
            _n(row.rtf.p50, 3),
            _percent(getattr(row, summary.rate)),
        )
    return table


LONGEST_NAME = 24
"""Of a part of a run, on one line."""

LATENCIES = ("TTFT p50, ms", "TTFT p95, ms", "E2E p50, ms", "E2E p95, ms", "RTF p50")


def _user_classes(summary: Summary) -> Table:
    rate = summary.rate
    rows = [
        (row.name, str(row.n), str(row.fail), *_of_part(row), _percent(getattr(row, rate)))
        for row in summary.by_user_class
    ]
    return _parts("By user class", ("n", "fail", *LATENCIES, rate.upper()), rows)


def _replicas(summary: Summary) -> Table:
    rows = [(row.address, _percent(row.share), str(row.n), str(row.fail), *_of_part(row)) for row in summary.by_replica]
    return _parts("By replica", ("share", "n", "fail", *LATENCIES), rows)


def _parts(title: str, headings: Iterable[str], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    # What the rows are told apart by is never cut.
    table.add_column("", overflow="fold", min_width=min(max(len(row[0]) for row in rows), LONGEST_NAME))
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _of_part(row: ByUserClass | ByReplica) -> Iterator[str]:
    """Its LATENCIES."""
    yield from map(_ms, (row.ttft.p50, row.ttft.p95, row.e2el.p50, row.e2el.p95))
    yield _n(row.rtf.p50, 3)


def _clients(summary: Summary) -> Table:
    table = Table(title="Workers (in ms; the clock is held against the master's)", title_justify="left")
    table.add_column("")
    table.add_column("host")
    names = ("loop lag p99", "loop lag max", "CPU", "CPU max", "longest GC", "clock")
    for name in names:
        table.add_column(name, justify="right")
    for client in summary.validity.clients:
        lags = (client.loop_lag_p99, client.loop_lag_max)
        table.add_row(
            str(client.worker),
            client.host,
            *map(_ms, lags),
            _percent(client.cpu_mean),
            _percent(client.cpu_max),
            _ms(client.gc_pause_max),
            clock(client),
        )
    return table


def _cells(row: Figures, scale: float, digits: int) -> list[str]:
    values = (row.mean, row.p50, row.p90, row.p95, row.p99, row.max)
    return [_n(None if value is None else value * scale, digits) for value in values]


def _n(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _ms(value: float | None) -> str:
    return _n(None if value is None else value * 1e3, 1)


def _s(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}s"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


@exits_on_bad_input
def main() -> int:
    """Command line of scripts/report.py."""
    parser = OneLineParser("Print a run's summary again, and make its summary.json anew.")
    parser.add_argument("results", type=Path, help="folder of the run")
    folder = parser.parse_args().results
    summary = summarise_folder(folder)
    if (folder / CAPACITY).exists():
        print_search(folder, read_capacity(folder), sys.stdout)
    else:
        print_summary(folder, summary, sys.stdout)
    return 0
