"""Compare the time until the help appears, and until the first request, with plain Locust."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

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


def _requests(server: Server) -> list[dict[str, float]]:
    return [json.loads(line) for line in server.stamps.read_text().splitlines()]


def _locust(file: Path, *options: object) -> None:
    command = [sys.executable, "-m", "locust", "-f", str(file), *map(str, options)]
    # Run in a folder without locust.conf, because a bare user does not know asr-load's options.
    subprocess.run(command, cwd=file.parent, capture_output=True, check=True)
