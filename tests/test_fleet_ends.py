"""However a fleet ends, there is one record for each request that the server received."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from conftest import CHECKOUT
from harness.fleets import Fleet, end, nothing_is_lost, processes
from harness.patience import PATIENCE_S
from harness.ports import free_port
from harness.runs import POST, Run, locust
from harness.serving import running_streams, serve, wait_until

pytestmark = pytest.mark.long

USERS = 4
PACED = ("--engine", "scripted", "--tokens", "20", "--ttft-ms", "30", "--itl-ms", "10")
"""Streams of a quarter of a second: whenever the test ends, some are in flight."""

ENDS = ("SIGINT", "SIGTERM", "worker SIGTERM", "worker SIGKILL", "master SIGKILL")


REALTIME = int(os.environ.get("REALTIME_KILLS", "5"))
"""How many of the twenty seeds are also tested with realtime sessions. Five cover each way to end."""


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
