"""Compare the load that two processes carry with that of one, with the same limit on errors, and measure how well the
clocks of workers are known."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from asr_load.results.calibration import TRUSTED_MS, CalibrationStep, GoodFor
from asr_load.results.runfile import read_run
from asr_load.selftest.calibrate import climb, good_for, run_step
from asr_load.selftest.ground_truth import Cores, share_cores
from benchmarks import Row

FREE = 4
"""Number of cores so that the server, two workers and the master each have one."""

EACH, ROUNDS = 200, 3
"""Streams per worker when measuring its cost: few enough for two workers, a master and the server on two cores."""


def measure() -> Iterator[Row]:
    """Compare the cost of a worker, which needs no free cores and, with enough cores, the number of streams too."""
    cores = share_cores()
    everywhere = Cores(cores.server, cores.client | cores.server)
    count = len(everywhere.client)
    with tempfile.TemporaryDirectory() as name:
        number = iter(range(100))
        offset_errors = list[float]()

        def trial(cores: Cores, workers: int, streams: int) -> CalibrationStep:
            folder = Path(name) / str(next(number))
            made, _ = run_step(streams, workers, cores, folder)
            known = (worker.master_offset_error_s for worker in read_run(folder / "results").workers)
            offset_errors.extend(error * 1e3 for error in known if error is not None)
            return made

        costs: dict[int, list[float]] = {1: [], 2: []}
        errors: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for workers, spent in costs.items():
                made = trial(everywhere, workers, EACH * workers)
                spent.append(made.cpu / (made.chunks_per_s / workers) * 10_000)
                errors[workers].append(max(made.ttft_p99, made.itl_p99) * 1e3)
        times = sorted(2 * one / two for one, two in zip(costs[1], costs[2], strict=True))
        one, two = (statistics.median(costs[workers]) for workers in (1, 2))
        within = ", ".join(f"{statistics.median(errors[workers]):.1f}" for workers in (1, 2))
        yield Row(
            f"load of --processes 2 with the same CPU per worker ({EACH} streams each, {count} cores in all)",
            f"{two:.2f} CPU s per 10,000 chunks of a worker",
            f"one process: {one:.2f}; errors at p99 {within} ms",
            value=statistics.median(times),
            low=times[0],
            high=times[-1],
            unit="times",
            aim="at least 1.8",
            better="more",
        )
        yield Row(
            "error of a worker's clock offset to the master",
            f"median {statistics.median(offset_errors):.2f} ms",
            "half the quickest round trip of a message",
            value=max(offset_errors),
            low=min(offset_errors),
            high=max(offset_errors),
            unit="ms",
            aim="100 or less",
        )
        if count < FREE:
            return
        found: list[GoodFor] = []
        for workers in (1, 2):
            first = 50 if not found else max(50, found[0].within_ms[TRUSTED_MS])
            found.append(good_for(list(climb(first, partial(trial, cores, workers)))))
    ours, base = (good.within_ms[TRUSTED_MS] for good in reversed(found))
    full = " (the server reached its limit first)" if found[1].at_least else ""
    yield Row(
        f"streams within {TRUSTED_MS} ms with --processes 2, on {len(cores.client)} cores without the server",
        f"{ours} streams, {ours * 50:,} chunks/s{full}",
        f"one process: {base} streams",
        value=ours / base if base else 0.0,
        low=ours / base if base else 0.0,
        high=ours / base if base else 0.0,
        unit="times",
        aim="at least 1.8",
        better="more",
    )
