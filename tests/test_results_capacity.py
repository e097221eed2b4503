"""The search for capacity: the loads that it tries, when a step is settled, and whether the answer is correct."""

from __future__ import annotations

import heapq
import io
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from asr_load.errors import InputError
from asr_load.report.capacity import print_search
from asr_load.results.capacity import (
    PRECISION,
    Search,
    answer_lines,
    judge,
    knee,
    read_capacity,
    server_gone,
    write_capacity,
)
from asr_load.results.decide import LEAST, LOOKS, decide
from asr_load.results.normalizers import Scoring
from asr_load.results.slo import judge_slos, parse_slo, parse_slos
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


def test_percentile_is_settled_when_the_share_above_the_limit_is() -> None:
    slo = parse_slo("ttft:p95:500")

    def of(above: int, below: int) -> tuple[bool, bool]:
        found = decide(slo, [record(n, ttft=0.6 if n < above else 0.2) for n in range(above + below)], Scoring())
        return found.ok, found.settled

    assert of(0, LEAST - 1) == (True, False)
    assert of(0, 140) == (True, False)  # none of 140 above: the true share may be up to 5.3 %
    assert of(0, 160) == (True, True)
    assert of(5, 95) == (True, False)  # at the limit, more requests may decide
    assert of(15, 85) == (False, True)
    assert of(40, 960) == (True, False)
    assert of(25, 975) == (True, True)


@pytest.mark.long
@pytest.mark.parametrize(("share", "most_wrong"), [(0.05, 0.08), (0.04, 0.04), (0.065, 0.04)])
def test_wrong_slo_decisions_are_as_rare_as_stated(share: float, most_wrong: float) -> None:
    """Count wrong decisions over all looks at a step until it is settled. Exactly at the limit, each one is wrong."""
    slo = parse_slo("ttft:p95:500")
    random = np.random.default_rng(5)
    rounds, wrong = 150, 0
    for _ in range(rounds):
        records = [record(n, ttft=0.6 if above else 0.2) for n, above in enumerate(random.random(1500) < share)]
        count = LEAST
        while count <= len(records):
            found = decide(slo, records[:count], Scoring())
            if found.settled:
                wrong += share == 0.05 or found.ok != (share < 0.05)
                break
            count = int(np.ceil(LOOKS * count))
    assert wrong <= most_wrong * rounds


def test_gaps_of_one_request_are_not_independent() -> None:
    slo = parse_slo("itl:p90:50")
    # One request in twelve has all its gaps above the limit: 8.3 % of 6,000 values, but from only 60 requests.
    slow = [record(n, itl=[0.06] * 100 if n % 12 == 0 else [0.02] * 100) for n in range(60)]
    spread = [record(n, itl=[0.06 if gap % 12 == n % 12 else 0.02 for gap in range(100)]) for n in range(60)]
    assert not decide(slo, slow, Scoring()).settled
    assert decide(slo, spread, Scoring()).settled
    assert decide(slo, slow, Scoring()).value == decide(slo, spread, Scoring()).value


def test_slo_of_a_step_is_decided_as_for_a_whole_run() -> None:
    slo = parse_slo("ttft:p95:500")
    for above in range(12):
        records = [record(n, ttft=0.6 if n < above else 0.2) for n in range(110)]
        found = decide(slo, records, Scoring())
        assert found.ok is judge_slos([slo], records, Scoring())[0].ok
        assert found.value == judge_slos([slo], records, Scoring())[0].value


def test_few_correct_transcripts_do_not_prove_a_low_wer() -> None:
    """Thirty correct transcripts of two words show that under 10 % of words are wrong, but not under 1 %."""
    right = [record(n) for n in range(30)]
    for limit, settled in ((0.01, False), (0.2, True)):
        found = decide(parse_slo(f"wer:mean:{limit}"), right, Scoring())
        assert (found.value, found.ok, found.settled) == (0.0, True, settled)
    assert decide(parse_slo("wer:mean:0.01"), right * 20, Scoring()).settled


def test_rates_and_means_are_settled_with_enough_requests() -> None:
    good, bad = [record(n) for n in range(400)], [failure(n, "cut") for n in range(400)]
    errors = parse_slo("errors:rate:0.01")
    assert not decide(errors, good, Scoring()).settled
    assert decide(errors, good * 2, Scoring()).ok and decide(errors, good * 2, Scoring()).settled
    assert decide(errors, good[:90] + bad[:10], Scoring()) == decide(errors, bad[:10] + good[:90], Scoring())
    assert not decide(errors, good[:90] + bad[:10], Scoring()).ok
    wer = parse_slo("wer:mean:0.3")
    halves = [record(n, text="he said" if n % 2 else "she said") for n in range(100)]
    assert decide(wer, halves, Scoring()).value == 0.25
    assert not decide(wer, halves[:LEAST], Scoring()).settled
    assert decide(wer, halves * 4, Scoring()).ok and decide(wer, halves * 4, Scoring()).settled
    assert decide(parse_slo("ttft:max:500"), [record(ttft=0.6)], Scoring()).settled
    assert not decide(parse_slo("ttft:p95:500"), bad[:50], Scoring()).ok
    assert decide(parse_slo("ttft:p95:500"), bad[:50], Scoring()).settled


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


