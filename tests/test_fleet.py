"""A master and its workers as real processes: nothing is lost, nothing is counted twice, work is shared."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import CHECKOUT
from serving import running_streams, serve, wait_until
from test_e2e import FAST, POST, Run, clips, locust, run

__all__ = ["clips"]  # a fixture

TRANSCRIBE = CHECKOUT / "locustfiles" / "transcribe.py"
SLOW = ("--engine", "scripted", "--tokens", "40", "--itl-ms", "50")


def processes(number: int) -> list[str]:
    """Options for workers on this machine, on a port of their own: two runs on Locust's default would mix."""
    port = str(free_port())
    return ["--processes", str(number), "--master-bind-port", port, "--master-port", port]


def info(done: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.results / "run.json").read_text())
    return found


def nothing_is_lost(done: Run) -> list[dict[str, Any]]:
    """Every request that a worker began has one record, in the master's file, and Locust counts the same."""
    records = done.records
    keys = {(record["worker"], record["user"], record["started_at"]) for record in records}
    assert len(keys) == len(records)
    by_worker = Counter(record["worker"] for record in records)
    for worker in info(done)["workers"]:
        assert worker["ended"]
        assert worker["started"] == worker["recorded"] == by_worker[worker["worker"]]
    assert done.summary["requests"]["total"] == len(records) == done.rows[POST]["num_requests"]
    failed = sum(record["outcome"] not in ("ok", "unfinished") for record in records)
    assert done.rows[POST]["num_failures"] == failed
    return records


def test_work_is_shared_and_each_clip_is_sent_once(clips: Path, tmp_path: Path) -> None:
    words = (*processes(2), "-u", "4", "--requests", "45", "--order", "shuffle", "--seed", "1")
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", *words)
    assert done.code == 0, done.err
    records = nothing_is_lost(done)
    assert sorted(record["seq"] for record in records) == list(range(45))
    assert Counter(record["worker"] for record in records) == {0: 23, 1: 22}
    first = {record["clip"] for record in records if record["seq"] < 30}
    assert len(first) == 30  # the first pass, over both workers
    assert done.summary["requests"]["success"] == 45
    assert done.rows["ITL", "/v1/chat/completions inter-token latency"]["num_requests"] == 45 * 5


def test_a_worker_without_a_user_could_never_send_its_share(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", *processes(2), "-u", "1", "--requests", "4")
    assert done.code == 2
    assert "--requests needs a user for each worker: 2 workers, 1 user(s)" in done.err


@pytest.mark.parametrize("patience", ["0", "20"])
def test_a_time_limit_loses_nothing(clips: Path, tmp_path: Path, patience: str) -> None:
    with serve(*SLOW) as host:
        done = run(host, clips, tmp_path / "r", *processes(2), "-u", "6", "-t", "4", "--stop-timeout", patience)
    outcomes = Counter(record["outcome"] for record in nothing_is_lost(done))
    assert outcomes["ok"] >= 6
    assert outcomes["unfinished"] == (6 if patience == "0" else 0)
    assert done.code == 0


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_loses_nothing(clips: Path, tmp_path: Path, stop: signal.Signals) -> None:
    results = tmp_path / "r"
    results.mkdir()
    with serve(*SLOW) as host:
        files = ("--data", clips, "--results", results, "--json-file", results / "locust")
        words: tuple[str | Path, ...] = (*files, *processes(2), "-u", "4", "-r", "100", "--stop-timeout", "0")
        process = locust("--host", host, *words, new_group=True)
        wait_until(lambda: running_streams(host) == 4, "four streams")
        if stop == signal.SIGINT:
            os.killpg(process.pid, stop)  # as a terminal does: to the master and to its workers
        else:
            process.send_signal(stop)
        done = Run(process, results)
    records = nothing_is_lost(done)
    assert Counter(record["outcome"] for record in records)["unfinished"] == 4


class Fleet:
    """A master and workers that were started one by one; `on`: the words that put them on hosts of their own."""

    def __init__(
        self, host: str, results: Path, *words: str | Path, cwd: Path = CHECKOUT, on: Sequence[str] = ()
    ) -> None:
        self.port = free_port()
        results.mkdir()
        self.results = results
        files = ("--results", results, "--json-file", results / "locust")
        listen = ("-f", TRANSCRIBE, "--master", "--master-bind-port", str(self.port), "--expect-workers-max-wait", "30")
        self.master = locust("--host", host, *listen, *files, "--spawn-rate", "100", *words, cwd=cwd, on=on)

    def worker(
        self, cwd: Path = CHECKOUT, on: Sequence[str] = (), master: str = "127.0.0.1", **env: str
    ) -> subprocess.Popen[str]:
        command = [*on, sys.executable, "-m", "locust", "-f", str(TRANSCRIBE), "--worker"]
        command += ["--master-host", master, "--master-port", str(self.port)]
        return subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "LOCUST_SKIP_MONKEY_PATCH": "", **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def lines(self, name: str = "records.jsonl") -> int:
        file = self.results / name
        return file.read_bytes().count(b"\n") if file.exists() else 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.mark.parametrize("allowed", [(), ("--allow-lost-workers",)])
def test_a_worker_that_is_killed_is_missed_and_the_run_goes_on(
    clips: Path, tmp_path: Path, allowed: tuple[str, ...]
) -> None:
    with serve(*FAST) as host:
        words = ("-u", "4", "-t", "9", "--stop-timeout", "5", "--expect-workers", "2", *allowed)
        judged = ("--slo", "ttft:p95:60000", "--allow-client-bound")
        fleet = Fleet(host, tmp_path / "r", "--data", clips, *words, *judged)
        workers = [fleet.worker(), fleet.worker()]
        try:
            wait_until(lambda: fleet.lines() > 20, "records of the fleet")
            kept = {name: fleet.lines(name) for name in ("worker-000.jsonl", "worker-001.jsonl")}
            assert all(kept.values())
            workers[1].kill()
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, *workers)
    lost = [worker for worker in info(done)["workers"] if not worker["ended"]]
    assert len(lost) == 1
    reasons = done.summary["validity"]["reasons"]
    assert any(re.search(r"was lost \d+ s after the start: what it had not reported is missing", it) for it in reasons)
    assert done.summary["lost_workers"] == [lost[0]["worker"]]
    assert info(done)["began_at"] < lost[0]["lost_at"] < info(done)["began_at"] + 20
    # The SLO holds for what is there, and the run cannot show that it held.
    assert [result["ok"] for result in done.summary["slo"]] == [True]
    assert (done.summary["passed"], done.code) == (bool(allowed), 0 if allowed else 1)
    # What the lost worker had on its own disk is merged, and nothing is counted twice.
    keys: set[tuple[int, int, float]] = set()
    for file in fleet.results.glob("*.jsonl"):
        for line in file.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                record = json.loads(line)
                keys.add((record["worker"], record["user"], record["started_at"]))
    assert done.summary["requests"]["total"] == len(keys)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_is_told_to_end_has_its_last_word(clips: Path, tmp_path: Path, stop: signal.Signals) -> None:
    with serve(*SLOW) as host:
        words = ("--data", clips, "-u", "4", "--stop-timeout", "20", "--expect-workers", "2")
        fleet = Fleet(host, tmp_path / "r", *words)
        workers = [fleet.worker(), fleet.worker()]
        try:
            wait_until(lambda: running_streams(host) == 4, "four streams")
            workers[1].send_signal(stop)
            wait_until(lambda: workers[1].poll() is not None, "the worker has ended")
            wait_until(lambda: running_streams(host) == 4, "the other one has its users")
            fleet.master.send_signal(signal.SIGINT)
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, *workers)
    assert done.code == 0, done.err
    records = nothing_is_lost(done)
    assert {record["worker"] for record in records} == {0, 1}
    assert {record["outcome"] for record in records} == {"ok"}


