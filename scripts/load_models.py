"""Make the picture in docs/load-models.md: one server under closed and under open loop. Takes about six minutes.

make load-models
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from rich.table import Table

from asr_load.errors import OneLineParser
from asr_load.results.chart import Line, Panel, draw
from asr_load.results.console import console_for
from asr_load.results.summary import SUMMARY, Summary
from asr_load.selftest.ground_truth import Server, scripted_server, share_cores
from asr_load.stream.record import Record, read_records

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "load-models.svg"

SLOTS, TTFT_MS, TOKENS, ITL_MS = 8, 200, 11, 20
SERVICE_S = (TTFT_MS + (TOKENS - 1) * ITL_MS) / 1e3
CAPACITY = SLOTS / SERVICE_S
"""Requests per second: 8 slots, each taken for 0.4 s."""

STREAMS = (1, 2, 4, 6, 8, 12, 16)
RATES = (2, 5, 10, 14, 17, 19, 21, 25)
SECONDS, WARMUP = 20, 3
MOST = 1000
"""In flight in an open loop: so many that it never runs out."""

BUSY, PAUSE_AT, PAUSE_S = 0.5, 6.0, 3.0
"""The load, as a share of the capacity, at which the server stops for a while, and when."""


def main() -> None:
    """Run both, draw, and print the table."""
    OneLineParser("Make the picture in docs/load-models.md, over what is there.").parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ("--slots", SLOTS, "--ttft-ms", TTFT_MS, "--tokens", TOKENS, "--itl-ms", ITL_MS)
        with scripted_server(folder, share_cores().server, *options) as server:
            closed = [run(server, folder / f"closed-{users}", "-u", users)[0] for users in STREAMS]
            opened = [run(server, folder / f"open-{rate}", "-u", MOST, "--request-rate", rate)[0] for rate in RATES]
            half = round(BUSY * SLOTS)
            still = run(server, folder / "closed-pause", "-u", half, meanwhile=lambda: pause(server))
            words = ("-u", MOST, "--request-rate", BUSY * CAPACITY)
            moving = run(server, folder / "open-pause", *words, meanwhile=lambda: pause(server))
    draw([by_load(closed, opened), through_the_pause(still[1], moving[1])], PICTURE)
    table(closed, opened, {"closed": still[0], "open": moving[0]})
    print(f"Picture: {PICTURE.relative_to(ROOT)}")


def run(
    server: Server, results: Path, *options: object, meanwhile: Callable[[], None] = lambda: None
) -> tuple[Summary, list[Record]]:
    """A run: its summary and its records."""
    command = [sys.executable, "-m", "locust", "--locustfile", "locustfiles/transcribe.py", "--headless"]
    command += ["--only-summary", "--loglevel", "ERROR", "--spawn-rate", "100", "--host", server.url]
    command += ["--data", "asr_data/sample", "--results", str(results), "--run-time", str(SECONDS)]
    command += ["--warmup-time", str(WARMUP), "--stop-timeout", "120", *map(str, options)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    meanwhile()
    process.wait()
    return msgspec.json.decode((results / SUMMARY).read_bytes(), type=Summary), list(read_records(results))


def pause(server: Server) -> None:
    """Stop the server for a moment, as a garbage collection or a neighbour does."""
    time.sleep(PAUSE_AT)
    os.kill(server.pid, signal.SIGSTOP)
    time.sleep(PAUSE_S)
    os.kill(server.pid, signal.SIGCONT)


def by_load(closed: list[Summary], opened: list[Summary]) -> Panel:
    """What people wait, against what the server carries."""
    return Panel(
        title="The same server: how long people wait",
        x="requests/s (closed loop: as many as were served; open loop: as many as came)",
        y="E2E p95, ms",
        lines=[
            Line("closed loop", [one.requests_per_s or 0 for one in closed], [ms(one.e2el.p95) for one in closed]),
            Line("open loop", RATES, [ms(one.e2el_due.p95) for one in opened]),
        ],
        mark=(f"capacity: {CAPACITY:g} requests/s", CAPACITY),
        log=True,
    )


def through_the_pause(closed: list[Record], opened: list[Record]) -> Panel:
    """Single requests around the moment at which the server stands still."""

    def points(name: str, records: list[Record]) -> Line:
        first = min(record.started_at for record in records)
        good = sorted((record for record in records if record.ok), key=lambda one: one.started_at)
        return Line(name, [one.started_at - first for one in good], [ms(one.e2el) for one in good], points=True)

    return Panel(
        title=f"The server stands still for {PAUSE_S:g} s: each request's latency",
        x="seconds",
        y="E2E, ms",
        lines=[points("closed loop", closed), points("open loop", opened)],
    )


def table(closed: list[Summary], opened: list[Summary], paused: dict[str, Summary]) -> None:
    """Print the figures of the picture."""
    rows = Table(title="E2E in ms; of the open loop from when a request was due", title_justify="left")
    for name in ("loop", "load", "due (by chance)", "requests/s", "p50", "p95", "p99", "steady"):
        rows.add_column(name, justify="right" if name != "loop" else "left")
    for users, one in zip(STREAMS, closed, strict=True):
        rows.add_row("closed", f"{users} streams", due(one), *cells(one, one.e2el), one.steadiness.verdict)
    for rate, one in zip(RATES, opened, strict=True):
        rows.add_row("open", f"{rate} requests/s", due(one), *cells(one, one.e2el_due), one.steadiness.verdict)
    for name, one in paused.items():
        latencies = one.e2el if name == "closed" else one.e2el_due
        rows.add_row(name, f"half, a pause of {PAUSE_S:g} s", due(one), *cells(one, latencies), "")
    console_for(sys.stdout).print(rows)


def due(one: Summary) -> str:
    """What this seed's arrivals made of the rate, and where 95 of 100 seeds lie."""
    loop = one.open_loop
    return "" if loop is None else f"{loop.due:.1f} ({loop.low:.1f} to {loop.high:.1f})"


def cells(one: Summary, latencies: object) -> list[str]:
    """Throughput and three percentiles."""
    values = [ms(getattr(latencies, name)) for name in ("p50", "p95", "p99")]
    return [f"{one.requests_per_s or 0:.1f}", *(f"{value:.0f}" for value in values)]


def ms(value: float | None) -> float:
    """Milliseconds; not a number where there is none."""
    return float("nan") if value is None else value * 1e3


if __name__ == "__main__":
    main()