def test_search_answer_is_printed_in_words() -> None:
    assert answer_lines(search_of({4: 8, 8: 15, 16: 16})) == [
        "8 streams met ttft:p95 <= 500 ms",
        "16 streams did not: SLO ttft:p95 <= 500 ms: 900 ms, FAIL",
        "maximum effective streams: 8",
    ]
    assert answer_lines(search_of({}, answer=0.0))[0] == "Not even the lowest load met ttft:p95 <= 500 ms"
    assert answer_lines(search_of({4: 8, 8: 15}, asked={"--api": "realtime"}))[-1] == (
        "maximum effective streams: 8 (realtime sessions)"
    )
    live = search_of({4: 8, 8: 15}, asked={"--api": "realtime"}, limited_by="the client", stalled_at=9)
    assert answer_lines(live)[-1] == (
        "maximum effective streams: at least 8 (realtime sessions) (the load generator stalled at 9 streams)"
    )
    rate = search_of({}, kind="request rate", answer=12.3456, limited_by="the client")
    assert answer_lines(rate)[1:] == [
        "The true maximum may be higher: the client",
        "maximum effective request rate: 12.3 requests/s",
    ]


def test_interrupted_search_gives_a_lower_bound() -> None:
    stalled = {"limited_by": "the load generator stalled at 1 stream (the event loop was late)", "answer": 1.0}
    lines = answer_lines(search_of({1: 2}, **stalled, stalled_at=2.0))
    assert lines[-1] == "maximum effective streams: at least 1 (the load generator stalled at 2 streams)"
    assert lines[-2].startswith("The true maximum may be higher: the load generator stalled at 1 stream")
    rate = search_of({}, kind="request rate", answer=12.3456, limited_by="the client", stalled_at=16.0)
    assert answer_lines(rate)[-1] == (
        "maximum effective request rate: at least 12.3 requests/s (the load generator stalled at 16 requests/s)"
    )
    why = "the server is gone: no request succeeded (cut: 9)"
    gone = search_of({4: 8, 8: 15, 16: 16}, limited_by=why, gone_at=12.0)
    assert answer_lines(gone)[-2:] == [
        f"The true maximum may be higher: {why}",
        "maximum effective streams: at least 8 (the server is gone: no request succeeded at 12 streams)",
    ]
    # The most that was allowed is what was asked about.
    bound = search_of({4: 8, 8: 16}, most=8.0, limited_by="the search was limited to 8 streams (-u)")
    assert answer_lines(bound)[-1] == "maximum effective streams: 8"


def test_unsettled_answer_is_marked() -> None:
    steps = search_of({1: 2, 4: 8, 8: 15, 16: 16, 32: 16}).steps
    for open_steps, note in (
        ((1, 32), ""),  # neither step decides the answer
        ((8,), ", not settled (--step-time was too short at 8 streams)"),
        ((8, 16), ", not settled (--step-time was too short at 8 and 16 streams)"),
    ):
        marked = [msgspec.structs.replace(each, settled=each.load not in open_steps) for each in steps]
        assert answer_lines(search_of({}, steps=marked))[-1] == f"maximum effective streams: 8{note}"
    (broken,) = search_of({16: 16}).steps
    unsettled = [msgspec.structs.replace(broken, load=1.0, settled=False)]
    assert answer_lines(search_of({}, steps=unsettled, answer=0.0))[-1] == (
        "maximum effective streams: 0, not settled (--step-time was too short at 1 stream)"
    )


def test_repeated_step_is_marked_in_the_table(tmp_path: Path) -> None:
    once, again = search_of({4: 8, 8: 15}).steps
    again.repeats, again.settled = 2, False
    out = io.StringIO()
    print_search(tmp_path, search_of({}, steps=[once, again]), out)
    rows = [line.split() for line in out.getvalue().splitlines() if line.startswith("│")]
    assert [row[-4:-1] for row in rows][-2:] == [[rows[-2][-4], "│", "met"], ["met", "*", "+"]]
    assert "\n+ repeated, because the load generator stalled or the step's last request failed\n" in out.getvalue()


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