def test_a_master_that_is_killed_leaves_a_run_that_can_be_read(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        fleet = Fleet(host, tmp_path / "r", "--data", clips, "-u", "4", "--expect-workers", "2")
        workers = [fleet.worker(), fleet.worker()]
        try:
            wait_until(lambda: fleet.lines() > 20, "records of the fleet")
        finally:
            end(fleet.master, *workers)
    report = subprocess.run(
        [sys.executable, "scripts/report.py", str(fleet.results)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    own = sum(fleet.lines(f"worker-{number:03d}.jsonl") for number in range(2))
    assert own >= fleet.lines()
    assert f"Total: {own}, Success: {own}, Fail: 0" in report.stdout
    assert "the run did not come to its end: its process was killed" in report.stdout


def test_a_worker_that_joins_late_takes_part(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        words = ("--data", clips, "-u", "4", "--stop-timeout", "5", "--expect-workers", "1", "--enable-rebalancing")
        fleet = Fleet(host, tmp_path / "r", *words)
        workers = [fleet.worker()]
        try:
            wait_until(lambda: fleet.lines() > 5, "records of the first worker")
            workers.append(fleet.worker())
            wait_until(lambda: fleet.lines("worker-001.jsonl") > 5, "records of the second worker")
            fleet.master.send_signal(signal.SIGTERM)
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, *workers)
    records = nothing_is_lost(done)
    assert {record["worker"] for record in records} == {0, 1}
    assert done.code == 0, done.err


def test_a_worker_with_other_data_is_refused(clips: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        shutil.copytree(clips, place / "prepared")
    manifest = (there / "prepared" / "manifest.json").read_text()
    (there / "prepared" / "manifest.json").write_text(manifest.replace('"dataset": "set"', '"dataset": "other"'))
    with serve(*FAST) as host:
        fleet = Fleet(host, tmp_path / "r", "--data", "prepared", "-u", "2", "--expect-workers", "1", cwd=here)
        worker = fleet.worker(cwd=there)
        try:
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, worker)
    assert done.code == 2
    assert "worker 0 has other data in prepared than the master" in done.err
    assert done.records == []


def test_the_clock_of_a_worker_is_held_against_the_masters(clips: Path, tmp_path: Path) -> None:
    ahead = tmp_path / "ahead"
    ahead.mkdir()
    # Python imports it before anything else: the clock of that machine is an hour ahead.
    (ahead / "sitecustomize.py").write_text(
        "import time\nreal, real_ns = time.time, time.time_ns\n"
        "time.time, time.time_ns = lambda: real() + 3600, lambda: real_ns() + 3600 * 10**9\n"
    )
    with serve(*FAST) as host:
        words = ("--data", clips, "-u", "2", "--requests", "60", "--expect-workers", "2")
        fleet = Fleet(host, tmp_path / "r", *words)
        workers = [fleet.worker(), fleet.worker(PYTHONPATH=str(ahead))]
        try:
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, *workers)
    nothing_is_lost(done)
    offsets = sorted((worker["master_offset_s"], worker["master_offset_error_s"]) for worker in info(done)["workers"])
    (late, late_error), (same, same_error) = offsets
    assert abs(late + 3600) <= late_error < 0.1
    assert abs(same) <= same_error < 0.1
    assert done.summary["wall_s"] < 60
    assert "the clock is held against the master's" in done.out
    assert re.search(r"\+(3599999|3600000)\.\d ± ", done.out)
