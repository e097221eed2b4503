"""A finished test over time, second by second, as its live view showed it."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict

from asr_load.report.page import compact
from asr_load.results.course import LONGEST_S, course, in_flight_at_start, thinned, width_for
from asr_load.results.live import DRAWN, REALTIME_DRAWN, Live
from asr_load.results.slo import Goodput
from asr_load.stream.record import RealtimeRecord, Record
from conftest import prepare_clips
from harness.browser import locust
from harness.patience import PATIENCE_S
from harness.records import failure, record, run_info
from harness.serving import serve, wait_until

EDGES = [record(0), record(1), failure(2, "http_503", ended_at=1002.5), record(4, text="")]


def test_course_has_one_point_per_second() -> None:
    info = run_info(began_at=1000.0, ended_at=1004.6, users=[(1000.0, 3), (1002.1, 5)])
    points = course(EDGES, info)
    assert [point["t"] for point in points] == [1001.0, 1002.0, 1003.0, 1004.0, 1005.0]
    assert [point["successes_per_s"] for point in points] == [1, 1, 0, 0, 1]
    assert [point["failures_per_s"] for point in points] == [{}, {}, {"http_503": 1}, {}, {}]
    assert points[0]["ttft"] == {"p50": 200.0, "p95": 200.0, "p99": 200.0}
    assert points[2]["ttft"]["p50"] is None
    # A change counts from the second whose end is closest.
    assert [point["users"] for point in points] == [3, 5, 5, 5, 5]
    assert course([], info) == []
    assert width_for(3600, 300) == 15


def test_of_a_long_test_only_the_last_day_is_shown() -> None:
    last = 1000.5 + 3 * LONGEST_S
    records = [record(0, started_at=1000.2), record(1, started_at=last - LONGEST_S / 2), record(2, started_at=last)]
    points = course(records, run_info(began_at=0.0, ended_at=1e11 - 0.5))
    assert points[-1]["t"] == 1e11
    assert len(points) == LONGEST_S
    points = course(records, run_info(began_at=1000.0, ended_at=last + 1))
    assert len(points) == LONGEST_S
    assert points[-1]["t"] == last + 1.5
    assert [point["t"] for point in points if point["successes_per_s"]] == [
        pytest.approx(last - LONGEST_S / 2 + 0.5),
        pytest.approx(last + 0.5),
    ]


def test_in_flight_counts_requests_at_the_end_of_a_second_and_warm_up() -> None:
    records = [
        record(0, started_at=1000.2, e2el=1.5),
        record(1, started_at=1000.4, e2el=2.0, warmup=True),
        record(2, started_at=1001.1, e2el=0.3),
    ]
    points = course(records, run_info(began_at=1000.0, ended_at=1002.9))
    # The last second is cut short: it has the last whole second's number.
    assert [point["in_flight"] for point in points] == [2, 1, 1]
    assert [point["successes_per_s"] for point in points] == [0, 2, 0]


@pytest.mark.parametrize("is_realtime", [False, True])
def test_report_draws_the_points_of_the_tab(is_realtime: bool) -> None:
    """The live view gets the records as they end, and the numbers of users and requests once a second."""
    records: list[Record] = [
        record(n, started_at=1000.3 + 0.37 * n, ttft=0.1 + n % 7 / 20, e2el=0.9) for n in range(60)
    ]
    records[5].output_tokens = None
    records[9:11] = [failure(9, "cut", started_at=1003.0, ended_at=1004.7), record(10, warmup=True, started_at=1003.3)]
    if is_realtime:
        records = [RealtimeRecord(**asdict(one), ttfs=0.3, rtf_live=0.5, dialect="vllm") for one in records]
    info = run_info(began_at=1000.0, ended_at=1023.4, goodput="ttft:250", users=[(1001.02, 2), (1004.03, 4)])
    info.realtime = {"dialect": "vllm"} if is_realtime else {}
    live = Live(1000.0, REALTIME_DRAWN if is_realtime else DRAWN, Goodput("ttft:250"))
    for second in range(24):
        end = 1001.0 + second
        ended = [one for one in records if end - 1 <= one.end < end and not one.warmup]
        live.add(ended, [one.end for one in ended])
        if second < 23:
            in_flight = sum(one.started_at <= end < one.end for one in records)
            live.tick(end + 0.03, 4 if second > 2 else 2, in_flight, complete_until=end)
    live.close(1023.4)
    assert len(live.points()) == 24
    assert course(records, info) == live.points()


def test_points_of_hours_keep_the_highest_values_and_mean_rates() -> None:
    points: list[dict[str, Any]] = [
        {
            "t": 1.0 + n,
            "users": n % 3,
            "successes_per_s": 5 if n == 9 else 0,
            "tokens_per_s": None if n == 0 else 10,
            "rtfx": 1.0,
            "ttft": {"p50": None if n < 8 else n},
            "failures_per_s": {"cut": 1} if n == 9 else {},
        }
        for n in range(1201)
    ]
    thin = thinned(points)
    assert len(thin) == 401
    rates: dict[str, Any] = {"successes_per_s": 0, "tokens_per_s": None, "rtfx": 0.6, "failures_per_s": {"cut": 0}}
    assert thin[0] == {"t": 3.0, "users": 2, "ttft": {"p50": None}, **rates}
    rates = {"successes_per_s": 1, "tokens_per_s": 10, "rtfx": 1.0, "failures_per_s": {"cut": 0.2}}
    assert thin[3] == {"t": 12.0, "users": 2, "ttft": {"p50": 11}, **rates}
    assert thinned(points[:600]) == points[:600]


def test_requests_in_flight_at_each_start() -> None:
    records = [record(n, started_at=1000.0 + n / 10, stream_end=0.25) for n in range(4)]
    assert in_flight_at_start(records).tolist() == [1, 2, 3, 3]


@pytest.mark.long
def test_report_of_a_real_test_draws_the_points_of_its_tab(tmp_path: Path) -> None:
    clips, results = prepare_clips(tmp_path, {f"clip{n}": 0.5 for n in range(6)}), tmp_path / "run"
    words = ("--data", clips, "--results", results, "--autostart", "-u", "3", "-r", "3", "--requests", "200")
    server = ("--engine", "scripted", "--tokens", "6", "--ttft-ms", "40", "--itl-ms", "5", "--fault", "503=0.05")
    with serve(*server) as host, locust("--host", host, *words) as ui:

        def tab() -> dict[str, Any]:
            with urllib.request.urlopen(ui.url + "streaming/points", timeout=PATIENCE_S) as response:
                found: dict[str, Any] = json.loads(response.read())
            return found

        wait_until(lambda: (results / "report.html").exists() and not tab()["running"], "the end of the test")
        drawn = tab()
    page = re.search(r'id="plots">(.*?)</script>', (results / "report.html").read_text())
    assert page is not None
    reported = json.loads(page[1])["course"]
    assert reported["began"] == drawn["began"]
    assert len(drawn["points"]) >= 3
    # The live view samples the requests in flight, and the report counts them.
    for points in (reported["points"], drawn["points"]):
        for point in points:
            assert 0 <= point.pop("in_flight") <= 3
    assert reported["points"] == compact(drawn["points"])
