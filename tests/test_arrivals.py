"""Arrival processes: rate, variation, independence, and assignment to workers. No clock."""

from __future__ import annotations

import numpy as np
import pytest

from asr_load.errors import InputError
from asr_load.schedule.arrivals import BLOCK, Arrivals, arrivals_of
from asr_load.schedule.loop import Loop, parse_stages
from asr_load.schedule.work import ArrivalAssignment

N = 20_000


def made(kind: str = "poisson", **options: object) -> Arrivals:
    arrivals = arrivals_of(Loop(arrivals=kind, **options))  # type: ignore[arg-type]
    assert arrivals is not None
    return arrivals


def times(arrivals: Arrivals, count: int = N) -> np.ndarray:
    found = [arrivals.due(number) for number in range(count)]
    assert None not in found
    return np.array(found, dtype=float)


def test_without_a_rate_the_loop_is_closed() -> None:
    assert arrivals_of(Loop()) is None


@pytest.mark.parametrize(
    ("kind", "burstiness", "variation"),
    [("poisson", 1.0, 1.0), ("constant", 1.0, 0.0), ("gamma", 0.25, 2.0), ("gamma", 1.0, 1.0), ("gamma", 4.0, 0.5)],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_arrivals_have_the_given_rate_and_variation_and_are_independent(
    kind: str, burstiness: float, variation: float, seed: int
) -> None:
    gaps = np.diff(times(made(kind, rate=7.0, burstiness=burstiness, seed=seed)))
    # The mean of n gaps has a relative standard error of CV/√n. Allow four of them.
    assert gaps.mean() * 7 == pytest.approx(1, abs=4 * variation / N**0.5 + 1e-9)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.06, abs=1e-6)
    if variation:
        # The correlation of independent gaps at any lag is within 4/√n, also across the blocks in which they are made.
        for lag in (1, 2, 10):
            assert abs(np.corrcoef(gaps[:-lag], gaps[lag:])[0, 1]) < 4 / N**0.5


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.sort(np.diff(times(made(rate=3.0))))
    distance = np.abs(np.arange(1, N) / N - (1 - np.exp(-3.0 * gaps))).max()
    assert distance < 1.95 / N**0.5  # Kolmogorov-Smirnov test at 1 in 1,000
    evenly = np.sort(np.diff(times(made("gamma", rate=3.0, burstiness=1.2))))
    assert np.abs(np.arange(1, N) / N - (1 - np.exp(-3.0 * evenly))).max() > 1.95 / N**0.5


def test_constant_arrivals_begin_immediately_and_never_drift() -> None:
    arrivals = made("constant", rate=8.0)
    for number in (0, 1, BLOCK - 1, BLOCK, 5 * BLOCK + 3, 1_000_000):
        assert arrivals.due(number) == pytest.approx(number / 8, abs=1e-9)


def test_arrivals_depend_on_the_seed_and_not_on_the_order_of_calls() -> None:
    numbers = [3, 50_000, 2, 3 * BLOCK, 50_000, 0]
    asked = made(rate=5.0, seed=4)
    found = [asked.due(number) for number in numbers]
    assert found == [made(rate=5.0, seed=4).due(number) for number in numbers]
    assert found != [made(rate=5.0, seed=5).due(number) for number in numbers]
    assert found[1] == times(made(rate=5.0, seed=4), 50_001)[-1]


@pytest.mark.parametrize("kind", ["poisson", "constant"])
def test_arrivals_follow_a_changing_rate(kind: str) -> None:
    arrivals = made(kind, stages="100s:5, 2m:5-20 ,50:20,10s:0,100s:40", seed=3)
    edges = [0, 100, 220, 270, 280, 380, 480]
    wanted = [500, 1500, 1000, 0, 4000, 4000]  # the last rate stays
    counts = np.histogram(times(arrivals, 11_500), edges)[0]
    for count, mean in zip(counts, wanted, strict=True):
        assert abs(count - mean) <= (4 * mean**0.5 if kind == "poisson" else 1)
    # Within the ramp the rate grows linearly. Up to three quarters of it, its area is (5·.75 + 15·.75²/2) / 12.5.
    ramp = np.histogram(times(arrivals, 11_500), [100, 190, 220])[0]
    assert ramp[0] / ramp.sum() == pytest.approx((5 * 0.75 + 7.5 * 0.75**2) / 12.5, abs=0.04)


def test_arrivals_end_when_the_rate_ends_at_zero() -> None:
    arrivals = made("constant", stages="10s:2,10s:2-0")
    assert arrivals.due(20) == pytest.approx(10)
    last = arrivals.due(30)
    assert last is not None
    assert 19 < last <= 20
    assert arrivals.due(31) is None
    assert arrivals.number_at(1e9) == 31


