"""Print a run's summary to the console."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from asr_load.report.console import console_for, rich_table
from asr_load.report.sentence import sentence
from asr_load.report.server_tables import server_tables
from asr_load.report.tables import Table, clients, latencies, lengths, replicas, user_classes
from asr_load.report.view import View, view_finished
from asr_load.report.words import cost_lines, ms, number, rates_line, run_lines, steadiness_line
from asr_load.results.record_file import RECORDS
from asr_load.results.runfile import RunInfo
from asr_load.results.slo import slo_lines
from asr_load.results.summary import Difference, Summary
from asr_load.stream.record import Record
from asr_load.text import count_of

SHOWN_REQUESTS = 20
"""Number of requests printed one by one."""

NOTHING_FITS, FEW_TRANSCRIPTS = 0.9, 4
"""With at least this WER over at least this many transcripts, the references belong to something else."""


def print_summary(
    folder: Path,
    info: RunInfo,
    summary: Summary,
    records: Iterable[Record],
    file: TextIO,
    *,
    more: Iterable[Table] = (),
) -> None:
    """Print a run's result in one sentence, its summary, `more` tables, its first requests, and the verdict. The lines
    of the block and of the requests match those of SGLang's small ASR benchmark."""
    console = console_for(file)
    out = console.out
    requests, view = summary.requests, view_finished(summary)
    out(f"\n{sentence(info, view)}")
    out("\n=== ASR Benchmark Summary ===")
    out(f"Total: {requests.total}, Success: {requests.success}, Fail: {requests.fail}")
    out(f"Average TTFT: {_s(summary.ttft.mean)}")
    out(f"Average Latency: {_s(summary.e2el.mean)}")
    out("")
    console.print(rich_table(latencies(summary)))
    if len(summary.by_duration) > 1:
        console.print(rich_table(lengths(summary)))
    if summary.by_user_class:
        console.print(rich_table(user_classes(summary)))
    if summary.by_replica:
        console.print(rich_table(replicas(summary)))
    for table in (*server_tables(summary), *more):
        console.print(rich_table(table))
    for line in _lines(summary):
        out(line)
    if len(summary.validity.clients) > 1:
        console.print(rich_table(clients(summary)))
    out("")
    for line in _requests(records):
        out(line)
    if requests.total > SHOWN_REQUESTS:
        out(f"… {requests.total - SHOWN_REQUESTS} more in {folder / RECORDS}")
    for line in ("", *_verdict(summary, view), f"Results: {folder}"):
        out(line)


def _requests(records: Iterable[Record]) -> Iterator[str]:
    """A line for each of the first requests."""
    measured = (record for record in records if not record.warmup)
    for record in heapq.nsmallest(SHOWN_REQUESTS, measured, key=lambda record: record.seq):
        if record.ok:
            tokens = "n/a" if record.known_tokens is None else record.known_tokens
            yield f"[{record.seq}] ok ttft={_s(record.ttft)} lat={_s(record.e2el)} tokens={tokens}"
        else:
            yield f"[{record.seq}] {record.outcome} {record.error or ''}".rstrip()


