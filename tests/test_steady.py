"""Steadiness: whether a growing queue is distinguished from noise, in simulated runs with seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from asr_load.report.words import steadiness_line
from asr_load.results.steady import LEAST_FOR_TREND, steadiness
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
    """Latencies of a server with one slot, a service time of 0.1 s, and Poisson arrivals."""
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
def test_steady_run_is_seldom_misjudged(kind: str) -> None:
    verdicts = [steadiness(run(STEADY[kind](np.random.default_rng(seed)))).verdict for seed in range(200)]
    assert verdicts.count("steady") >= 196  # at most 2 in 100 wrong


@pytest.mark.parametrize(("load", "count", "least"), [(1.2, N, 98), (1.05, 5 * N, 90)])
def test_growing_queue_is_detected(load: float, count: int, least: int) -> None:
    verdicts = [steadiness(run(queue(load, np.random.default_rng(seed), count))).verdict for seed in range(100)]
    assert verdicts.count("rising") >= least


def test_growth_is_reported_in_seconds() -> None:
    # 400 requests arrive at 12 per second, of which 10 are served: after 33 s the last one waits 6.7 s.
    growth = [steadiness(run(queue(1.2, np.random.default_rng(seed)))).growth_s or 0.0 for seed in range(50)]
    assert np.mean(growth) == pytest.approx(6.7 * 15 / 16, rel=0.15)
    assert "latency rose by" in steadiness_line(steadiness(run(queue(1.2, np.random.default_rng(0)))))


def test_falling_latency_is_detected() -> None:
    found = steadiness(run(np.linspace(3, 1, N) + np.random.default_rng(0).normal(0, 0.1, N)))
    assert found.verdict == "falling"
    assert "latency fell by" in steadiness_line(found)


def test_data_set_sorted_by_length_is_not_a_growing_queue() -> None:
    audio = np.concatenate([np.linspace(1, 30, N - 50), np.linspace(1, 5, 50)])  # one pass and a bit
    random = np.random.default_rng(0)
    latencies = 0.2 + 0.05 * audio + random.normal(0, 0.05, N)
    assert steadiness(run(latencies)).verdict == "rising"  # it would be rising if all clips had one length
    assert steadiness(run(latencies, audio)).verdict == "steady"
    assert steadiness(run(latencies + np.linspace(0, 2, N), audio)).verdict == "rising"


def lengths(random: np.random.Generator, count: int = N) -> np.ndarray:
    """Lengths of clips in seconds, rounded to ms as in manifests."""
    return np.round(random.lognormal(1.8, 0.6, count).clip(0.5, 35), 3)


def served(audio: np.ndarray, random: np.random.Generator, growth: float = 0.0) -> np.ndarray:
    """Latencies of a server that takes 0.2 s plus 0.05 s per second of audio, rising by `growth` until the end."""
    return 0.2 + 0.05 * audio + random.normal(0, 0.05, len(audio)) + np.linspace(0, growth, len(audio))


def at_random(audio: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.uniform(0.4, 1.0, len(audio))


@pytest.mark.parametrize("latencies", [served, at_random])
@pytest.mark.parametrize("rounded", [True, False], ids=["rounded to ms", "exact"])
@pytest.mark.parametrize("step", [1, -1], ids=["ascending", "descending"])
def test_one_pass_over_sorted_clips_is_never_a_trend(
    latencies: Callable[[np.ndarray, np.random.Generator], np.ndarray], rounded: bool, step: int
) -> None:
    for seed in range(100):
        random = np.random.default_rng(seed)
        audio = np.sort(lengths(random) if rounded else random.lognormal(1.8, 0.6, N))[::step]
        found = steadiness(run(latencies(audio, random), audio))
        assert found.verdict in ("steady", "not judged")
        assert abs(found.growth_s or 0.0) <= 0.6


def test_trend_that_may_come_from_clip_lengths_is_not_judged() -> None:
    random = np.random.default_rng(0)
    audio = np.sort(lengths(random))
    found = steadiness(run(served(audio, random, growth=1.0), audio))
    assert (found.verdict, found.growth_s) == ("not judged", None)
    assert steadiness_line(found) == "Steady: not judged (the clips are sorted by length)"


def test_sorted_clips_of_nearly_one_length_are_judged() -> None:
    random = np.random.default_rng(0)
    audio = np.round(np.linspace(5, 5.2, N), 3)
    assert steadiness(run(at_random(audio, random), audio)).verdict == "steady"
    assert steadiness(run(at_random(audio, random) + np.linspace(0, 2, N), audio)).verdict == "rising"


@pytest.mark.parametrize("passes", [2, 3, 5])
def test_several_passes_over_sorted_clips_are_judged(passes: int) -> None:
    for seed in range(50):
        random = np.random.default_rng(seed)
        audio = np.tile(np.sort(lengths(random, N // passes)), passes)
        for growth, verdict in ((0.0, "steady"), (0.6, "rising"), (-0.4, "falling")):
            found = steadiness(run(served(audio, random, growth), audio))
            assert found.verdict == verdict
            assert found.growth_s == pytest.approx(growth, abs=0.15)


@pytest.mark.parametrize(("growth", "verdict"), [(0.0, "steady"), (0.5, "rising"), (-0.4, "falling")])
def test_trend_over_shuffled_clips_is_detected(growth: float, verdict: str) -> None:
    for seed in range(50):
        random = np.random.default_rng(seed)
        audio = lengths(random)
        found = steadiness(run(served(audio, random, growth), audio))
        assert found.verdict == verdict
        assert found.growth_s == pytest.approx(growth, abs=0.1)


def test_growth_is_at_most_the_range_of_latencies() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        audio = np.sort(lengths(random))[:: (-1) ** seed]
        latencies = served(audio, random, growth=3.0 * (-1) ** seed)
        assert abs(steadiness(run(latencies, audio)).growth_s or 0.0) <= np.ptp(latencies)
        step = np.where(np.arange(N) < N / 2, 0.5, 1.5)
        assert (steadiness(run(step)).growth_s or 0.0) <= 1.0


def test_longer_clips_are_never_assumed_to_be_faster() -> None:
    """If latency falls with length, the cost of a second of audio is 0, not negative."""
    random = np.random.default_rng(0)
    audio = lengths(random)
    assert steadiness(run(2 - 0.03 * audio + random.normal(0, 0.05, N), audio)).verdict == "steady"


def test_lag_counts_in_the_steadiness() -> None:
    records = run(np.full(N, 0.5))
    for number, item in enumerate(records):
        item.due_at, item.lag = item.started_at - number / 100, number / 100
    assert steadiness(records).verdict == "rising"


def test_few_requests_give_no_verdict_on_steadiness() -> None:
    found = steadiness([*run(np.linspace(1, 9, LEAST_FOR_TREND - 1)), *[failure(n, "cut") for n in range(50)]])
    assert (found.verdict, found.growth_s) == ("unclear", None)
    assert "unknown" in steadiness_line(found)
