"""Run a fleet for an hour against a server with faults while its workers are killed: realtime sessions and uploads
together, each of the server's faults at 1 %.

    python -m benchmarks.soak
    python -m benchmarks.soak --seconds 180 --sessions 40 --uploads 10

It passes if no request is lost, the memory and file descriptors of each process are steady, and all processes end. It
prints one line. If it fails, it exits with 1 and keeps the output and files of the processes.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asr_load.results.record_file import read_records
from asr_load.results.runfile import read_run
from asr_load.selftest.calibrate import free_port
from asr_load.selftest.ground_truth import Cores, Server, run_on, scripted_server, share_cores
from asr_load.stream.record import RealtimeRecord
from asr_load.text import count_of
from asr_server.faults import FAULTS
from benchmarks import CHECKOUT
from benchmarks.memory import megabytes

SHARE = 0.01
"""Share of requests that get each of the server's faults."""

CHANGES, CHANGE_S = 12, 60.0
"""How many times a worker is killed and replaced, and the minimum number of seconds between two times."""

SETTLED, SETTLED_S = 1 / 3, 40.0
"""Share of a process's time, or seconds if that is longer, before its samples count, because caches fill at first: of
clips, of Locust's rows, of the garbage collector."""

LEAST_SAMPLES = 8

MORE_MB, MORE_MEMORY = 10.0, 0.1
"""Maximum growth of memory: in MB or as a share, whichever is more."""

MORE_DESCRIPTORS, MORE_CONNECTIONS = 20, 0.5
"""Maximum growth of file descriptors, which depend on the connections in flight: a number or a share."""

ENDING_S = 240.0
"""Seconds after the signal to end until the fleet counts as hanging."""

USERS = """
class {name}(asr_load.SpeechUser):
    fixed_count = {count}
    options = {options}
"""
REALTIME = {"api": "realtime", "realtime_dialect": "vllm"}


class Sample(NamedTuple):
    """Anonymous memory of a process, in MB, and its file descriptors at a time."""

    at: float
    memory: float
    descriptors: float


@dataclass
class Watched:
    """A process with regular samples of its memory and descriptors."""

    name: str
    pid: int
    samples: list[Sample] = field(default_factory=list)

    def look(self) -> None:
        """Take a sample, unless the process has ended."""
        with suppress(OSError, StopIteration):
            descriptors = sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())
            self.samples.append(Sample(time.monotonic(), megabytes(self.pid, "Pss_Anon:"), descriptors))

    @property
    def settled(self) -> list[Sample]:
        """Samples since the process settled."""
        if not self.samples:
            return []
        begin, end = self.samples[0].at, self.samples[-1].at
        return [sample for sample in self.samples if sample.at >= begin + max(SETTLED_S, SETTLED * (end - begin))]

    def grown(self) -> Sample:
        """Growth since the process settled: from the minimum of the first third of that time to the minimum of the
        last. Minima ignore changes of the load in flight, such as when workers take over a killed worker's users."""
        settled = np.array(self.settled)
        third = max(len(settled) // 3, 1)
        return Sample(*(settled[-third:].min(axis=0) - settled[:third].min(axis=0)).tolist())

    @property
    def is_known(self) -> bool:
        """Whether there are enough samples to judge the process."""
        return len(self.settled) >= LEAST_SAMPLES

    @property
    def figures(self) -> str:
        """Memory and descriptors after settling, and their growth."""
        first, grown = self.settled[0], self.grown()
        memory = f"{first.memory:.0f} MB {grown.memory:+.1f} MB"
        return f"{self.name} {memory}, {first.descriptors:.0f} descriptors {grown.descriptors:+.0f}"

    @property
    def is_steady(self) -> bool:
        """Whether memory and descriptors grew within their limits."""
        first, grown = self.settled[0], self.grown()
        descriptors = max(MORE_DESCRIPTORS, MORE_CONNECTIONS * first.descriptors)
        return grown.memory <= max(MORE_MB, MORE_MEMORY * first.memory) and grown.descriptors <= descriptors


class Fleet:
    """A master and two workers, one of which is killed from time to time."""

    def __init__(self, server: Server, folder: Path, cores: Cores, sessions: int, uploads: int) -> None:
        self.results, self._folder, self._cores, self._port = folder / "r", folder, cores, free_port()
        self._environ = {**os.environ, "ASR_LOAD_FLEET_TOKEN": secrets.token_hex(16)}
        self._file = folder / "soak_users.py"
        classes = [("Upload", uploads, {}), ("Session", sessions, REALTIME)]
        users = [USERS.format(name=name, count=count, options=how) for name, count, how in classes if count]
        self._file.write_text("import asr_load\n" + "".join(users))
        words = ["--headless", "--only-summary", "--host", server.url, "--results", self.results]
        words += ["--users", sessions + uploads, "--spawn-rate", 50, "--stop-timeout", 20, "--stall-timeout", 10]
        words += ["--master", "--master-bind-port", self._port, "--expect-workers", 2, "--allow-lost-workers"]
        words += ["--enable-rebalancing", "--no-preflight"]  # because of the faults
        self.master = self._start(words, "master")
        self.workers: list[subprocess.Popen[bytes]] = []
        self.watched = [Watched("the master", self.master.pid), Watched("the server", server.pid)]
        self.killed = 0
        for _ in range(2):
            self._join()

    def change(self) -> None:
        """Kill the oldest worker and start another one."""
        oldest = self.workers.pop(0)
        oldest.kill()
        oldest.wait()
        self.killed += 1
        self._join()

    def stop(self) -> bool:
        """End the test like Ctrl-C does. Returns whether all processes ended in time."""
        self.master.send_signal(signal.SIGINT)
        until = time.monotonic() + ENDING_S
        with suppress(subprocess.TimeoutExpired):
            for process in (self.master, *self.workers):
                process.wait(max(until - time.monotonic(), 0))
            return True
        return False

    def end(self) -> None:
        """Kill the processes that are still running."""
        for process in (self.master, *self.workers):
            process.kill()
            process.wait()

    def _join(self) -> None:
        name = f"worker {self.killed + len(self.workers)}"
        words = ["--worker", "--master-port", self._port, "--results", self.results]
        self.workers.append(self._start(words, name.replace(" ", "-")))
        self.watched.append(Watched(name, self.workers[-1].pid))

    def _start(self, words: list[object], name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "locust", "--locustfile", str(self._file), *map(str, words)]
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=CHECKOUT, env=self._environ, stdout=log, stderr=log)
        run_on(process, self._cores.client)
        return process


