"""Check that the cost of a request stays constant from 1 to 1,000 streams, and from 100 to 100,000 clips."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from asr_load.selftest.ground_truth import GroundTruthRun, load, scripted_server, share_cores
from asr_load.text import count_of
from benchmarks import Row, ratio
from benchmarks.clips import write_clips

STREAMS = {1: 16, 10: 100, 100: 400, 300: 900, 1000: 2000}
"""Number of streams, and of requests in their run."""

BASE = 10
"""Number of streams used as reference, because measuring a single stream takes minutes."""

CLIPS = (100, 10_000, 100_000)
CHUNKS, FEW_CHUNKS, FEW_REQUESTS = 64, 4, 2000
IDLE_S, ROUNDS = 20, 3


def measure() -> Iterator[Row]:
    """Measure all loads in alternation, and compare each with a reference of its kind."""
    cores = share_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        number = itertools.count()

        def run(clips: Path, streams: int, requests: int, *server_options: object) -> GroundTruthRun:
            here = folder / str(next(number))
            here.mkdir()
            options = ("--users", streams, "--spawn-rate", streams, "--requests", requests, "--data", clips)
            with scripted_server(here, cores.server, *server_options) as server:
                return load(server, here / "results", cores.client, *options)

        sets = {count: write_clips(folder / f"clips-{count}", count) for count in CLIPS}
        # An idle client checks its lag fifty times a second. Subtract that cost, or a single stream would bear it.
        idle = run(sets[100], 1, 1, "--tokens", 1, "--ttft-ms", IDLE_S * 1e3).cpu_s / IDLE_S
        by_streams: dict[int, list[float]] = {streams: [] for streams in STREAMS}
        by_clips: dict[int, list[float]] = {count: [] for count in CLIPS}
        for _ in range(ROUNDS):
            for streams, requests in STREAMS.items():
                outcome = run(sets[100], streams, requests)
                by_streams[streams].append((outcome.cpu_s - idle * outcome.healths[0].watched_s) / requests)
            for count, clips in sets.items():
                quick = ("--ttft-ms", 5, "--tokens", FEW_CHUNKS, "--itl-ms", 1)
                by_clips[count].append(run(clips, 50, FEW_REQUESTS, *quick).cpu_s / FEW_REQUESTS)
    yield Row(
        "an idle client",
        f"{idle:.1%} of a core",
        "an idle core",
        value=idle * 100,
        low=idle * 100,
        high=idle * 100,
        unit="%",
    )
    for streams, costs in by_streams.items():
        what = f"a request of {CHUNKS} chunks, {count_of(streams, 'stream')}"
        yield _row(what, costs, by_streams[BASE], f"{BASE} streams")
    for count, costs in by_clips.items():
        yield _row(f"a request of {FEW_CHUNKS} chunks, {count:,} clips", costs, by_clips[100], "100 clips")


def _row(what: str, costs: list[float], base: list[float], against: str) -> Row:
    return Row(
        what,
        f"{statistics.median(costs) * 1e3:.2f} ms of CPU",
        f"{against}: {statistics.median(base) * 1e3:.2f} ms",
        **ratio(costs, base),  # type: ignore[arg-type]
        aim="constant",
    )
