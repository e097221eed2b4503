"""Whether cost stays flat: per chunk and request from 1 stream to 1,000, per request from 100 clips to 100,000."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from asr_load.trial import Outcome, load, scripted_server, share_cores
from benchmarks import Row
from benchmarks.clips import write_clips

STREAMS = {1: 40, 10: 200, 100: 400, 300: 900, 1000: 2000}
"""Streams, and requests of their run."""

CLIPS = (100, 10_000, 100_000)
CHUNKS = 64
IDLE_S = 20


def measure() -> Iterator[Row]:
    """Each row is held against the first of its kind."""
    cores = share_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(label: str, clips: Path, streams: int, requests: int, *server_options: object) -> Outcome:
            here = folder / label
            here.mkdir()
            options = ("--users", streams, "--spawn-rate", streams, "--requests", requests, "--data", clips)
            with scripted_server(here, cores.server, *server_options) as server:
                return load(server, here / "results", cores.client, *options)

        few = write_clips(folder / "few", 100)
        # A client that waits looks fifty times a second how late it is: a single stream would pay for all of that.
        idle = _cpu_s(run("idle", few, 1, 1, "--tokens", 1, "--ttft-ms", IDLE_S * 1e3)) / IDLE_S
        costs = {}
        for streams, requests in STREAMS.items():
            outcome = run(f"streams-{streams}", few, streams, requests)
            costs[streams] = (_cpu_s(outcome) - idle * _watched_s(outcome)) / requests
        yield Row(
            "a client that waits",
            f"{idle:.1%} of a core",
            "an idle core",
            value=idle * 100,
            low=idle * 100,
            high=idle * 100,
            unit="%",
        )
        base = costs[10]
        for streams, cost in costs.items():
            yield _row(
                f"a request of {CHUNKS} chunks, {streams:,} stream{'s' * (streams > 1)}", cost, base, "10 streams"
            )
        costs = {}
        for count in CLIPS:
            clips = few if count == CLIPS[0] else write_clips(folder / f"clips-{count}", count)
            outcome = run(f"clips-run-{count}", clips, 50, 2000, "--ttft-ms", 5, "--tokens", 4, "--itl-ms", 1)
            costs[count] = _cpu_s(outcome) / 2000
        for count, cost in costs.items():
            yield _row(f"a request of 4 chunks, {count:,} clips", cost, costs[CLIPS[0]], f"{CLIPS[0]} clips")


def _cpu_s(outcome: Outcome) -> float:
    health = outcome.info.workers[0].health
    assert health is not None
    return health.cpu_process * health.watched_s


def _watched_s(outcome: Outcome) -> float:
    health = outcome.info.workers[0].health
    assert health is not None
    return health.watched_s


def _row(what: str, cost: float, base: float, against: str) -> Row:
    times = cost / base
    figure = f"{cost * 1e3:.2f} ms of CPU"
    held = f"{against}: {base * 1e3:.2f} ms"
    return Row(what, figure, held, value=times, low=times, high=times, unit="times", aim="flat")