@pytest.mark.parametrize("options", [{"rate": 50.0}, {"stages": "60s:50,60s:10"}, {"rate": 50.0, "kind": "constant"}])
def test_number_at_finds_the_first_arrival_after_a_time(options: dict[str, object]) -> None:
    arrivals = made(**options)  # type: ignore[arg-type]
    due = times(arrivals)
    for seconds in (0.0, 300.0, 1.0, 59.9, 200.0):
        assert arrivals.number_at(seconds) == int(np.searchsorted(due, seconds))


@pytest.mark.parametrize(
    "text", ["60s", "60s:", "60s:-5", "0-60s:5", "0s:5", "60s:5;60s:6", "x:1", "60s:5,", "1..2s:3"]
)
def test_malformed_rate_stages_are_rejected(text: str) -> None:
    with pytest.raises(InputError, match="--rate-stages"):
        parse_stages(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 0.0}, "--request-rate must be above 0"),
        ({"rate": -1.0}, "--request-rate must be above 0"),
        ({"rate": float("nan")}, "--request-rate must be above 0"),
        ({"rate": 1.0, "stages": "1s:1"}, "exclude each other"),
        ({"rate": 1.0, "kind": "uniform"}, "must be one of poisson, constant, gamma"),
        ({"rate": 1.0, "burstiness": 2.0}, "add --arrivals gamma"),
        ({"rate": 1.0, "kind": "gamma", "burstiness": 0.0}, "--burstiness must be above 0"),
        ({"rate": 1.0, "speed": 2.0}, "add --arrival-trace"),
        ({"trace": "nowhere.csv"}, "cannot be read"),
    ],
)
def test_invalid_arrival_options_give_a_one_line_error(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        made(**options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def walk(assignment: ArrivalAssignment, worker: int, until: int) -> list[int]:
    numbers, at = [], -1
    while (found := assignment.next(worker, at)) is not None and found < until:
        numbers.append(found)
        at = found
    return numbers


@pytest.mark.parametrize(
    "assignment",
    [
        ArrivalAssignment([(0, [0])]),
        ArrivalAssignment([(0, [0, 1, 2])]),
        ArrivalAssignment([(0, [0, 1])]).changed(101, [0, 1, 2]).changed(500, [2]).changed(777, [0, 2, 9]),
        ArrivalAssignment([(0, [0, 1])]).changed(3, [5]).changed(4, [0, 1, 5]),
    ],
)
def test_each_arrival_belongs_to_exactly_one_worker(assignment: ArrivalAssignment) -> None:
    everybody = {worker for _, members in assignment.plan for worker in members}
    sent = sorted(number for worker in everybody for number in walk(assignment, worker, 1000))
    assert sent == list(range(1000))
    for first, members in assignment.plan:
        part = [len([n for n in walk(assignment, worker, 1000) if n >= first][:1]) for worker in members]
        assert all(part)


def test_changed_assignment_keeps_earlier_arrivals() -> None:
    before = ArrivalAssignment([(0, [0, 1, 2])])
    after = before.changed(100, [0, 2]).changed(60, [1, 2])  # a later change that affects earlier arrivals
    assert after.plan == [(0, [0, 1, 2]), (60, [1, 2])]
    for worker in range(3):
        assert walk(after, worker, 60) == walk(before, worker, 60)
    assert ArrivalAssignment([(first, list(members)) for first, members in after.plan]).plan == after.plan
    assert ArrivalAssignment([(0, [1])]).next(0, -1) is None
    assert ArrivalAssignment([(0, [0]), (7, [1])]).next(0, 6) is None
    with pytest.raises(ValueError, match="begin at 0"):
        ArrivalAssignment([(5, [0])])


def test_expected_gives_mean_and_deviation_of_due_arrivals() -> None:
    steady = arrivals_of(Loop(rate=4.0))
    assert steady is not None
    assert steady.expected(25.0) == (100.0, 10.0)
    even = arrivals_of(Loop(stages="10s:2,10s:2-6,60s:6", arrivals="constant"))
    assert even is not None
    assert even.expected(5.0) == (10.0, 0.0)
    assert even.expected(15.0) == pytest.approx((20.0 + 5 * 3.0, 0.0))
    assert even.expected(40.0) == pytest.approx((20.0 + 40.0 + 20 * 6.0, 0.0))
    bursts = arrivals_of(Loop(rate=4.0, burstiness=0.25, arrivals="gamma"))
    assert bursts is not None
    assert bursts.expected(25.0) == (100.0, 20.0)
    counts = [arrivals_of(Loop(rate=4.0, seed=seed)) for seed in range(300)]
    due = np.array([one.number_at(25.0) for one in counts if one is not None])
    assert due.mean() == pytest.approx(100, abs=3)
    assert due.std() == pytest.approx(10, rel=0.2)
