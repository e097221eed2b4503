"""A search for capacity as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.table import Table

from asr_load.results.capacity import Capacity, Step, answer_lines, format_load, knee
from asr_load.results.console import console_for
from asr_load.results.pass_fail import Kind, Verdict
from asr_load.results.summary import run_lines


def print_search(folder: Path, search: Capacity, file: TextIO, verdict: Verdict | None = None) -> None:
    """Print the steps of a search and, if it came to its end, the answer; its last line is the number. Of its verdict,
    records that are missing are printed too."""
    console = console_for(file)
    console.out("\n=== Capacity ===")
    for line in run_lines(search.metadata):
        console.out(line)
    if search.steps:
        console.print(_table(search))
        if not all(step.settled for step in search.steps):
            console.out("* not settled within --step-time: the value alone decided")
        if any(step.repeats for step in search.steps):
            console.out("+ tried again, as the load generator had stalled in it or its last request failed")
        bend = knee(search.steps)
        if bend is not None:
            console.out(f"The knee is at {format_load(search, bend.load)}: beyond it, throughput hardly grows")
    for reason in verdict.reasons if verdict else ():
        if reason.kind in (Kind.UNWRITTEN, Kind.MISSING):
            console.out(f"  - {reason.text}")
    console.out(f"Results: {folder}")
    if search.answer is None and not search.unknown:
        console.out(f"The search was ended before its answer; it goes on with --resume {folder}")
        return
    if search.gone_at is not None:
        console.out(f"Once the server is back, the search goes on with --resume {folder}")
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
        table.add_row(*_cells(step), ("held" if step.ok else "broken") + marks)
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
