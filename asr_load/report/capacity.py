"""Print a capacity search to the console."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.table import Table

from asr_load.report.console import console_for
from asr_load.report.sentence import sentence
from asr_load.report.view import view_finished
from asr_load.report.words import cost_lines, run_lines
from asr_load.results.capacity import Capacity, Step, answer_lines, format_load, knee
from asr_load.results.pass_fail import Kind
from asr_load.results.runfile import RunInfo
from asr_load.results.summary import Summary


def print_search(folder: Path, info: RunInfo, summary: Summary, search: Capacity, file: TextIO) -> None:
    """Print a search's result in one sentence, its steps and, if it finished, its answer; the last line is the number.
    From the verdict, print only the reasons about missing records."""
    console, verdict = console_for(file), summary.verdict
    console.out(f"\n{sentence(info, view_finished(summary))}")
    console.out("\n=== Capacity ===")
    for line in run_lines(search.metadata):
        console.out(line)
    if search.steps:
        console.print(_table(search))
        if not all(step.settled for step in search.steps):
            console.out("* not settled within --step-time: decided by the values so far")
        if any(step.repeats for step in search.steps):
            console.out("+ repeated, because the load generator stalled or the step's last request failed")
        bend = knee(search.steps)
        if bend is not None:
            console.out(f"The knee is at {format_load(search, bend.load)}: throughput hardly grows beyond it")
    for line in cost_lines(summary, "at the capacity found"):
        console.out(line)
    for reason in verdict.reasons if verdict else ():
        if reason.kind in (Kind.UNWRITTEN, Kind.MISSING):
            console.out(f"  - {reason.text}")
    console.out(f"Results: {folder}")
    if search.answer is None and not search.unknown:
        console.out(f"The search stopped before its answer; continue it with --resume {folder}")
        return
    if search.gone_at is not None:
        console.out(f"When the server is back, continue the search with --resume {folder}")
    for line in answer_lines(search):
        console.out(line)


def _table(search: Capacity) -> Table:
    table = Table(title="Steps, latencies in ms", title_justify="left")
    table.add_column(search.kind, justify="right")
    for name in ("s", "n", "req/s", "tok/s", "RTFx", "TTFT p50", "p95", "ITL p95", "E2E p95"):
        table.add_column(name, justify="right")
    table.add_column("SLOs")
    for step in sorted(search.steps, key=lambda each: each.load):
        marks = "".join(mark for mark, so in ((" *", not step.settled), (" +", step.repeats)) if so)
        table.add_row(*_cells(step), ("met" if step.ok else "missed") + marks)
    return table


def _cells(step: Step) -> Sequence[str]:
    latencies = (step.ttft.p50, step.ttft.p95, step.itl.p95, step.e2el.p95)
    rates = (step.requests_per_s, step.output_tokens_per_s, step.rtfx)
    return [
        f"{step.load:.4g}",
        f"{step.seconds:.0f}",
        str(step.requests),
        *("n/a" if rate is None else f"{rate:.4g}" for rate in rates),
        *("n/a" if value is None else f"{value * 1e3:.1f}" for value in latencies),
    ]
