"""A run several times over: what differs from run to run by itself, which no interval within one run knows."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from asr_load import signals
from asr_load.errors import InputError

if TYPE_CHECKING:
    from asr_load.results.compare import Run
    from asr_load.results.tables import Table

MOST = 100


def become_locust(words: Sequence[str]) -> int:
    """Run Locust with these words. The process becomes Locust, so that signals and the exit code are Locust's; with
    --repeats N, each of N runs is a process of its own. Raises InputError."""
    times, left = take_repeats(words)
    command = [sys.executable, "-m", "asr_load.load", *left]
    if times == 1:
        with signals.held():  # until the new program catches them
            os.execv(sys.executable, command)
    return run_repeatedly(command, times)


def take_repeats(words: Sequence[str]) -> tuple[int, list[str]]:
    """How often a command is to run, by its --repeats (1 without), and its other words. Raises InputError."""
    left, times = list(words), "1"
    for at, word in enumerate(words):
        if word == "--repeats" or word.startswith("--repeats="):
            value = word.partition("=")[2] or (words[at + 1] if at + 1 < len(words) else "")
            left[at : at + (1 if "=" in word else 2)] = []
            times = value
            break
    if not times.isdecimal() or not 1 <= int(times) <= MOST:
        raise InputError(f"--repeats takes a whole number from 1 to {MOST}, not {times!r}")
    return int(times), left


def run_repeatedly(command: Sequence[str], times: int) -> int:
    """Run a command of Locust's so many times, each into a folder of its own, and print the figures' spread. Returns
    the highest exit code; one that is neither 0 nor 1, nor that of the run's verdict, ends the series."""
    # Late: who runs Locust once needs none of it.
    from asr_load.results.compare import Run
    from asr_load.results.console import console_for
    from asr_load.results.summary import read_finished
    from asr_load.results.summary_report import rich_table

    base, worst, runs = _results(command), 0, []
    for turn in range(1, times + 1):
        folder = base.with_name(f"{base.name}-run{turn}")
        print(f"run {turn} of {times}: {folder}", flush=True)
        is_new = not folder.exists()
        code, stopped = _run_once([*command, "--results", str(folder)])
        worst = max(worst, code if code >= 0 else 128 - code)
        if stopped:
            return signals.exit_code(stopped)
        if code not in (0, 1) and not (is_new and _has_result(folder, code)):
            return worst
        runs.append(Run(folder, read_finished(folder)))
    console_for(sys.stdout).print(rich_table(_spread(runs)))
    return worst


def _has_result(folder: Path, code: int) -> bool:
    """Whether an exit code is that of a run's verdict, all of whose records are there: a search may have no exact
    answer, and --exit-code-on-error sets a code of its own."""
    from asr_load.results.pass_fail import Kind
    from asr_load.results.summary import read_verdict

    verdict = read_verdict(folder)
    return verdict is not None and verdict.exit_code == code and not verdict.has(Kind.UNWRITTEN)


def _run_once(command: Sequence[str]) -> tuple[int, int]:
    """The exit code of a command, and the number of the signal that was sent to this process meanwhile, or 0."""
    sent: list[int] = []

    def pass_on(number: int) -> None:
        # A terminal's Ctrl-C has reached the run too. SIGTERM does not count as a second one, which cuts requests off.
        sent.append(number)
        with contextlib.suppress(ProcessLookupError):
            run.send_signal(number if len(sent) > 1 else signal.SIGTERM)

    with signals.held():
        run = subprocess.Popen(command)
        before = signals.on_signal(pass_on)
    try:
        return run.wait(), sent[0] if sent else 0
    finally:
        signals.on_signal(before)


def _results(command: Sequence[str]) -> Path:
    named = [
        word.partition("=")[2] or command[at + 1]
        for at, word in enumerate(command[:-1])
        if word.split("=")[0] in ("--results", "--result-dir")
    ]
    return Path(named[-1]) if named else Path("results") / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")


def _spread(runs: Sequence[Run]) -> Table:
    import numpy as np

    from asr_load.results.compare import point_figures
    from asr_load.results.tables import Table, number

    rows = []
    for name, (unit, _) in point_figures(runs[0]).items():
        values = [value for run in runs if (value := point_figures(run)[name][1]) is not None]
        if len(values) < len(runs):
            continue
        mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
        digits = 1 if unit == "ms" else 4
        shown = [number(value, digits) for value in (mean, deviation, min(values), max(values))]
        rows.append((f"{name}, {unit}" if unit else name, *shown, f"{deviation / mean:.1%}" if mean else "n/a"))
    headings = ("", "mean", "standard deviation", "lowest", "highest", "of the mean")
    return Table(f"Spread over {len(runs)} runs", headings, rows)
