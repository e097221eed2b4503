"""Run load against the scripted server, which knows the ground truth: it stamps each chunk when it sends it.

Both processes read the same monotonic clock, so the stamps of client and server differ only by the client's error and
the time over the loopback.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr_load import signals
from asr_load.results.record_file import read_records
from asr_load.results.runfile import ClientHealth, RunInfo, read_run
from asr_load.shipped import LOCUST_COMMAND, shipped
from asr_load.stream.record import Record

TOKENS, ITL_S, TTFT_S = 64, 0.020, 0.200
"""Responses of the scripted server: 50 chunks per second, over 1.46 s."""

START_S, LOOK_S = 60.0, 0.02
RUN_TIMEOUT_S = 120.0


class GroundTruthError(Exception):
    """The server or the load failed."""


@dataclass(frozen=True)
class Cores:
    """Cores for the server and for the client, separate if there are two or more."""

    server: set[int]
    client: set[int]


def share_cores() -> Cores:
    """The first core for the server, the rest for the client."""
    if not hasattr(os, "sched_getaffinity"):
        everywhere = set(range(os.cpu_count() or 1))
        return Cores(everywhere, everywhere)
    first, *rest = sorted(os.sched_getaffinity(0))
    return Cores({first}, set(rest) or {first})


def run_on(process: subprocess.Popen[Any], cores: set[int]) -> None:
    """Restrict a newly started process, and its children, to these cores, if the system supports it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, cores)


@dataclass(frozen=True)
class Server:
    """A running scripted server."""

    url: str
    pid: int
    stamps: Path


@contextmanager
def scripted_server(folder: Path, cores: set[int], *options: object) -> Iterator[Server]:
    """A scripted server on these cores for the duration of the block, with its stamps and output in files in
    `folder`."""
    stamps, log = folder / "stamps.jsonl", folder / "server.log"
    command: list[object] = [sys.executable, "-m", "asr_load.cli.main", "serve", "--port", 0, "--engine", "scripted"]
    command += ["--stamps", stamps, "--tokens", TOKENS, "--itl-ms", ITL_S * 1e3, "--ttft-ms", TTFT_S * 1e3, *options]
    # Do not use a pipe: the server would block when it is full.
    with log.open("wb") as output, _ended([*map(str, command)], stdout=output, stderr=output) as process:
        run_on(process, cores)
        while not (ready := re.search(r"asr_server: scripted on (\S+)\s", log.read_text())):
            if process.poll() is not None:
                raise GroundTruthError(f"the scripted server did not start: {log.read_text().strip()}")
            time.sleep(LOOK_S)
        yield Server(ready[1], process.pid, stamps)


@contextmanager
def _ended(command: list[str], **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that ends with the block, even if a signal ends it."""
    with ExitStack() as stack:
        with signals.held():
            process = stack.enter_context(subprocess.Popen(command, **how))
            stack.callback(process.wait, START_S)
            stack.callback(process.terminate)
        yield process


@dataclass(frozen=True)
class GroundTruthRun:
    """Results of a run against the scripted server. Arrays are in seconds, over all successful records."""

    records: list[Record]
    info: RunInfo
    received: list[np.ndarray]
    """For each record, the arrival times of its chunks, on the server's clock."""
    sent: list[np.ndarray]
    """For each record, the times when the server sent them."""
    requested: np.ndarray
    """When the server had received each request."""

    @property
    def ttft_errors(self) -> np.ndarray:
        """How late first chunks were stamped."""
        return np.array([received[0] - sent[0] for received, sent in zip(self.received, self.sent, strict=True)])

    @property
    def itl_errors(self) -> np.ndarray:
        """Error of each gap: positive if stamped too long, negative if too short."""
        pairs = zip(self.received, self.sent, strict=True)
        return np.concatenate([np.diff(received) - np.diff(sent) for received, sent in pairs])

    @property
    def server_lateness(self) -> np.ndarray:
        """How late the server sent each chunk."""
        due = TTFT_S + np.arange(TOKENS) * ITL_S
        return np.concatenate(
            [left - at - due[: len(left)] for left, at in zip(self.sent, self.requested, strict=True)]
        )

    @property
    def accept_waits(self) -> np.ndarray:
        """Time from when a request had been sent until the server had received it."""
        clocks = {worker.worker: worker.clock_offset_s for worker in self.info.workers}
        sent = [record.started_at - clocks[record.worker] + (record.upload or 0.0) for record in self.records]
        waits: np.ndarray = self.requested - np.array(sent)
        return waits

    @property
    def wrong_counts(self) -> int:
        """Number of records whose chunks or tokens differ from what the server sent."""
        pairs = zip(self.records, self.sent, strict=True)
        return sum(not record.output_tokens == record.chunks == len(left) for record, left in pairs)

    @property
    def chunks(self) -> int:
        return sum(record.chunks for record in self.records)

    @property
    def healths(self) -> list[ClientHealth]:
        """Health of the processes that sent load."""
        return [worker.health for worker in self.info.workers if worker.health is not None]

    @property
    def cpu_s(self) -> float:
        """CPU seconds that these processes used."""
        return sum(health.cpu_process * health.watched_s for health in self.healths)


def load(server: Server, folder: Path, cores: set[int], *options: object) -> GroundTruthRun:
    """Run asr-load on these cores against a scripted server, with results in a new folder. Raises GroundTruthError."""
    command = [*LOCUST_COMMAND, "--locustfile", str(shipped("locustfiles/transcribe.py"))]
    command += ["--headless", "--only-summary", "--loglevel", "WARNING", "--no-preflight", "--host", server.url]
    command += ["--results", str(folder), *map(str, options)]
    log = folder.with_suffix(".log")
    with (
        log.open("w") as output,
        _ended(command, cwd=folder.parent, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        run_on(process, cores)
        try:
            code = process.wait(RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise GroundTruthError(f"the load test did not finish within {RUN_TIMEOUT_S:g} s") from None
    if code != 0:
        raise GroundTruthError(f"the load test failed with code {code}: {log.read_text().strip().splitlines()[-1:]}")
    return compare(folder, server.stamps)


def compare(folder: Path, stamps: Path) -> GroundTruthRun:
    """Compare the records of a run with the server's stamps."""
    info = read_run(folder)
    sent = {line["request_id"]: line for line in map(json.loads, stamps.read_text().splitlines())}
    clocks = {worker.worker: worker.clock_offset_s for worker in info.workers}
    records, received, left, requested = [], [], [], []
    for record in read_records(folder):
        if not record.ok or record.ttft is None:
            raise GroundTruthError(f"a request failed: {record.outcome} {record.error}")
        line = sent[f"{info.id}-{record.worker}-{record.seq}"]
        began = record.started_at - clocks[record.worker]
        records.append(record)
        received.append(began + record.ttft + np.cumsum([0.0, *record.itl]))
        left.append(np.array(line["sent_at"]))
        requested.append(line["received_at"])
    return GroundTruthRun(records, info, received, left, np.array(requested))


def p99(values: np.ndarray) -> float:
    """The 99th percentile of absolute values."""
    return float(np.percentile(np.abs(values), 99))


def p50(values: np.ndarray) -> float:
    """The median of absolute values."""
    return float(np.percentile(np.abs(values), 50))
