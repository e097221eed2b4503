"""Repeat a run to measure run-to-run variation, which confidence intervals within one run do not include."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asr_load import signals
from asr_load.errors import InputError
from asr_load.results.folders import RESULTS, folder_name, load_name
from asr_load.shipped import LOCUST_COMMAND

if TYPE_CHECKING:
    from asr_load.report.tables import Table
    from asr_load.results.summary import Finished

MOST_REPEATS = 100


def become_locust(words: Sequence[str]) -> int:
    """Run Locust with these arguments. This process becomes Locust, so that signals and the exit code are Locust's;
    with --repeats N, each of N runs is a separate process. Raises InputError."""
    times, left = take_repeats(words)
    command = [*LOCUST_COMMAND, *left]
    if times == 1:
        with signals.held():  # until the new program catches signals
            os.execv(sys.executable, command)
    return run_repeatedly(command, times)


def take_repeats(words: Sequence[str]) -> tuple[int, list[str]]:
    """The value of --repeats (default 1), and the other arguments. Raises InputError."""
    left, times = list(words), "1"
    for at, word in enumerate(words):
        if word == "--repeats" or word.startswith("--repeats="):
            value = word.partition("=")[2] or (words[at + 1] if at + 1 < len(words) else "")
            left[at : at + (1 if "=" in word else 2)] = []
            times = value
            break
    if not times.isdecimal() or not 1 <= int(times) <= MOST_REPEATS:
        raise InputError(f"--repeats must be a whole number from 1 to {MOST_REPEATS}, not {times!r}")
    return int(times), left


def run_repeatedly(command: Sequence[str], times: int) -> int:
    """Run a Locust command `times` times, each with its own results folder, and print the spread of the metrics.

    Returns the highest exit code. A code other than 0, 1 or that of the run's verdict ends the series.
    """
    # Late: a single run does not need these.
    from asr_load.report.console import console_for, rich_table
    from asr_load.results.summary import read_finished

    base, worst, runs = _results(command), 0, []
    for turn in range(1, times + 1):
        folder = base.with_name(f"{base.name}-run{turn}")
        print(f"run {turn} of {times}: {folder}", flush=True)
        is_new = not folder.exists()
        code, stopped = run_once([*command, "--results", str(folder)])
        worst = max(worst, code if code >= 0 else 128 - code)
        if stopped:  # the run itself prints nothing if it had just finished
            signals.say(f"stopped after run {turn} of {times} ({signal.Signals(stopped).name})")
            return signals.exit_code(stopped)
        if code not in (0, 1) and not (is_new and _has_result(folder, code)):
            return worst
        runs.append(read_finished(folder))
    console_for(sys.stdout).print(rich_table(_spread(runs)))
    return worst


def _has_result(folder: Path, code: int) -> bool:
    """Whether `code` is the exit code of the run's verdict and all its records were written. The code may differ from 0
    and 1: a search may have no exact answer, and --exit-code-on-error sets another."""
    from asr_load.results.pass_fail import Kind
    from asr_load.results.summary import read_verdict

    verdict = read_verdict(folder)
    return verdict is not None and verdict.exit_code == code and not verdict.has(Kind.UNWRITTEN)


def run_once(command: Sequence[str]) -> tuple[int, int]:
    """Run a command and pass signals on to it. Returns its exit code, and the number of the signal that this process
    received, or 0."""
    sent: list[int] = []

    def pass_on(number: int) -> None:
        # Ctrl-C in a terminal reaches the run too. SIGTERM does not count as a second one, which would cut requests.
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
    """The folder that the names of the runs begin with. Without --results, it names the model only if the command does,
    because the runs ask the server later."""
    if named := _value(command, "--results", "--result-dir"):
        return Path(named)
    users, rate = _value(command, "-u", "--users"), _value(command, "--request-rate")
    if any(word.endswith("capacity.py") for word in command):
        load = "search"
    elif rate:
        load = f"{rate} requests per s"
    else:
        load = load_name(int(users) if users.isdecimal() else 1, realtime=_value(command, "--api") == "realtime")
    return RESULTS / folder_name(_value(command, "--model"), load)


def _value(command: Sequence[str], *names: str) -> str:
    """The value of an option in a command; empty if it is not there."""
    value = ""
    for word, following in zip(command, (*command[1:], ""), strict=True):
        name, equals, attached = word.partition("=")
        if name in names:
            value = attached if equals else following
    return value


def _spread(runs: Sequence[Finished]) -> Table:
    import numpy as np

    from asr_load.report.tables import Table
    from asr_load.report.words import number
    from asr_load.results.compare import point_figures

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
