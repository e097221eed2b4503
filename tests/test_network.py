"""A server, a master and two workers on separate hosts: network faults lose no record."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import CHECKOUT
from harness.fleets import Fleet, end, info, nothing_is_lost
from harness.netns import Network, network
from harness.runs import FAST, Run
from harness.serving import serve, wait_until

pytestmark = pytest.mark.long

HOSTS = ("server", "master", "one", "two")
MISSING_S = 4.0
"""Locust considers a worker missing after three seconds without a message."""


@pytest.fixture(autouse=True)
def a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token, a master accepts only workers on its machine."""
    monkeypatch.setenv("ASR_LOAD_FLEET_TOKEN", "a-token-of-the-fleet-of-these-tests")


@contextmanager
def fleet_on(net: Network, results: Path, *words: str | Path) -> Iterator[tuple[Fleet, list[subprocess.Popen[str]]]]:
    """Start a server that responds in about 40 ms, a master and two workers. End them all at the exit."""
    with serve(*FAST, "--host", net.addresses["server"], on=net.on("server")) as host:
        fleet = Fleet(host, results, "--expect-workers", "2", *words, on=net.on("master"))
        workers = [fleet.worker(on=net.on(name), master=net.addresses["master"]) for name in ("one", "two")]
        try:
            yield fleet, workers
        finally:
            end(fleet.master, *workers)


def own_lines(fleet: Fleet) -> list[int]:
    """The number of records in each worker's own file."""
    return [fleet.lines(f"worker-00{number}.jsonl") for number in (0, 1)]


def test_delay_and_loss_are_in_the_latencies_and_lose_nothing(clips: Path, tmp_path: Path) -> None:
    delay = 0.06  # for each frame, to each host
    with network(*HOSTS, delay_ms=delay * 1e3, loss=0.01) as net:
        words = ("--data", clips, "-u", "4", "--requests", "90")
        with fleet_on(net, tmp_path / "r", *words) as (fleet, _):
            done = Run(fleet.master, fleet.results)
    assert done.code == 0, done.err
    records = nothing_is_lost(done)
    assert sorted(record["seq"] for record in records) == list(range(90))
    assert len({record["clip"] for record in records if record["seq"] < 30}) == 30
    for record in records:
        assert record["ttft"] >= 0.02 + 2 * delay  # the server's own latency plus the way there and back
    # But not twice the way: a connection opens in one round trip of the same network.
    round_trip = min(record["connect"] for record in records if record["connect"] is not None)
    assert min(record["ttft"] for record in records) < 0.02 + 2 * round_trip
    for worker in info(done)["workers"]:
        # One machine's clock, seen over two ways of the same length.
        assert abs(worker["master_offset_s"]) <= worker["master_offset_error_s"]
        assert delay <= worker["master_offset_error_s"] < round_trip


def test_worker_that_is_cut_off_and_returns_loses_nothing(clips: Path, tmp_path: Path) -> None:
    with network(*HOSTS) as net:
        words = ("--data", clips, "-u", "4", "--stop-timeout", "20")
        with fleet_on(net, tmp_path / "r", *words) as (fleet, _):
            wait_until(lambda: fleet.lines() > 20, "records of the fleet")
            net.cut("two")
            time.sleep(MISSING_S)
            before = own_lines(fleet)
            net.mend("two")
            wait_until(
                lambda: all(now > then + 20 for now, then in zip(own_lines(fleet), before, strict=True)), "both send"
            )
            fleet.master.send_signal(signal.SIGINT)
            done = Run(fleet.master, fleet.results)
    records = nothing_is_lost(done)
    assert {record["outcome"] for record in records} == {"ok"}
    # Only that worker's streams in flight have waited for the network.
    (two,) = (worker["worker"] for worker in info(done)["workers"] if worker["host"] == "two")
    assert {record["worker"] for record in records if record["stream_end"] > MISSING_S} == {two}


def test_worker_whose_host_is_gone_is_reported_lost(clips: Path, tmp_path: Path) -> None:
    with network(*HOSTS) as net:
        words = ("--data", clips, "-u", "4", "--stop-timeout", "5")
        with fleet_on(net, tmp_path / "r", *words) as (fleet, workers):
            wait_until(lambda: min(own_lines(fleet)) > 10, "records of both")
            net.cut("two")
            workers[1].kill()
            time.sleep(MISSING_S)
            fleet.master.send_signal(signal.SIGTERM)
            done = Run(fleet.master, fleet.results)
            own = own_lines(fleet)
    gone, stayed = sorted(info(done)["workers"], key=lambda worker: worker["ended"])
    assert (gone["host"], gone["ended"]) == ("two", False)
    assert (stayed["host"], stayed["ended"]) == ("one", True)
    reasons = done.summary["validity"]["reasons"]
    assert any(f"worker {gone['worker']} on two was lost" in reason for reason in reasons)
    # The workers' files contain everything, and each worker's file has all that it sent.
    assert done.summary["requests"]["total"] == sum(own)
    assert own[stayed["worker"]] == stayed["started"]
    sent = Counter(record["worker"] for record in done.records)
    assert sent[stayed["worker"]] == stayed["started"]
    assert sent[gone["worker"]] <= own[gone["worker"]]


def test_master_that_is_cut_off_and_killed_leaves_readable_results(clips: Path, tmp_path: Path) -> None:
    with network(*HOSTS) as net, fleet_on(net, tmp_path / "r", "--data", clips, "-u", "4") as (fleet, _):
        wait_until(lambda: fleet.lines() > 20, "records of the fleet")
        net.cut("master")
        kept = sum(own_lines(fleet))
        wait_until(lambda: sum(own_lines(fleet)) > kept + 20, "the workers go on")
        fleet.master.kill()
        command = [sys.executable, "scripts/report.py", str(fleet.results)]
    reported = fleet.lines()
    shown = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    own = sum(own_lines(fleet))
    assert own == fleet.lines() > reported  # the report has written the records that it merged
    assert f"Total: {own}, Success: {own}, Fail: 0" in shown
    assert "the run did not finish: its process was killed" in shown


@pytest.mark.parametrize("stall", [1.0, 20.0])
def test_server_that_is_cut_off_and_returns(clips: Path, tmp_path: Path, stall: float) -> None:
    away = 3.0
    with network(*HOSTS) as net:
        patience = ("--stall-timeout", str(stall), "--connect-timeout", "1", "--stop-timeout", "20")
        with fleet_on(net, tmp_path / "r", "--data", clips, "-u", "4", *patience) as (fleet, _):
            wait_until(lambda: fleet.lines() > 20, "records of the fleet")
            net.cut("server")
            time.sleep(away)
            net.mend("server")
            kept = fleet.lines()
            wait_until(lambda: fleet.lines() > kept + 40, "the server answers again")
            fleet.master.send_signal(signal.SIGINT)
            done = Run(fleet.master, fleet.results)
    records = nothing_is_lost(done)
    outcomes = Counter(record["outcome"] for record in records)
    assert records[-1]["ok"]
    if stall < away:
        # Streams in flight stall. Later requests find no server.
        assert outcomes["stalled"] >= 1
        assert set(outcomes) <= {"ok", "stalled", "connect"}
        late = [record["stream_end"] or 0 for record in records if record["outcome"] == "stalled"]
        assert done.code == 1
        assert max(late, default=0) < away + 1
    else:
        assert set(outcomes) == {"ok"}
        assert max(record["stream_end"] for record in records) > away
        assert done.code == 0
