"""Locust's own statistics, with rows of the stream added."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator

import locust.stats
import numpy as np
import pytest
from locust.env import Environment
from locust.stats import StatsEntry

from asr_load.load import locust_internals, stats
from harness.records import failure, record


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    monkeypatch.setattr(locust.stats, "bucket_response_time", locust.stats.bucket_response_time)
    made = Environment()
    runner = made.create_local_runner()  # its listener feeds the statistics
    stats.set_up(made)
    yield made
    runner.quit()


def test_aggregated_row_counts_only_requests(environment: Environment) -> None:
    stats.LocustRows(environment, "/v1/x").add([record(0), record(1, e2el=0.8), failure(2, "http_500")])
    post = environment.stats.get("/v1/x", "POST")
    total = environment.stats.total
    for name in ("num_requests", "num_failures", "median_response_time", "max_response_time", "total_response_time"):
        assert getattr(total, name) == getattr(post, name), name
    assert (post.num_requests, post.num_failures, post.num_none_requests) == (3, 1, 1)
    assert post.max_response_time == 800
    counts = {method: entry.num_requests for (_, method), entry in environment.stats.entries.items()}
    assert counts == {"POST": 3, "TTFT": 2, "ITL": 4, "TPOT": 2}


def test_failure_has_no_latency_in_any_row(environment: Environment) -> None:
    stats.LocustRows(environment, "/v1/x").add([failure(0, "cut", ttft=9.0, e2el=9.0, chunks=1)])
    assert list(environment.stats.entries) == [("/v1/x", "POST")]
    assert environment.stats.get("/v1/x", "POST").max_response_time == 0
    assert [str(error.error) for error in environment.stats.errors.values()] == ["cut: why"]


def test_errors_that_differ_by_an_id_share_a_row_and_rows_are_bounded(environment: Environment) -> None:
    rows = stats.LocustRows(environment, "/v1/x")
    rows.add([failure(n, "stream_error", error=f"request {n:032x} failed at {10**9 + n}") for n in range(9)])
    assert [(str(error.error), error.occurrences) for error in environment.stats.errors.values()] == [
        ("stream_error: request … failed at …", 9)
    ]
    rows.add([failure(n, "http_500", error=f"error of kind {n}") for n in range(stats.ERROR_ROWS + 9)])
    counts = {str(error.error): error.occurrences for error in environment.stats.errors.values()}
    assert len(counts) == 1 + stats.ERROR_ROWS + 1
    assert counts["http_500: other messages: see records.jsonl"] == 9
    assert counts["http_500: error of kind 3"] == 1


@pytest.mark.parametrize("low", [0.02, 1, 10, 100, 1000, 10_000])
def test_buckets_are_within_half_a_percent(low: float) -> None:
    values = np.random.default_rng(0).uniform(low, low * 10, 2000)
    floor = 0.005 if low < 1 else 0.0
    assert all(abs(stats.bucket(value) - value) <= max(0.00501 * value, floor) for value in values.tolist())
    assert len({stats.bucket(value) for value in values.tolist()}) <= 1000
    assert stats.buckets(values).tolist() == [stats.bucket(value) for value in values.tolist()]


def test_buckets_at_the_edges_of_decades() -> None:
    edges = [0.0, 0.994, 0.996, 1.0, 9.994, 9.996, 10.0, 99.94, 99.96, 100.0, 999.4, 999.6, 1000.0, 99_951.0]
    assert stats.buckets(np.array(edges)).tolist() == [stats.bucket(edge) for edge in edges]


def test_values_logged_in_batches_equal_one_event_each(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.time", lambda: now)
    gaps = np.random.default_rng(1).uniform(0.0001, 3, 200).tolist()
    made = [record(0, itl=gaps[:count], chunks=count + 1) for count in (200, 1, 0, 2)]
    seen: list[float] = []

    def log(path: str) -> list[StatsEntry]:
        nonlocal now
        now = float(int(environment.stats.start_time)) + 10
        for records in (made[:2], made[2:3], made[3:]):
            stats.LocustRows(environment, path).add(records)
            now += 3
        return [entry for (name, _), entry in environment.stats.entries.items() if name.startswith(path)]

    at_once = log("/v1/x")
    environment.events.request.add_listener(lambda response_time, **_: seen.append(response_time))
    one_by_one = log("/v1/y")
    assert len(seen) == 203 + 3 * 4  # with another listener, each value fires an event
    assert [entry.method for entry in at_once] == ["POST", "TTFT", "ITL", "TPOT"]
    for one, other in zip(at_once, one_by_one, strict=True):
        ours, theirs = dict(one.serialize()), dict(other.serialize())
        assert ours.pop("total_response_time") == pytest.approx(theirs.pop("total_response_time"))
        assert {**ours, "name": ""} == {**theirs, "name": ""}
        assert one.response_times_cache == other.response_times_cache


@pytest.mark.parametrize("json", [False, True])
def test_old_counts_per_second_are_dropped_unless_locust_needs_them(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, json: bool
) -> None:
    environment.parsed_options = Namespace(json=json, json_file=None)
    now = float(int(time.time()))
    monkeypatch.setattr("time.time", lambda: now)
    for _ in range(200):
        now += 1
        stats.LocustRows(environment, "/v1/x").add([record(0), failure(1, "cut")])
        locust_internals.forget_old_seconds(environment)
    post = environment.stats.get("/v1/x", "POST")
    assert (post.num_requests, post.num_failures) == (400, 200)
    assert (post.current_rps, post.current_fail_per_sec) == (2.0, 1.0)
    kept = 200 if json else locust_internals.READ_S
    for entry in (environment.stats.total, *environment.stats.entries.values()):
        assert len(entry.num_reqs_per_sec) == pytest.approx(kept, abs=1)
    assert len(post.num_fail_per_sec) == pytest.approx(kept, abs=1)
