"""The next test after the first: with other values, in one process or with the same fleet."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import pytest

from conftest import CHECKOUT
from harness.fleets import end
from harness.serving import running_streams, serve, wait_until
from harness.ui import ui

pytestmark = pytest.mark.long

PACED = ("--engine", "scripted", "--tokens", "20", "--ttft-ms", "30", "--itl-ms", "10")
LONG = ("--engine", "scripted", "--tokens", "140", "--ttft-ms", "30", "--itl-ms", "50")
KINDS = ("one process", "--processes", "master and workers")
PATIENCE = ("--stop-timeout", "60")
"""Longer than any wait of these tests: a worker that slept for it would miss the next test."""


@pytest.mark.parametrize("kind", KINDS)
def test_three_tests_in_a_row(clips: Path, tmp_path: Path, kind: str) -> None:
    with serve(*PACED) as host, ui(kind, host, clips, tmp_path, *PATIENCE) as page:
        # The first test ends by its run time. The same form values are valid a second time.
        for number, tokens in ((1, "7"), (2, "8")):
            page.start(run_time="2s", max_tokens=tokens)
            wait_until(partial(page.ended, number), f"the end of test {number}")
            assert page.asked(number)["max_tokens"] == int(tokens)
        # A refused form changes nothing, and the next one is judged independently.
        for name, bad in (("max_tokens", "x"), ("run_time", "soon"), ("user_count", "0"), ("results", "/x")):
            form: dict[str, str | int | float] = {"user_count": 4, "spawn_rate": 100, name: bad}
            assert not page.post("/swarm", **form)["success"]
        page.start(run_time="")
        wait_until(lambda: page.lines(3) >= 4, "records of the third")
        assert page.asked(3)["max_tokens"] == 8
        # Edit the running test: users may change, other settings may not.
        page.start(user_count=6)
        wait_until(lambda: running_streams(host) == 6, "six streams")
        refused = page.post("/swarm", user_count=6, spawn_rate=9, model="x")
        assert "model cannot change during a test" in refused["message"]
        page.post("/stats/reset")
        before = page.lines(3)
        wait_until(lambda: page.lines(3) > before, "records after the reset")
        assert page.post("/stop")["success"]
        assert page.ended(3)
        for number in (1, 2, 3):
            records = [json.loads(line) for line in (page.folder(number) / "records.jsonl").read_text().splitlines()]
            assert {record["outcome"] for record in records} == {"ok"}
            assert page.summary(number)["requests"]["success"] == len(records) >= 4
            workers = {record["worker"] for record in records}
            assert workers == ({0} if kind == "one process" else {0, 1})
            assert page.summary(number)["lost_workers"] == []
        assert all(process.poll() is None for process in page.processes)
        assert "Discarded report" not in page.said
        assert "Traceback" not in page.said


@pytest.mark.parametrize("kind", KINDS[1:])
def test_idle_workers_stay_connected(clips: Path, tmp_path: Path, kind: str) -> None:
    # By default, a worker ends after a minute without the master's heartbeat. Here it ends after four seconds, so that
    # nine seconds stand for a long idle time.
    short = tmp_path / "short.py"
    short.write_text("import locust.runners\nlocust.runners.MASTER_HEARTBEAT_TIMEOUT = 4\n")
    files = ("-f", f"{CHECKOUT / 'locustfiles' / 'transcribe.py'},{short}")
    with serve(*PACED) as host, ui(kind, host, clips, tmp_path, *PATIENCE, files=files) as page:
        for number in (1, 2):
            page.start(run_time="1s")
            wait_until(partial(page.ended, number), f"the end of test {number}")
            time.sleep(9)
        assert {record["worker"] for record in page.asked(2)["workers"]} == {0, 1}
        assert "Didn't get heartbeat" not in page.said


def test_start_without_a_worker_is_refused(clips: Path, tmp_path: Path) -> None:
    with serve(*PACED) as host, ui("a master alone", host, clips, tmp_path) as page:
        answer = page.post("/swarm", user_count=4, spawn_rate=100)
        assert (answer["success"], answer["message"].partition(":")[0]) == (False, "no worker is connected")
        assert not page.results.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_second_start_or_stop_while_a_test_ends(clips: Path, tmp_path: Path, kind: str) -> None:
    """A second test is refused, and a second STOP waits for the end like the first."""
    with serve(*LONG) as host, ui(kind, host, clips, tmp_path, *PATIENCE) as page:
        page.start(run_time="2s")
        wait_until(lambda: "the run time is over" in page.said, "the time limit")
        assert "is still finishing" in page.post("/swarm", user_count=4, spawn_rate=100)["message"]
        assert page.post("/stop")["success"]
        assert page.ended(1)
        assert page.summary(1)["requests"]["by_outcome"] == {"ok": 4}
        page.start(run_time="2s")
        wait_until(lambda: page.ended(2), "the end of the second test")
        assert page.summary(2)["requests"]["by_outcome"] == {"ok": 4}


SLOW_START = """
import time
import gevent
from locust import events

@events.test_start.add_listener
def _begin(environment, **_):
    if getattr(environment.runner, "worker_index", 0):
        gevent.sleep(1.5)  # and meanwhile reports by heartbeat that it is ready
    elif hasattr(environment.runner, "worker_index"):
        time.sleep(2.5)
