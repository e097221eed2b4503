"""The search for capacity: the loads that it tries, when a step is settled, and whether the answer is correct."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from asr_load.errors import InputError
from asr_load.results.capacity import (
    PRECISION,
    Search,
    judge,
    knee,
    read_capacity,
    server_gone,
    write_capacity,
)
from asr_load.results.decide import decide
from asr_load.results.judge_slos import judge_slos
from asr_load.results.normalizers import Scoring
from asr_load.results.slo import parse_slo, parse_slos
from asr_load.stream.record import Record
from harness.records import failure, record
from harness.searches import search_of


def search(holds: Callable[[float], bool], most: float, *, whole: bool) -> tuple[Search, list[float]]:
    found, tried = Search(most, whole=whole), []
    while (load := found.next()) is not None:
        tried.append(load)
        found.take(load, holds(load))
    return found, tried


@pytest.mark.parametrize("capacity", [0, 1, 2, 3, 7, 48, 63, 64, 777])
def test_search_over_streams_ends_at_the_capacity(capacity: int) -> None:
    found, tried = search(lambda load: load <= capacity, 1000, whole=True)
    assert found.good <= capacity <= found.good + max(1, PRECISION * capacity) - (capacity < 50)
    assert len(set(tried)) == len(tried) <= 2 * len(bin(max(capacity, 1))) + 2
    assert not found.at_the_bound


@pytest.mark.parametrize("capacity", [0.05, 0.7, 3.3, 48.1])
def test_search_over_rates_ends_near_the_capacity(capacity: float) -> None:
    found, _ = search(lambda load: load <= capacity, 100, whole=False)
    assert found.good <= capacity <= found.good * (1 + 2 * PRECISION) or found.bad == pytest.approx(capacity, rel=0.5)
    assert found.good == pytest.approx(capacity, rel=0.03)


def test_search_stops_at_its_upper_bound() -> None:
    found, tried = search(lambda _: True, 20, whole=True)
    assert tried == [1, 2, 4, 8, 16, 20]
    assert (found.good, found.at_the_bound) == (20, True)
    nothing, _ = search(lambda _: False, 20, whole=False)
    assert nothing.good == 0


def test_slo_of_a_step_is_decided_as_for_a_whole_run() -> None:
    slo = parse_slo("ttft:p95:500")
    for above in range(12):
        records = [record(n, ttft=0.6 if n < above else 0.2) for n in range(110)]
        found = decide(slo, records, Scoring())
        assert found.ok is judge_slos([slo], records, Scoring())[0].ok
        assert found.value == judge_slos([slo], records, Scoring())[0].value


def simulate(arrivals: np.ndarray, services: np.ndarray, slots: int) -> list[Record]:
    """Records of a first-come, first-served server with these slots. TTFT is waiting time plus service time."""
    free = [0.0] * slots
    records = []
    for n, (due, service) in enumerate(zip(arrivals, services, strict=True)):
        begins = max(due, heapq.heappop(free))
        heapq.heappush(free, begins + service)
        took = begins + service - due
        records.append(record(n, started_at=due, due_at=due, lag=0.0, ttft=took, e2el=took, itl=[]))
    return records


@pytest.mark.long
def test_search_finds_the_rate_of_queueing_theory() -> None:
    """M/M/1: at rate r and service rate s, the time in the system is exponential with rate s - r. Its 95th percentile
    is ln 20 / (s - r), its mean 1 / (s - r)."""
    service = 100.0
    for slo, truth in (("e2el:p95:100", service - np.log(20) / 0.1), ("e2el:mean:50", service - 1 / 0.05)):
        random = np.random.default_rng(3)

        def holds(rate: float, slo: str = slo, random: np.random.Generator = random) -> bool:
            arrivals = np.cumsum(random.exponential(1 / rate, 20_000))
            records = simulate(arrivals, random.exponential(1 / service, 20_000), 1)
            return judge([parse_slo(slo)], records[500:], Scoring(), least=0, is_open=True).ok

        found, _ = search(holds, 1000, whole=False)
        assert found.good == pytest.approx(truth, rel=0.05)


def test_growing_queue_is_beyond_capacity_whatever_the_limit() -> None:
    def holds(rate: float) -> bool:
        records = simulate(np.arange(2000) / rate, np.full(2000, 0.08), 4)
        return judge([parse_slo("ttft:p95:60000")], records, Scoring(), least=0, is_open=True).ok

    found, _ = search(holds, 1000, whole=False)
    assert found.good == pytest.approx(4 / 0.08, rel=0.05)


def test_lag_counts_against_the_slo_in_an_open_loop() -> None:
    records = [record(n, due_at=n * 0.1, lag=0.4 if n % 10 == 0 else 0.0) for n in range(200)]
    slos = parse_slos(["ttft:p95:500"])
    assert not judge(slos, records, Scoring(), least=0, is_open=True).ok
    assert judge(slos, records, Scoring(), least=0, is_open=False).ok


def test_passing_step_needs_a_minimum_of_requests() -> None:
    records = [record(n) for n in range(200)]
    slos = parse_slos(["ttft:p95:500"])
    assert judge(slos, records, Scoring(), least=180, is_open=False).settled
    assert not judge(slos, records, Scoring(), least=300, is_open=False).settled
    broken = [record(n, ttft=0.9) for n in range(200)]
    assert judge(slos, broken, Scoring(), least=300, is_open=False).settled


def test_knee_is_where_throughput_stops_growing() -> None:
    bent = knee(search_of({1: 2, 2: 4, 4: 8, 8: 15.5, 16: 16, 32: 16}).steps)
    assert bent is not None
    assert bent.load == 8
    assert knee(search_of({1: 2, 2: 4}).steps) is None


@pytest.mark.parametrize(
    "rates",
    [
        {1: 2, 2: 4, 4: 8, 8: 16},  # a straight line
        {1: 2, 2: 4, 4: 7, 8: 12, 16: 14},  # it doubled after the point farthest from the line
        {1: 2, 2: 4, 4: 8, 8: 16, 9: 18},
    ],
)
def test_no_knee_while_throughput_grows(rates: dict[float, float]) -> None:
    assert knee(search_of(rates).steps) is None


def test_server_is_gone_if_nothing_succeeds_and_all_fail_as_if_it_were() -> None:
    gone = [failure(seq, each) for seq, each in enumerate(("cut", "connect", "http_500", "ws_503", "closed_1006"))]
    assert server_gone(gone)
    assert server_gone([*gone, failure(9, "unfinished")])
    assert not server_gone([failure(9, "unfinished")])
    for outcome in ("ok", "http_429", "timeout", "stalled", "client", "closed_1009"):
        assert not server_gone([*gone, record(9, outcome=outcome)])


def test_capacity_is_written_and_read_back(tmp_path: Path) -> None:
    found = search_of({4: 8, 8: 15})
    write_capacity(tmp_path, found)
    assert read_capacity(tmp_path) == found
    with pytest.raises(InputError, match="holds no search"):
        read_capacity(tmp_path / "elsewhere")
