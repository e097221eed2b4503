"""What reading an answer costs, each way, held against a bare epoll loop that reads the same."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from asr_load.audio.payload import NO_DITHER, make_builder
from asr_load.audio.shard import Shards
from asr_load.load.options import DEFAULT_PROMPT
from asr_load.trial import Server, load, run_on, scripted_server, share_cores
from benchmarks import CHECKOUT, Row, ratio
from benchmarks.clips import write_clips

STREAMS, REQUESTS, ROUNDS = 100, 800, 3
AIMS = {"compiled": "0.20", "python": "0.28", "plain": ""}
PER = 10_000


def measure() -> Iterator[Row]:
    """CPU seconds per 10,000 chunks, all that a request takes included; clips of a tenth of a second."""
    cores = share_cores()
    spent: dict[str, list[float]] = {name: [] for name in ("bare", *AIMS)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = write_clips(folder / "clips", 8)
        (folder / "body").write_bytes(one_body(clips))
        number = itertools.count()
        for _ in range(ROUNDS):
            for way, figures in spent.items():
                here = folder / str(next(number))
                here.mkdir()
                with scripted_server(here, cores.server) as server:
                    if way == "bare":
                        figures.append(_bare(server, folder / "body", cores.client))
                    else:
                        options = ("--users", STREAMS, "--spawn-rate", STREAMS, "--requests", REQUESTS)
                        outcome = load(
                            server, here / "results", cores.client, *options, "--reader", way, "--data", clips
                        )
                        health = outcome.info.workers[0].health
                        assert health is not None
                        chunks = sum(record.chunks for record in outcome.records)
                        figures.append(health.cpu_process * health.watched_s / chunks * PER)
    bare = statistics.median(spent["bare"])
    for way, aim in AIMS.items():
        yield Row(
            f"reading at {STREAMS} streams of 64 tokens, {way}",
            f"{statistics.median(spent[way]):.2f} CPU s per {PER:,} chunks",
            f"bare epoll loop: {bare:.2f}",
            **ratio(spent[way], spent["bare"]),  # type: ignore[arg-type]
            aim=aim and f"at most {aim} s",
        )


def one_body(clips: Path) -> bytes:
    """The request's body for the first clip."""
    build, _ = make_builder("chat", "default", DEFAULT_PROMPT, 128, {})
    return b"".join(build(Shards(clips)[0], NO_DITHER))


def _bare(server: Server, body: Path, cores: set[int]) -> float:
    command = [sys.executable, "-m", "benchmarks.bare", server.url.rpartition("/")[2], STREAMS, REQUESTS, body]
    process = subprocess.Popen([*map(str, command)], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    run_on(process, cores)
    output, _ = process.communicate(timeout=120)
    said = json.loads(output)
    spent: float = said["cpu_s"] / (REQUESTS * 64) * PER
    return spent
