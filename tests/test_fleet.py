"""A master and its workers as real processes: work is shared, and however they end, each request has one record."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from conftest import CHECKOUT
from harness.fleets import SLOW, Fleet, end, info, nothing_is_lost, processes
from harness.patience import PATIENCE_S
from harness.ports import free_port
from harness.runs import FAST, POST, Run, locust, run
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


USERS = 4
PACED = ("--engine", "scripted", "--tokens", "20", "--ttft-ms", "30", "--itl-ms", "10")
"""Streams of a quarter of a second: whenever the test ends, some are in flight."""

ENDS = ("SIGINT", "SIGTERM", "worker SIGTERM", "worker SIGKILL", "master SIGKILL")


REALTIME = int(os.environ.get("REALTIME_KILLS", "5"))
"""How many of the twenty seeds are also tested with realtime sessions. Five cover each way to end."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("seed", "api"), [(seed, "chat") for seed in range(20)] + [(seed, "realtime") for seed in range(REALTIME)]
)
def test_every_way_to_end_a_fleet_keeps_one_record_per_request(
    clips: Path, tmp_path: Path, seed: int, api: str
) -> None:
    chance = random.Random(seed)
    how, patience = ENDS[seed % len(ENDS)], chance.choice(("0", "20"))
    results, stamps = tmp_path / "r", tmp_path / "stamps"
    with serve(*PACED, "--stamps", str(stamps), "--realtime", "vllm", "--final-ms", "200") as host:
        words = ("--data", clips, "-u", str(USERS), "--expect-workers", "2", "--stop-timeout", patience, "--api", api)
        fleet = Fleet(host, results, *words)
        workers = [fleet.worker(), fleet.worker()]
        try:
            wait_until(lambda: running_streams(host) == USERS, "four streams")
            time.sleep(chance.uniform(0, 2))
            if how == "master SIGKILL":
                fleet.master.kill()
                end(*workers)
            elif how.startswith("worker"):
                workers[1].send_signal(getattr(signal, how.split()[1]))
                wait_until(lambda: workers[1].poll() is not None, "the worker has ended")
                time.sleep(chance.uniform(0, 1))
                fleet.master.send_signal(signal.SIGINT)
            else:
                fleet.master.send_signal(getattr(signal, how))
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, *workers)
        wait_until(lambda: running_streams(host) == 0, "the server has noticed")
    if how == "master SIGKILL":
        command = [sys.executable, "scripts/report.py", str(results)]
        subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True)

    seen = [line["request_id"] for line in map(json.loads, stamps.read_text().splitlines())]
    assert len(set(seen)) == len(seen)  # a request is retried only if the server has not received it
    kept = requests_in(results)
    missing = set(seen) - kept
    assert kept <= set(seen)
    # Killed processes could not record the requests in flight.
    killed = {"worker SIGKILL": 1, "master SIGKILL": 2}.get(how, 0)
    assert len(missing) <= killed * USERS // 2, missing
    assert done.summary["requests"]["total"] == len(kept)
    if not killed:
        outcomes = {record["outcome"] for record in nothing_is_lost(done)}
        assert outcomes <= ({"ok"} if patience == "20" else {"ok", "unfinished"})


def requests_in(results: Path) -> set[str]:
    """Ids of the requests that have a record in a run's files. Check that no file has two records of one."""
    run = json.loads((results / "run.json").read_text())["id"]
    kept: set[str] = set()
    for file in results.glob("*.jsonl"):
        whole = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        ids = [f"{run}-{record['worker']}-{record['seq']}" for record in map(json.loads, whole)]
        assert len(set(ids)) == len(ids)
        kept.update(ids)
    return kept


@pytest.mark.long
def test_stop_button_ends_a_fleet(clips: Path, tmp_path: Path) -> None:
    results, port, web = tmp_path / "r", str(free_port()), free_port()
    with serve(*PACED) as host:
        fleet = ("--processes", "2", "--master-bind-port", port, "--master-port", port)
        command = [sys.executable, "-m", "locust", "--host", host, "--data", str(clips), "--results", str(results)]
        master = subprocess.Popen(
            [*command, *fleet, "--web-port", str(web), "--stop-timeout", "20", "--json-file", str(results / "locust")],
            cwd=CHECKOUT,
            env={**os.environ, "LOCUST_SKIP_MONKEY_PATCH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            page = f"http://127.0.0.1:{web}"
            wait_until(lambda: workers_at(page) == 2, "two workers")
            with urlopen(f"{page}/swarm", urlencode({"user_count": USERS, "spawn_rate": 100}).encode()) as answer:
                assert json.load(answer)["success"]
            wait_until(lambda: running_streams(host) == USERS, "four streams")
            with urlopen(f"{page}/stop", b"") as answer:
                assert json.load(answer)["success"]
            assert running_streams(host) == 0
            kept = len((results / "records.jsonl").read_bytes().splitlines())
            os.killpg(master.pid, signal.SIGINT)
            done = Run(master, results)
        finally:
            end(master)
    records = done.records
    assert len(records) == kept
    assert {record["outcome"] for record in records} == {"ok"}
    assert done.summary["requests"]["total"] == kept


def workers_at(page: str) -> int:
    try:
        with urlopen(f"{page}/stats/requests", timeout=PATIENCE_S) as answer:
            return len(json.load(answer)["workers"])
    except OSError:
        return 0


@pytest.mark.long
def test_locusts_own_files_of_a_fleet_have_the_same_counts(clips: Path, tmp_path: Path) -> None:
    results = tmp_path / "r"
    results.mkdir()
    with serve(*PACED) as host:
        files = ("--data", clips, "--results", results, "--json-file", results / "locust")
        words = (*processes(2), "-u", "4", "-r", "100", "-t", "3", "--stop-timeout", "20")
        shown = ("--html", results / "report.html", "--csv", results / "locust")
        done = Run(locust("--host", host, *files, *words, *shown), results)
    records = nothing_is_lost(done)
    table = (results / "locust_stats.csv").read_text().splitlines()
    rows = {row["Name"]: row for row in csv.DictReader(table)}
    assert int(rows[POST[1]]["Request Count"]) == int(rows["Aggregated"]["Request Count"]) == len(records)
    assert int(rows[f"{POST[1]} inter-token latency"]["Request Count"]) == sum(len(record["itl"]) for record in records)
    page = (results / "report.html").read_text()
    counts = re.findall(r'"method": "POST".{0,400}?"num_requests": (\d+)', page)
    assert counts
    assert set(map(int, counts)) == {len(records)}
