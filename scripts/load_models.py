"""Make the pictures in docs/load-models.md: one server under a closed and an open loop. Takes about six minutes.

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
from asr_load.report.console import console_for
from asr_load.report.page import plots_page
from asr_load.report.plots import Mark, Plot, Series
from asr_load.results.record_file import read_records
from asr_load.results.summary import SUMMARY, Summary
from asr_load.selftest.ground_truth import Server, scripted_server, share_cores
from asr_load.stream.record import Record

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "load-models-{}.png"

SLOTS, TTFT_MS, TOKENS, ITL_MS = 8, 200, 11, 20
SERVICE_S = (TTFT_MS + (TOKENS - 1) * ITL_MS) / 1e3
CAPACITY = SLOTS / SERVICE_S
"""Requests per second: 8 slots, each busy for 0.4 s per request."""

STREAMS = (1, 2, 4, 6, 8, 12, 16)
RATES = (2, 5, 10, 14, 17, 19, 21, 25)
SECONDS, WARMUP = 20, 3
MOST = 1000
"""Users of an open loop, so many that one is always free."""

BUSY, PAUSE_AT, PAUSE_S = 0.5, 6.0, 3.0
"""Load, as a share of the capacity, during which the server pauses; when it pauses, and for how long."""


def main() -> None:
    """Run both loops, draw the pictures, and print the table."""
    OneLineParser("Make the pictures in docs/load-models.md, replacing the existing ones.").parse_args()
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
    draw([by_load(closed, opened), through_the_pause(still[1], moving[1])])
    table(closed, opened, {"closed": still[0], "open": moving[0]})


def run(
    server: Server, results: Path, *options: object, meanwhile: Callable[[], None] = lambda: None
) -> tuple[Summary, list[Record]]:
    """Run a test, and return its summary and its records."""
    command = [sys.executable, "-m", "locust", "--locustfile", "locustfiles/transcribe.py", "--headless"]
    command += ["--only-summary", "--loglevel", "ERROR", "--spawn-rate", "100", "--host", server.url]
    command += ["--data", "asr_data/sample", "--results", str(results), "--run-time", str(SECONDS)]
    command += ["--warmup-time", str(WARMUP), "--stop-timeout", "120", *map(str, options)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    meanwhile()
    process.wait()
    return msgspec.json.decode((results / SUMMARY).read_bytes(), type=Summary), list(read_records(results))


def pause(server: Server) -> None:
    """Stop the server for a moment, like a garbage collection or another program on its machine would."""
    time.sleep(PAUSE_AT)
    os.kill(server.pid, signal.SIGSTOP)
    time.sleep(PAUSE_S)
    os.kill(server.pid, signal.SIGCONT)


def draw(plots: list[Plot]) -> None:
    """Write the pictures, light and dark. Needs Chromium and the packages of requirements-long.txt."""
    sys.path.insert(0, str(ROOT / "tests"))
    from harness.browser import browser

    with tempfile.TemporaryDirectory() as name, browser() as chromium:
        file = Path(name) / "plots.html"
        file.write_text(plots_page("Load models", plots), "utf-8")
        for scheme in ("light", "dark"):
            page = chromium.new_page(color_scheme=scheme, viewport={"width": 820, "height": 400})
            page.goto(file.as_uri())
            page.locator(".plot svg").last.wait_for()
            page.locator(".charts").screenshot(path=str(PICTURE).format(scheme))
            print(f"Picture: {str(PICTURE.relative_to(ROOT)).format(scheme)}")


def by_load(closed: list[Summary], opened: list[Summary]) -> Plot:
    """How long people wait, by the load that the server carries."""
    carried = [(one.requests_per_s or 0.0, ms(one.e2el.p95)) for one in closed]
    came = [(float(rate), ms(one.e2el_due.p95)) for rate, one in zip(RATES, opened, strict=True)]
    return Plot(
        "The same server: how long people wait",
        "requests/s (closed loop: served; open loop: arrived)",
        "E2E p95, ms",
        [Series("closed loop", carried), Series("open loop", came)],
        places=[Mark(f"capacity: {CAPACITY:g} requests/s", CAPACITY)],
        log_y=True,
    )


def through_the_pause(closed: list[Record], opened: list[Record]) -> Plot:
    """Single requests around the moment when the server pauses."""

    def points(name: str, records: list[Record]) -> Series:
        first = min(record.started_at for record in records)
        good = sorted((record for record in records if record.ok), key=lambda one: one.started_at)
        return Series(name, [(one.started_at - first, ms(one.e2el)) for one in good], "points")

    title = f"The server pauses for {PAUSE_S:g} s: each request's latency"
    return Plot(title, "seconds", "E2E, ms", [points("closed loop", closed), points("open loop", opened)])


def table(closed: list[Summary], opened: list[Summary], paused: dict[str, Summary]) -> None:
    """Print the figures behind the pictures."""
    rows = Table(title="E2E in ms; for the open loop, from when a request was due", title_justify="left")
    for name in ("loop", "load", "due (by chance)", "requests/s", "p50", "p95", "p99", "steady"):
        rows.add_column(name, justify="right" if name != "loop" else "left")
    for users, one in zip(STREAMS, closed, strict=True):
        rows.add_row("closed", f"{users} streams", due(one), *cells(one, one.e2el), one.steadiness.verdict)
    for rate, one in zip(RATES, opened, strict=True):
        rows.add_row("open", f"{rate} requests/s", due(one), *cells(one, one.e2el_due), one.steadiness.verdict)
    for name, one in paused.items():
        latencies = one.e2el if name == "closed" else one.e2el_due
        rows.add_row(name, f"half, with a pause of {PAUSE_S:g} s", due(one), *cells(one, latencies), "")
    console_for(sys.stdout).print(rows)


def due(one: Summary) -> str:
    """The rate of this seed's arrivals, and the interval that contains 95 of 100 seeds."""
    loop = one.open_loop
    return "" if loop is None else f"{loop.due:.1f} ({loop.low:.1f} to {loop.high:.1f})"


def cells(one: Summary, latencies: object) -> list[str]:
    """Throughput and three percentiles."""
    values = [ms(getattr(latencies, name)) for name in ("p50", "p95", "p99")]
    return [f"{one.requests_per_s or 0:.1f}", *(f"{value:.0f}" for value in values)]


def ms(value: float | None) -> float:
    """Convert seconds to milliseconds; NaN for None."""
    return float("nan") if value is None else value * 1e3


if __name__ == "__main__":
    main()