def main() -> int:
    """Run the soak test. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Run a fleet against a server with faults, and kill its workers.")
    parser.add_argument("--seconds", type=float, default=3600.0, help="duration (default: 3600)")
    parser.add_argument("--sessions", type=int, default=200, help="concurrent realtime sessions (default: 200)")
    parser.add_argument("--uploads", type=int, default=50, help="concurrent uploads (default: 50)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="asr-load-soak-"))
    faults = [word for name in FAULTS for word in ("--fault", f"{name}={SHARE}")]
    cores = share_cores()
    server_options = ("--tokens", 32, "--itl-ms", 40, "--realtime", "vllm", *faults)
    troubles = []
    try:
        with scripted_server(folder, cores.server, *server_options) as server:
            fleet = Fleet(server, folder, cores, options.sessions, options.uploads)
            try:
                _watch(fleet, options.seconds)
                ends = [each.name for each in fleet.watched[:2] if not Path(f"/proc/{each.pid}").exists()]
                troubles += [f"{name} ended too early" for name in ends]
                told = time.monotonic()
                if not fleet.stop():
                    troubles.append("the fleet did not end")
                ended_s = time.monotonic() - told
            finally:
                fleet.end()
    except subprocess.TimeoutExpired:
        troubles.append("the server did not end")
    figures, found = judge(fleet.results, server.stamps, fleet.watched)
    troubles += found
    load = f"{options.seconds:g} s of {options.sessions} sessions and {options.uploads} uploads"
    said = f"soak: {load}, {count_of(fleet.killed, 'worker')} killed: {figures}; ended in {ended_s:.0f} s"
    print(f"{said}: {'; '.join(troubles) or 'passed'}")
    if troubles:
        samples = {process.name: process.samples for process in fleet.watched}
        (folder / "samples.json").write_text(json.dumps(samples))
        print(f"Output and samples: {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return 1 if troubles else 0


def _watch(fleet: Fleet, seconds: float) -> None:
    """Sample each process, and kill a worker from time to time."""
    began = changed = time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        time.sleep(min(15.0, seconds / 100))
        for process in fleet.watched:
            process.look()
        if now - changed > max(seconds / CHANGES, CHANGE_S):
            changed = now
            fleet.change()


def judge(results: Path, stamps: Path, watched: Sequence[Watched]) -> tuple[str, list[str]]:
    """Describe the figures of a run, and its problems, from its folder and the server's log of requests."""
    run = read_run(results)
    lived = {worker.worker for worker in run.workers if worker.ended}
    recorded: set[tuple[int, int]] = set()
    answered: set[tuple[int, int]] = set()
    realtime = 0
    for record in read_records(results):
        recorded.add((record.worker, record.seq))
        realtime += isinstance(record, RealtimeRecord)
        if record.ok or record.http_status is not None:
            answered.add((record.worker, record.seq))
    seen = set(_seen(stamps, run.id))
    lost = sum(request not in recorded for request in seen if request[0] in lived)
    troubles = [
        f"{what}: {count}"
        for what, count in (
            ("requests lost", lost),
            ("records of requests that the server did not receive", len(answered - seen)),
            ("records rejected", sum(each.count for each in run.refused)),
            ("workers stuck", sum(each.ended and each.started != each.recorded for each in run.workers)),
        )
        if count
    ]
    known = [process for process in watched if process.is_known]
    troubles += [f"{process.name} grew" for process in known if not process.is_steady]
    figures = [
        f"{len(seen)} requests at the server, {len(recorded)} records, {realtime} of them of sessions, {lost} lost"
    ]
    figures += [process.figures for process in known]
    return "; ".join(figures), troubles


def _seen(stamps: Path, id: str) -> Iterator[tuple[int, int]]:
    """Worker and number of each of a run's requests in the server's log."""
    with stamps.open() as lines:
        for line in lines:
            run, _, request = json.loads(line)["request_id"].partition("-")
            if run == id:
                worker, _, number = request.partition("-")
                yield int(worker), int(number)


if __name__ == "__main__":
    sys.exit(main())
