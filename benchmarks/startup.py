"""Compare the time until the help appears, and until the first request, with plain Locust; the CPU of a mistake with
that of importing Locust; and measure how soon a test begins after its trial request, and ends after its last stream."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asr_load.selftest.ground_truth import Server, scripted_server, share_cores
from benchmarks import CHECKOUT, NAIVE, Row, ratio, seconds

ROUNDS = 5
QUITS = "        self.environment.runner.quit()\n"


def measure() -> Iterator[Row]:
    """Measure both in alternation, with the files in the page cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        naive = folder / "naive.py"
        naive.write_text(NAIVE + QUITS)

        def helps(file: Path) -> float:
            return seconds(lambda: _locust(file, "--help"))

        ours = CHECKOUT / "locustfiles" / "transcribe.py"
        helps(ours), helps(naive)
        times = [(helps(ours), helps(naive)) for _ in range(ROUNDS)]
        yield _row("start-up: locust --help", times, "at most 1.5")
        with scripted_server(folder, share_cores().server, "--tokens", 1, "--ttft-ms", 0) as server:
            firsts = []
            for number in range(ROUNDS):
                results = ("--results", folder / f"r{number}", "--requests", 1, "--data", CHECKOUT / "asr_data/sample")
                firsts.append((_first(server, ours, *results, "--no-preflight"), _first(server, naive)))
        yield _row("start-up: until the server has the first request", firsts, "at most 1.5")
        yield from _mistakes()
        with scripted_server(folder, share_cores().server, "--tokens", 20, "--ttft-ms", 400, "--itl-ms", 10) as server:
            for kind, options in (("one process", ()), ("--processes 2", ("--processes", 2))):
                ends = [_ends(server, ours, folder / f"{kind}{number}", *options) for number in range(ROUNDS)]
                begins, rests = zip(*ends, strict=True)
                yield _seconds(
                    f"start-up: from the trial's answer to the first request, {kind}", begins, "at most 0.5 s"
                )
                yield _seconds(f"end: from the last stream's end to that of the process, {kind}", rests, "at most 1 s")


def _mistakes() -> Iterator[Row]:
    """The CPU of command lines that fail, in alternation with that of importing Locust."""
    locust = (sys.executable, "-m", "asr_load.cli.main", "locust", "--headless")
    wrong = {
        "a misspelt option": ("--bogus",),
        "a missing folder": ("-u", "1", "--data", "/nonexistent"),
        "a bad limit": ("-u", "1", "--slo", "foo"),
        "a wrong port": ("-u", "1", "--host", "http://127.0.0.1:9"),
    }
    own: dict[str, list[float]] = {name: [] for name in wrong}
    theirs = []
    for _ in range(ROUNDS):
        theirs.append(_cpu(sys.executable, "-c", "import locust"))
        for name, options in wrong.items():
            own[name].append(_cpu(*locust, *options))
    for name, costs in own.items():
        yield Row(
            f"start-up: CPU of {name}",
            f"{statistics.median(costs):.2f} s",
            f"import locust: {statistics.median(theirs):.2f} s",
            **ratio(costs, theirs),  # type: ignore[arg-type]
            aim="at most 2" if name == "a wrong port" else "at most 1.3",
        )


def _cpu(*command: str) -> float:
    """CPU seconds of a process and its children."""
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _ends(server: Server, file: Path, results: Path, *options: object) -> tuple[float, float]:
    """Seconds from the trial's answer to the first request of a test, and from its last stream's end to the end of its
    process."""
    known = len(_requests(server))
    words = ("--requests", 4, "--data", CHECKOUT / "asr_data/sample", "--results", results, *options)
    _locust(file, "--headless", "-u", 2, "-r", 2, "--host", server.url, *words)
    ended = time.perf_counter()
    trial, *rest = sorted(_requests(server)[known:], key=lambda request: request["received_at"])
    return rest[0]["received_at"] - trial["sent_at"][-1], ended - max(request["sent_at"][-1] for request in rest)


def _seconds(what: str, values: Sequence[float], aim: str) -> Row:
    middle = statistics.median(values)
    return Row(what, f"{middle:.2f} s", "", middle, min(values), max(values), "s", aim)


def _row(what: str, times: list[tuple[float, float]], aim: str) -> Row:
    own, theirs = ([pair[which] for pair in times] for which in (0, 1))
    return Row(
        what,
        f"{statistics.median(own):.2f} s",
        f"Locust with one bare HttpUser: {statistics.median(theirs):.2f} s",
        **ratio(own, theirs),  # type: ignore[arg-type]
        aim=aim,
    )


def _first(server: Server, file: Path, *options: object) -> float:
    """Seconds from the start of a process until the server has its first request."""
    known = _requests(server)
    began = time.perf_counter()
    _locust(file, "--headless", "-u", 1, "--host", server.url, "-t", 20, *options)
    received: float = _requests(server)[len(known)]["received_at"]
    return received - began


def _requests(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.stamps.read_text().splitlines()]


def _locust(file: Path, *options: object) -> None:
    command = [sys.executable, "-m", "locust", "-f", str(file), *map(str, options)]
    # Run in a folder without locust.conf, because a bare user does not know asr-load's options.
    subprocess.run(command, cwd=file.parent, capture_output=True, check=True)