"""


@pytest.mark.parametrize("kind", KINDS[1:])
def test_worker_that_starts_late_is_stopped_with_the_test(clips: Path, tmp_path: Path, kind: str) -> None:
    """The master also stops the late worker. Otherwise it would send while the others drain."""
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW_START)
    files = ("-f", f"{slow},{CHECKOUT / 'locustfiles' / 'transcribe.py'}")
    with serve(*LONG) as host, ui(kind, host, clips, tmp_path, *PATIENCE, files=files, workers=files) as page:
        page.start(run_time="1s")
        wait_until(lambda: page.ended(1), "the end of the test")
        assert page.summary(1)["requests"]["by_outcome"] == {"ok": 4}
        assert page.summary(1)["lost_workers"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_run_time_of_a_test_does_not_end_the_next(clips: Path, tmp_path: Path, kind: str) -> None:
    words = ("--autostart", "-u", "2", "-t", "4s", *PATIENCE)
    with serve(*PACED) as host, ui(kind, host, clips, tmp_path, *words) as page:
        wait_until(lambda: page.lines(1) >= 2, "records of the first test")
        began = time.monotonic()
        page.post("/stop")
        page.start()
        time.sleep(max(0.0, began + 5 - time.monotonic()))
        assert not page.ended(2)
        page.post("/stop")
        assert page.ended(2)


OPEN = ("--request-rate", "20")
SHAPES = ("-f", "locustfiles/transcribe.py,locustfiles/shapes.py")
SEARCH = ("-f", "locustfiles/capacity.py")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), OPEN),
        (SHAPES, ("--shape", "steps", "--stages", "2", "--stage-time", "2")),
        (SEARCH, ("--slo", "ttft:p95:60000", "--step-time", "2", "--allow-client-bound")),
    ],
    ids=["open loop", "shape", "search"],
)
def test_second_test_with_an_open_loop_shape_or_search(
    clips: Path, tmp_path: Path, kind: str, files: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with serve(*PACED) as host, ui(kind, host, clips, tmp_path, *PATIENCE, *words, files=files) as page:
        for number in (1, 2):
            page.start(user_count=2, **({"run_time": "3s"} if words is OPEN else {}))
            wait_until(lambda: running_streams(host) > 0, f"streams of test {number}")
            if files:
                answer = page.post("/swarm", user_count=3, spawn_rate=1)
                assert "a shape controls the load" in answer["message"]
            wait_until(partial(page.ended, number), f"the end of test {number}")
            assert page.summary(number)["requests"]["success"] >= 2
            assert page.summary(number)["requests"]["fail"] == 0


def test_constant_load_over_two_workers_is_drawn_as_constant(clips: Path, tmp_path: Path) -> None:
    # Each request takes 0.1 s: 40 streams per second of 20 tokens, reported every three seconds by each worker.
    paced = ("--engine", "scripted", "--tokens", "20", "--ttft-ms", "10", "--itl-ms", "4.7")
    words = (*PATIENCE, "--request-rate", "40", "--arrivals", "constant")
    with serve(*paced) as host, ui("master and workers", host, clips, tmp_path, *words) as page:
        page.start(user_count=20, run_time="14s")
        wait_until(lambda: len(page.get("/streaming/points")["points"]) >= 2, "points of the chart")
        early = page.get("/streaming/points")["points"]
        wait_until(lambda: page.ended(1), "the end")
        late = page.get("/streaming/points")["points"]
        report = page.text_of("/stats/report")
    drawn = [point for point in late if point["tokens_per_s"]]
    assert len(drawn) >= 12
    records = [json.loads(line) for line in (page.folder(1) / "records.jsonl").read_text().splitlines()]
    assert {record["worker"] for record in records} == {0, 1}
    # The times of a worker's records are as accurate as its clock offset.
    error = 2 * max(worker["master_offset_error_s"] for worker in page.asked(1)["workers"]) + 1e-3

    def ended(begin: float, end: float) -> int:
        return sum(begin <= record["ended_at"] < end for record in records)

    for point in drawn[1:-2]:  # the first and the last are not whole seconds
        begin, end = point["t"] - 1, point["t"]
        least, most = ended(begin + error, end - error), ended(begin - error, end + error)
        assert 20 * least <= point["tokens_per_s"] <= 20 * most
        assert 0.1 * least - 1e-6 <= point["rtfx"] <= 0.1 * most + 1e-6
        assert point["ttft"]["p50"] is not None
    # Points drawn during the test do not change.
    assert 2 <= len(early) < len(late)
    assert early == late[: len(early)]
    assert json.dumps(drawn[3]["t"]) in report


def test_tab_shows_a_lost_worker_immediately(clips: Path, tmp_path: Path) -> None:
    with serve(*PACED) as host, ui("master and workers", host, clips, tmp_path, *PATIENCE) as page:
        page.start()
        wait_until(lambda: page.lines(1) >= 8, "records")
        page.processes[2].kill()
        lost = "was lost"
        wait_until(lambda: lost in str(page.get("/streaming/points")["validity"]["reasons"]), "the tab says so")
        assert page.get("/streaming/points")["validity"]["verdict"] != "valid"
        page.post("/stop")
        assert len(page.summary(1)["lost_workers"]) == 1
        # The remaining worker takes part in the next test.
        page.start(run_time="1s", user_count=2)
        wait_until(lambda: page.ended(2), "the end of the second test")
        assert page.summary(2)["lost_workers"] == []


def test_fleet_that_lost_its_last_worker_ends(clips: Path, tmp_path: Path) -> None:
    from harness.fleets import Fleet

    with serve(*PACED) as host:
        words = ("--data", clips, "-u", "2", "--requests", "100000", "--expect-workers", "1")
        fleet = Fleet(host, tmp_path / "r", *words)
        worker = fleet.worker()
        try:
            wait_until(lambda: fleet.lines() >= 2, "records")
            worker.kill()
            wait_until(lambda: fleet.master.poll() is not None, "the master has ended")
            assert fleet.master.returncode == 1
        finally:
            end(fleet.master, worker)