def _lines(summary: Summary) -> Iterator[str]:
    left, coverage = summary.left_out, summary.coverage
    yield from run_lines(summary.metadata)
    if any((left.warmup, left.trim_start, left.trim_end, left.late)):
        trimmed = f"{left.trim_start} trimmed at the start, {left.trim_end} at the end"
        late = f", {left.late} because the load generator was late" if left.late else ""
        yield f"Excluded: {count_of(left.warmup, 'warm-up request')}, {trimmed}{late}"
    yield f"Wall time {summary.wall_s:.1f} s, audio {summary.audio_s:.1f} s: RTFx {number(summary.rtfx, 2)}"
    yield (
        f"Throughput: {number(summary.requests_per_s, 2)} requests/s,"
        f" {number(summary.output_tokens_per_s, 1)} tokens/s, {number(summary.tokens_per_chunk, 2)} tokens per chunk"
    )
    yield from cost_lines(summary)
    if loop := summary.open_loop:
        chance = f"{loop.low:.2f} to {loop.high:.2f} is normal variation"
        yield f"Open loop: {loop.asked:.2f} requests/s requested, {loop.due:.2f} due ({chance}), {loop.sent:.2f} sent"
    if summary.cached_tokens:
        yield f"Prompts: {summary.cached_tokens:,} of {summary.prompt_tokens:,} tokens came from the server's cache"
    if cache := summary.cache_ratio:
        interval = f"95 %: {cache.low:.2f} to {cache.high:.2f}, {count_of(cache.clips, 'clip')}"
        yield f"Cache: the TTFT of a repeated clip is {cache.ratio:.2f} times that of its first request ({interval})"
    if summary.goodput is not None:
        yield f"Goodput: {summary.goodput:.2f} requests/s"
    if summary.references:
        yield f"Accuracy: {rates_line(summary)}{_doubt(summary)}"
    else:
        yield "Accuracy: no successful request has a reference"
    if summary.dialects:
        spoken = ", ".join(f"{count_of(count, f'{name} session')}" for name, count in summary.dialects.items())
        yield f"Realtime: {spoken}; latencies start at the first packet and do not include the setup"
    if live := summary.live_accuracy:
        clips = count_of(live.clips, "clip")
        yield f"Realtime compared with upload: {_change('WER', live.wer)}, {_change('CER', live.cer)}, over {clips}"
    yield from _answers(summary)
    uneven = f"; uneven, {count_of(coverage.repeated, 'request')} too many for their clips, {coverage.left_out} too few"
    yield (
        f"Clips: {coverage.sent} of {coverage.clips} sent, {coverage.passes:.2f} passes"
        + (uneven if coverage.repeated or coverage.left_out else "")
    )
    opened = summary.connections
    if opened.opened:
        took = f"{ms(opened.connect_mean)} ms each on average, {ms(opened.connect_max)} at most"
        dropped = f"; {opened.dropped} closed while idle" if opened.dropped else ""
        retried = (
            f"; {count_of(opened.retried, 'request')} sent again after a dead connection" if opened.retried else ""
        )
        yield f"Connections: {opened.opened} opened, {took} (not part of latencies){dropped}{retried}"
    yield steadiness_line(summary.steadiness)


def _change(name: str, difference: Difference) -> str:
    bounds = ""
    if difference.low is not None and difference.high is not None:
        bounds = f" (95 %: {100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
    return f"{name} {100 * difference.value:+.1f} points{bounds}"


def _doubt(summary: Summary) -> str:
    if (getattr(summary, summary.rate) or 0) < NOTHING_FITS or summary.references < FEW_TRANSCRIPTS:
        return ""
    return "; almost nothing matches: check the data set and the language (expected with serve --engine scripted)"


def _answers(summary: Summary) -> Iterator[str]:
    """Lines about responses that the figures do not show."""
    requests = summary.requests
    for name, count in summary.text_formats.items():
        around = count_of(count, "transcript")
        yield f"Envelope: {name}, removed from {around} before scoring (--text-format raw keeps it)"
    if summary.looping:
        yield f"Loops: {count_of(summary.looping, 'transcript')} with repetition loops; WER counts all words"
    if requests.fail:
        failed = ", ".join(f"{n} {name}" for name, n in requests.failures.items())
        yield f"Failures: {failed} (not part of latencies and percentiles)"
    if requests.unfinished:
        yield f"Cut off by the end of the test: {requests.unfinished} (neither successes nor failures)"
    if summary.sent_again:
        retries = "1 retry" if summary.sent_again == 1 else f"{summary.sent_again} retries"
        yield f"Retries: {retries} after a busy server's refusal; each counts as a request"
    if requests.truncated:
        truncated = count_of(requests.truncated, "response")
        yield f"Truncated: {truncated} reached --max-tokens; WER counts the missing words"
    if requests.out_of_room:
        what = f"{count_of(requests.out_of_room, 'response')} ended early, such as at the model's context length"
        yield f"Truncated by another limit: {what}; WER counts the missing words"


def _verdict(summary: Summary, view: View) -> Iterator[str]:
    validity = summary.validity
    lag, cpu = validity.loop_lag, validity.cpu
    client = f"{' and '.join(validity.readers)} reader, reads {validity.stamp_lag['p99'] * 1e3:.1f} ms late at p99; "
    client += f"event loop {lag['p99'] * 1e3:.1f} ms late; CPU {cpu['mean']:.0%} of a core"
    # No event loop is on time to the nanosecond, so a lag of zero means that the process was killed.
    yield f"Client: {validity.client} ({client if lag['max'] else 'not measured'})"
    yield f"Server: {view.server}"
    if validity.verdict != "valid" or validity.reasons:
        yield f"Figures: {validity.verdict}"
    yield from (f"  - {reason}" for reason in validity.reasons)
    yield from slo_lines(summary.slo)
    if summary.passed is not None:
        why = "".join(f"; {reason}" for reason in summary.not_passed)
        yield f"SLOs: {'passed' if summary.passed else 'NOT passed'}{why}"
    if summary.verdict is not None:
        yield summary.verdict.line


def _s(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}s"
