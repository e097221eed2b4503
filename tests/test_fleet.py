"""A master and its workers as real processes: nothing is lost or counted twice, and work is shared."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from conftest import CHECKOUT
from harness.fleets import SLOW, Fleet, end, info, nothing_is_lost, processes
from harness.runs import FAST, Run, locust, run
from harness.serving import running_streams, serve, wait_until


def test_fleet_shares_work_and_sends_each_clip_once(clips: Path, tmp_path: Path) -> None:
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


def test_requests_option_needs_a_user_for_each_worker(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", *processes(2), "-u", "1", "--requests", "4")
    assert done.code == 2
    assert "--requests needs at least one user per worker, but there are 2 workers and 1 user" in done.err


@pytest.mark.long
@pytest.mark.parametrize("patience", ["0", "20"])
def test_run_time_of_a_fleet_loses_nothing(clips: Path, tmp_path: Path, patience: str) -> None:
    with serve(*SLOW) as host:
        done = run(host, clips, tmp_path / "r", *processes(2), "-u", "6", "-t", "4", "--stop-timeout", patience)
    outcomes = Counter(record["outcome"] for record in nothing_is_lost(done))
    assert outcomes["ok"] >= 6
    assert outcomes["unfinished"] == (6 if patience == "0" else 0)
    assert done.code == 0


@pytest.mark.long
def test_fleet_that_ends_while_it_ramps_up_loses_nothing(clips: Path, tmp_path: Path) -> None:
    """The master still asks for users while others drain. They would start in a test that is over."""
    with serve(*SLOW) as host:
        done = run(host, clips, tmp_path / "r", *processes(2), "-u", "40", "-r", "4", "-t", "2", "--stop-timeout", "20")
    assert {record["outcome"] for record in nothing_is_lost(done)} == {"ok"}
    assert "closed file" not in done.err


@pytest.mark.long
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_a_fleet_loses_nothing(clips: Path, tmp_path: Path, stop: signal.Signals) -> None:
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


@pytest.mark.long
@pytest.mark.parametrize("allowed", [(), ("--allow-lost-workers",)])
def test_killed_worker_is_reported_lost_and_the_run_continues(
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
    merged = lost[0]["from_file"]
    missing = "records that it had not sent yet are missing"
    what = f"the master read {merged:,} records? from its file" if merged else missing
    assert any(re.search(rf"was lost \d+ s after the start: {what}", it) for it in reasons)
    assert done.summary["lost_workers"] == [lost[0]["worker"]]
    assert info(done)["began_at"] < lost[0]["lost_at"] < time.time()
    # All measured requests meet the SLO, but the run cannot prove that the missing ones do.
    assert [result["ok"] for result in done.summary["slo"]] == [True]
    assert (done.summary["passed"], done.code) == (bool(allowed), 0 if allowed else 1)
    assert done.summary["verdict"]["exit_code"] == done.code
    # Records in the lost worker's own file are merged, and none is counted twice.
    keys: set[tuple[int, int, float]] = set()
    for file in fleet.results.glob("*.jsonl"):
        for line in file.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                record = json.loads(line)
                keys.add((record["worker"], record["user"], record["started_at"]))
    assert done.summary["requests"]["total"] == len(done.records) == len(keys)


@pytest.mark.long
def test_worker_that_is_silent_for_six_seconds_is_not_missing(clips: Path, tmp_path: Path) -> None:
    """Locust waits three seconds. On a busy machine, the start of a test takes longer."""
    with serve(*FAST) as host:
        words = ("--data", clips, "-u", "2", "-t", "10", "--stop-timeout", "20", "--expect-workers", "1")
        fleet = Fleet(host, tmp_path / "r", *words)
        worker = fleet.worker()
        try:
            wait_until(lambda: fleet.lines() > 20, "records of the fleet")
            worker.send_signal(signal.SIGSTOP)
            time.sleep(6)
            worker.send_signal(signal.SIGCONT)
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, worker)
    nothing_is_lost(done)
    assert "missing" not in done.out + done.err
    assert done.summary["lost_workers"] == []


@pytest.mark.long
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_worker_stopped_by_a_signal_sends_its_final_report(clips: Path, tmp_path: Path, stop: signal.Signals) -> None:
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


@pytest.mark.long
def test_killed_master_leaves_readable_results(clips: Path, tmp_path: Path) -> None:
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
    assert own == fleet.lines()  # the report has written the records that it merged
    assert f"Total: {own}, Success: {own}, Fail: 0" in report.stdout
    assert "the run did not finish: its process was killed" in report.stdout


@pytest.mark.long
def test_worker_that_joins_late_takes_part(clips: Path, tmp_path: Path) -> None:
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


@pytest.mark.long
def test_worker_that_joins_while_streams_drain_takes_no_part(clips: Path, tmp_path: Path) -> None:
    """Locust would start users on it and on workers that were told to stop. Their records would have no file."""
    with serve("--engine", "scripted", "--tokens", "160", "--ttft-ms", "30", "--itl-ms", "50") as host:
        words = ("--data", clips, "-u", "4", "--stop-timeout", "20", "--expect-workers", "1", "--enable-rebalancing")
        fleet = Fleet(host, tmp_path / "r", *words)
        workers = [fleet.worker()]
        try:
            wait_until(lambda: running_streams(host) == 4, "four streams")
            fleet.master.send_signal(signal.SIGINT)
            workers.append(fleet.worker())
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, *workers)
    assert len(nothing_is_lost(done)) == 4
    assert [worker["worker"] for worker in info(done)["workers"]] == [0]
    assert "2 workers connected" in done.err  # while streams drained


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "changed", "said"),
    [
        ("manifest.json", (b'"dataset": "set"', b'"dataset": "other"'), "worker 0 has other data in prepared"),
        # Its manifest is the same.
        ("shard-*.arrow", (b"UklG", b"UklH"), "has changed since it was prepared"),
    ],
)
def test_worker_with_other_data_is_refused(
    clips: Path, tmp_path: Path, file: str, changed: tuple[bytes, bytes], said: str
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        shutil.copytree(clips, place / "prepared")
    other = next((there / "prepared").glob(file))
    other.write_bytes(other.read_bytes().replace(*changed))
    with serve(*FAST) as host:
        fleet = Fleet(host, tmp_path / "r", "--data", "prepared", "-u", "2", "--expect-workers", "2", cwd=here)
        workers = [fleet.worker(cwd=there) for _ in range(2)]
        try:
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, *workers)
    assert done.code == 2
    assert done.err.count(said) == 1  # reported once for all workers
    assert done.records == []


@pytest.mark.long
def test_worker_with_a_key_refuses_a_route_set_by_the_master(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host, socket.create_server(("127.0.0.1", 0)) as elsewhere:
        route = ("--upstream", f"127.0.0.1:{elsewhere.getsockname()[1]}")
        fleet = Fleet(host, tmp_path / "r", "--data", clips, "-u", "1", "-t", "3", "--expect-workers", "1", *route)
        worker = fleet.worker(OPENAI_API_KEY="sk-of-the-worker", LOCUST_HOST=host)
        try:
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, worker)
        elsewhere.settimeout(0)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
    assert done.code == 2
    assert f"was started without --upstream, but the master's test runs with --upstream {route[1]}" in done.err
    assert done.records == []


@pytest.mark.long
def test_worker_clock_is_corrected_by_its_offset_to_the_master(clips: Path, tmp_path: Path) -> None:
    ahead = tmp_path / "ahead"
    ahead.mkdir()
    # Python imports this first: the worker's clock is an hour ahead.
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
    assert done.summary["wall_s"] < 3600
    assert "the clock is relative to the master's" in done.out
    assert re.search(r"\+3(599\d{3}|600\d{3})\.\d ± ", done.out)
