"""Whether a rising queue is told from noise: made-up runs with seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from asr_load.results.steady import LEAST, LeftOut, steadiness, steadiness_line, trim
from asr_load.stream.record import Record
from harness.records import failure, record

N = 400


def run(latencies: np.ndarray, audio: np.ndarray | None = None) -> list[Record]:
    lengths = np.full(len(latencies), 2.0) if audio is None else audio
    pairs = zip(latencies.tolist(), lengths.tolist(), strict=True)
    return [record(n, e2el=latency, audio_s=seconds) for n, (latency, seconds) in enumerate(pairs)]


def autoregressive(random: np.random.Generator) -> np.ndarray:
    noise, values = random.standard_normal(N) * 0.1, [0.0]
    for shock in noise[1:]:
        values.append(0.7 * values[-1] + shock)
    return 1 + np.array(values)


def queue(load: float, random: np.random.Generator, count: int = N) -> np.ndarray:
    """Latencies of a server with one slot, a service of 0.1 s, and Poisson arrivals."""
    free, latencies, at = 0.0, [], 0.0
    for gap in random.exponential(0.1 / load, count):
        at += gap
        free = max(free, at) + 0.1
        latencies.append(free - at)
    return np.array(latencies)


STEADY: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "independent": lambda random: random.normal(1, 0.2, N),
    "autocorrelated": autoregressive,
    "heavy tails": lambda random: random.lognormal(0, 1, N),
    "two kinds of clips": lambda random: random.choice([0.5, 3.0], N),
    "a queue at 70 %": lambda random: queue(0.7, random),
    "constant": lambda _: np.full(N, 0.3),
}


@pytest.mark.parametrize("kind", STEADY)
def test_a_steady_run_is_seldom_called_another(kind: str) -> None:
    verdicts = [steadiness(run(STEADY[kind](np.random.default_rng(seed)))).verdict for seed in range(200)]
    assert verdicts.count("steady") >= 196  # two in a hundred


@pytest.mark.parametrize(("load", "count", "least"), [(1.2, N, 98), (1.05, 5 * N, 90)])
def test_a_queue_that_grows_is_found(load: float, count: int, least: int) -> None:
    verdicts = [steadiness(run(queue(load, np.random.default_rng(seed), count))).verdict for seed in range(100)]
    assert verdicts.count("rising") >= least


def test_the_growth_is_told_in_seconds() -> None:
    # 400 requests at 12 a second, of 10 that are served: after 33 s the last one waits 6.7 s.
    growth = [steadiness(run(queue(1.2, np.random.default_rng(seed)))).growth_s or 0.0 for seed in range(50)]
    assert np.mean(growth) == pytest.approx(6.7 * 15 / 16, rel=0.15)
    assert "latency rose by" in steadiness_line(steadiness(run(queue(1.2, np.random.default_rng(0)))))


def test_latencies_that_fall() -> None:
    found = steadiness(run(np.linspace(3, 1, N) + np.random.default_rng(0).normal(0, 0.1, N)))
    assert found.verdict == "falling"
    assert "latency fell by" in steadiness_line(found)


def test_a_set_that_is_sorted_by_length_is_no_queue() -> None:
    audio = np.concatenate([np.linspace(1, 30, N - 50), np.linspace(1, 5, 50)])  # a pass and a bit
    random = np.random.default_rng(0)
    latencies = 0.2 + 0.05 * audio + random.normal(0, 0.05, N)
    assert steadiness(run(latencies)).verdict == "rising"  # were all clips of one length, it would be one
    assert steadiness(run(latencies, audio)).verdict == "steady"
    assert steadiness(run(latencies + np.linspace(0, 2, N), audio)).verdict == "rising"


def test_the_wait_before_the_send_counts() -> None:
    records = run(np.full(N, 0.5))
    for number, item in enumerate(records):
        item.due_at, item.lag = item.started_at - number / 100, number / 100
    assert steadiness(records).verdict == "rising"


def test_few_requests_tell_nothing() -> None:
    found = steadiness([*run(np.linspace(1, 9, LEAST - 1)), *[failure(n, "cut") for n in range(50)]])
    assert (found.verdict, found.growth_s) == ("unclear", None)
    assert "not known" in steadiness_line(found)


def test_what_is_left_out_and_why() -> None:
    records = [record(n, started_at=100.0 + n, warmup=n < 2) for n in range(12)]
    kept, left = trim(records, 0, 0)
    assert ([item.seq for item in kept], left) == (list(range(2, 12)), LeftOut(2, 0, 0))
    kept, left = trim(records, 3, 2)
    assert ([item.seq for item in kept], left) == ([5, 6, 7, 8, 9], LeftOut(2, 3, 2))
    kept, left = trim(records, 6, 6)
    assert (kept, left.trim_start + left.trim_end) == ([], 10)
    assert trim([], 1, 1) == ([], LeftOut())
    due = [record(n, started_at=500.0, due_at=100.0 + n, lag=0.0) for n in range(4)]
    assert [item.seq for item in trim(due, 1, 1)[0]] == [1, 2]
