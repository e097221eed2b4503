"""Whether cost stays flat: per chunk and request from 1 stream to 1,000, per request from 100 clips to 100,000."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from asr_load.selftest.ground_truth import GroundTruthRun, load, scripted_server, share_cores
from benchmarks import Row, ratio
from benchmarks.clips import write_clips

STREAMS = {1: 16, 10: 100, 100: 400, 300: 900, 1000: 2000}
"""Streams, and requests of their run."""

BASE = 10
"""Streams that the others are held against: one takes minutes to be measured."""

CLIPS = (100, 10_000, 100_000)
CHUNKS, FEW_CHUNKS, FEW_REQUESTS = 64, 4, 2000
IDLE_S, ROUNDS = 20, 3


def measure() -> Iterator[Row]:
    """Each row is held against the one of its kind that is named; all in turn."""
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
        # A client that waits looks fifty times a second how late it is: a single stream would pay for all of that.
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
        "a client that waits",
        f"{idle:.1%} of a core",
        "an idle core",
        value=idle * 100,
        low=idle * 100,
        high=idle * 100,
        unit="%",
    )
    for streams, costs in by_streams.items():
        what = f"a request of {CHUNKS} chunks, {streams:,} stream{'s' * (streams > 1)}"
        yield _row(what, costs, by_streams[BASE], f"{BASE} streams")
    for count, costs in by_clips.items():
        yield _row(f"a request of {FEW_CHUNKS} chunks, {count:,} clips", costs, by_clips[100], "100 clips")


def _row(what: str, costs: list[float], base: list[float], against: str) -> Row:
    return Row(
        what,
        f"{statistics.median(costs) * 1e3:.2f} ms of CPU",
        f"{against}: {statistics.median(base) * 1e3:.2f} ms",
        **ratio(costs, base),  # type: ignore[arg-type]
        aim="flat",
    )
