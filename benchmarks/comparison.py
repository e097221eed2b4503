"""How often a comparison reports a false difference of a server with itself, and how often it finds a real one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from asr_load.results.compare import NO_DIFFERENCE, WORSE, Compared, compare
from asr_load.results.record_file import read_records
from asr_load.results.runfile import RunInfo, read_run
from asr_load.results.summary import Finished
from asr_load.selftest.ground_truth import scripted_server, share_cores
from asr_load.stream.record import Record
from benchmarks import CHECKOUT, Row

SERVER = ("--ttft-ms", 30, "--tokens", 4, "--itl-ms", 5, "--slots", 8, "--fault", "503=0.02")
RATE, SECONDS = 100, 80
"""Poisson arrivals at a little more than half the capacity of eight slots, so that a queue comes and goes."""

REQUESTS, PAIRS, SHIFTED, SHIFT = 2000, 200, 50, 1.05
BLOCK = 50
"""Successive requests to keep together: half a second, in which a queue comes and goes."""
EACH = 6
"""Runs on each side of a comparison with several."""


def measure() -> Iterator[Row]:
    """Compare pairs of runs, resampled from long runs against one server, that have no request in common."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with scripted_server(folder, share_cores().server, *SERVER) as server:
            runs = [_long_run(server.url, folder / f"run-{number}", number) for number in range(2)]
        random = np.random.default_rng(0)
        pairs = [_apart(*runs[number % 2], random) for number in range(PAIRS)]
        words: Counter[str] = Counter()
        for one, other in pairs:
            words.update(figure.name for figure in _compare([one], [other]) if figure.word != NO_DIFFERENCE)
        yield _row(f"A/A pairs of {REQUESTS:,} requests with a false difference", words)
        several: Counter[str] = Counter()
        for _ in range(PAIRS):
            own = [_apart(*runs[number % 2], random, REQUESTS // 4) for number in range(EACH)]
            sides = [[pair[side] for pair in own] for side in (0, 1)]
            several.update(figure.name for figure in _compare(*sides) if figure.word != NO_DIFFERENCE)
        yield _row(f"A/A pairs of {EACH} runs on each side with a false difference", several)
        found: Counter[str] = Counter()
        for one, other in pairs[:SHIFTED]:
            slower = _slower(one)
            found.update(figure.name for figure in _compare([slower], [other]) if figure.word == WORSE)
        share = found["ttft_p50"] / SHIFTED  # the mean varies with the queue
        what = f"a TTFT that is {SHIFT - 1:.0%} longer, at {REQUESTS:,} requests"
        told = {name: f"{found[name] / SHIFTED:.0%}" for name in ("ttft_mean", "ttft_p50", "ttft_p95")}
        figure = ", ".join(f"{name} {text}" for name, text in told.items())
        yield Row(what, f"found: {figure}", "", share, share, share, "of pairs (ttft_p50)", "0.8 or more", "more")


def _row(what: str, words: Counter[str]) -> Row:
    shares = sorted(count / PAIRS for count in words.values()) or [0.0]
    figure = "worst: " + ", ".join(f"{name} {count / PAIRS:.1%}" for name, count in words.most_common(4))
    return Row(what, figure, f"{PAIRS} pairs", shares[-1], shares[0], shares[-1], "of pairs", "0.06 or less")


def _long_run(url: str, results: Path, seed: int) -> tuple[RunInfo, list[Record]]:
    command = [sys.executable, "-m", "locust", "--locustfile", "locustfiles/transcribe.py", "--headless"]
    command += ["--only-summary", "--loglevel", "ERROR", "-u", "400", "--host", url, "--request-rate", str(RATE)]
    command += ["--run-time", str(SECONDS), "--seed", str(seed), "--warmup-time", "3", "--order", "shuffle"]
    command += ["--data", "asr_data/sample", "--results", str(results), "--no-preflight"]
    subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, check=False)
    measured = [record for record in read_records(results) if not record.warmup]
    return read_run(results), sorted(measured, key=lambda record: record.started_at)


def _apart(info: RunInfo, records: list[Record], random: np.random.Generator, count: int = REQUESTS) -> list[Finished]:
    """Make two runs of an unchanged server: draw blocks of a long run without replacement, and join half of them into
    each run."""
    blocks = len(records) // BLOCK - 1
    drawn = random.permutation(blocks)[: 2 * count // BLOCK]
    return [_put_together(info, records, half.tolist()) for half in np.split(drawn, 2)]


def _put_together(info: RunInfo, records: list[Record], blocks: list[int]) -> Finished:
    own, now = [], records[0].started_at
    for block in blocks:
        first, after = block * BLOCK, (block + 1) * BLOCK
        own += [record.moved(now - records[first].started_at) for record in records[first:after]]
        now += records[after].started_at - records[first].started_at
    workers = [msgspec.structs.replace(worker, ended_at=now, master_offset_s=0.0) for worker in info.workers]
    info = msgspec.structs.replace(info, workers=workers)
    return Finished(info, own)


def _slower(run: Finished) -> Finished:
    records = []
    for record in run.records:
        if record.ttft is not None and record.e2el is not None:
            more = record.ttft * (SHIFT - 1)
            record = msgspec.structs.replace(record, ttft=record.ttft + more, e2el=record.e2el + more)  # noqa: PLW2901
        records.append(record)
    return Finished(run.info, records)


def _compare(values: list[Finished], baselines: list[Finished]) -> list[Compared]:
    return compare(values, baselines).figures
