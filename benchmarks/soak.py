"""What an hour does to a fleet whose server misbehaves and whose workers are killed: not part of `make bench`, run by
`python -m benchmarks.run soak`."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asr_load.results.runfile import RunInfo, read_run
from asr_load.selftest.calibrate import free_port
from asr_load.selftest.ground_truth import Cores, Server, run_on, scripted_server, share_cores
from asr_load.stream.record import RECORDS, read_records
from asr_server.faults import FAULTS
from benchmarks import CHECKOUT, Row
from benchmarks.memory import megabytes

STREAMS, EVERY_S = 200, 15.0
MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))
CHANGE_MINUTES, SETTLED_MINUTES = MINUTES / 12, MINUTES / 6
"""Each so many minutes a worker is killed and another joins; caches fill at first: of the clips, of Locust's rows, of
the collector."""

SHARE = 0.01
"""Of requests that get each of the server's faults."""

ENDING_S = 240.0
"""After which the fleet is taken to hang, once it is told to end."""


class Soak:
    """A master and workers, of which one is killed now and then."""

    def __init__(self, server: Server, folder: Path, cores: Cores) -> None:
        self.results, self._folder, self._cores, self._port = folder / "r", folder, cores, free_port()
        self._environ = {**os.environ, "ASR_LOAD_FLEET_TOKEN": secrets.token_hex(16)}
        words = ["--headless", "--only-summary", "--host", server.url, "--results", self.results, "--users", STREAMS]
        words += ["--spawn-rate", 50, "--stop-timeout", 20, "--stall-timeout", 10, "--enable-rebalancing"]
        words += ["--master", "--master-bind-port", self._port, "--expect-workers", 2, "--allow-lost-workers"]
        words += ["--no-preflight"]  # of its faults
        self.master = self._start(words, "master")
        self.workers = [self._worker(number) for number in range(2)]
        self.killed: set[int] = set()
        self._joined = 2

    def change(self) -> None:
        """Kill the worker that has been there for longest; another one joins."""
        oldest = self.workers.pop(0)
        oldest.kill()
        oldest.wait()
        self.killed.add(self._joined - 2)  # numbers are given in the order of joining
        self.workers.append(self._worker(self._joined))
        self._joined += 1

    def stop(self) -> float:
        """End the test as Ctrl-C does. Returns the seconds that it took."""
        began = time.monotonic()
        self.master.send_signal(signal.SIGINT)
        for process in (self.master, *self.workers):
            process.wait(ENDING_S)
        return time.monotonic() - began

    def end(self) -> None:
        """End what still runs."""
        for process in (self.master, *self.workers):
            process.kill()
            process.wait()

    def _worker(self, number: int) -> subprocess.Popen[bytes]:
        words = ["--worker", "--master-port", self._port, "--results", self.results]
        return self._start(words, f"worker-{number}")

    def _start(self, words: list[Any], name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "locust", "--locustfile", "locustfiles/transcribe.py", *map(str, words)]
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=CHECKOUT, env=self._environ, stdout=log, stderr=log)
        run_on(process, self._cores.client)
        return process


def measure() -> Iterator[Row]:
    """Memory that is no file's, of the master and of the workers that were there; and what the records miss."""
    faults = [word for name in FAULTS for word in ("--fault", f"{name}={SHARE}")]
    cores = share_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with scripted_server(folder, cores.server, "--tokens", 32, "--itl-ms", 40, *faults) as server:
            soak = Soak(server, folder, cores)
            try:
                master, workers = _sample(soak)
                ended_s = soak.stop()
            finally:
                soak.end()
        run = read_run(soak.results)
        lost, unknown, seen = _compare(soak, run, server.stamps)
        refused = sum(each.count for each in run.refused)
        stuck = [one for one in run.workers if one.ended and one.started != one.recorded]
    yield _memory("the master", master)
    yield _memory("a worker, in its own time", workers)
    yield Row(
        f"records of {seen:,} requests that the server saw, {len(soak.killed)} workers killed",
        f"{lost} without a record, {unknown} records of none; {refused} refused; {len(stuck)} workers stuck",
        f"in flight in killed workers: {len(soak.killed) * STREAMS // 2} at most",
        value=float(lost),
        low=float(unknown),
        high=float(refused + len(stuck)),
        unit="requests lost; records of none; refused or stuck",
        aim="none but in flight in a killed worker",
    )
    yield Row(
        "seconds from Ctrl-C to the summary",
        f"{ended_s:.1f} s",
        "the stop timeout: 20 s",
        value=ended_s,
        low=ended_s,
        high=ended_s,
        unit="s",
        aim="under 90 s",
    )


def _sample(soak: Soak) -> tuple[list[float], list[float]]:
    """Megabytes, each EVERY_S: of the master, and of the worker that joined last but one."""
    master, workers = [], []
    began = changed = time.monotonic()
    while (now := time.monotonic()) < began + MINUTES * 60:
        time.sleep(EVERY_S)
        master.append(megabytes(soak.master.pid, "Pss_Anon:"))
        workers.append(megabytes(soak.workers[0].pid, "Pss_Anon:"))
        if now - changed > CHANGE_MINUTES * 60:
            changed = now
            soak.change()
    return master, workers


def _compare(soak: Soak, run: RunInfo, stamps: Path) -> tuple[int, int, int]:
    """How many requests that the server saw have no record, though their worker lived; how many records with an answer
    are of no request that it saw; and how many it saw."""
    recorded: set[tuple[int, int]] = set()
    answered: set[tuple[int, int]] = set()
    for record in read_records(soak.results):
        recorded.add((record.worker, record.seq))
        if record.http_status is not None:
            answered.add((record.worker, record.seq))
    seen: set[tuple[int, int]] = set()
    with stamps.open() as lines:
        for line in lines:
            id, worker, seq = json.loads(line)["request_id"].split("-")
            assert id == run.id
            seen.add((int(worker), int(seq)))
    lived = {worker.worker for worker in run.workers if worker.ended}
    lost = sum(request not in recorded for request in seen if request[0] in lived)
    assert (soak.results / RECORDS).exists()
    return lost, len(answered - seen), len(seen)


def _memory(whose: str, samples: list[float]) -> Row:
    settled = np.array(samples[int(SETTLED_MINUTES * 60 / EVERY_S) :])
    per_hour = float(np.polyfit(np.arange(len(settled)) * EVERY_S / 3600, settled, 1)[0])
    return Row(
        f"memory of {whose} over {MINUTES:g} minutes at {STREAMS} streams",
        f"{settled[0]:.1f} MB after {SETTLED_MINUTES:g} minutes, {settled[-1]:.1f} MB at the end",
        "itself",
        value=per_hour,
        low=float(settled.min() - settled[0]),
        high=float(settled.max() - settled[0]),
        unit="MB an hour by its trend; MB less and more than at first",
        aim="no growth",
    )
