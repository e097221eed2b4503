"""Whether a run was steady: figures from a growing queue describe the length of the test, not the server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from asr_load.results.pass_fail import missing_line
from asr_load.results.runfile import RunInfo
from asr_load.results.sound import Measured
from asr_load.stream.record import Record

TREND_BLOCKS = 16
"""Number of blocks of a run whose medians are compared."""

LEAST_FOR_TREND = 5 * TREND_BLOCKS
"""Minimum number of requests for a verdict."""

TREND_Z = 2.58
"""Standard deviations of the normal distribution: one steady run in a hundred is called unsteady."""

NOTABLE = 0.25
"""Growth over the run, as a share of the median, below which a trend does not matter, however certain it is."""

ORDERED, SORTED = 0.5, 0.9
"""Rank correlations between the lengths of clips and their order. From the first, the lengths may explain a trend;
above the second, the two cannot be told apart."""


SPAWNED_S, SPAWNED = 3.0, 0.05
"""Seconds, and share of a run, in which users may still start."""


class Steadiness(msgspec.Struct):
    """`verdict`: steady, rising, falling, unclear (too few requests), interrupted (an outage), or not judged.

    `growth_s` is the increase of E2E latency over the run according to its trend, in seconds; None without a test for a
    trend. `why` says why it was not tested."""

    verdict: str
    growth_s: float | None
    why: str = ""


def judge_steadiness(run: Measured, info: RunInfo) -> Steadiness:
    """Decide whether a run was steady, if its load was constant and no record is missing."""
    stages = info.loop.get("stages", "")
    if run.lost:
        return Steadiness("not judged", None, missing_line(run.lost))
    if run.outage:
        return Steadiness("interrupted", None, run.outage.line)
    if not info.loop and load_changes(info.users, run.counted):
        return Steadiness("not judged", None, "the number of users changed")
    if "," in stages or "-" in stages:
        return Steadiness("not judged", None, "the rate changed")
    return steadiness(run.sound)


def steadiness(records: Sequence[Record]) -> Steadiness:
    """Test the E2E latency of the measured successes for a trend in the order of their start (open loop: of their due
    time).

    The run is cut into 16 blocks of equal count. Single slow requests do not move the blocks' medians, and medians are
    nearly independent even if single requests are not. They are tested by Mann and Kendall's S (Kendall, Rank
    Correlation Methods, 1975; z = (S ± 1) / sqrt(n(n-1)(2n+5)/18)). The size of the trend is Theil and Sen's slope
    (Sen, JASA 63, 1968). First, the part of the latency that the clip's length explains is subtracted.

    In one pass over clips sorted by length, a trend over time looks the same as the cost of a second of audio. The run
    is then tested with the lowest and with the highest cost that its latencies allow, and not judged if the results
    differ."""
    good = sorted(
        (record for record in records if record.ok and record.e2el is not None), key=lambda record: record.begins
    )
    if len(good) < LEAST_FOR_TREND:
        return Steadiness("unclear", None)
    latencies = np.array([(record.e2el or 0.0) + (record.lag or 0.0) for record in good])
    audio = np.array([record.audio_s for record in good])
    cost = _audio_cost(latencies, audio)
    if abs(_rank_correlation(audio)) < ORDERED:
        return _trend(latencies, cost.likely * audio)
    low, high = (_trend(latencies, each * audio) for each in (cost.low, cost.high))
    if low.verdict != high.verdict:
        return Steadiness("not judged", None, "the clips are sorted by length")
    return min(low, high, key=lambda each: abs(each.growth_s or 0.0))


def _trend(latencies: np.ndarray, of_audio: np.ndarray) -> Steadiness:
    """The trend of latencies without the part of each that its audio takes; both of shape (n,), in order of start."""
    medians = np.array([float(np.median(block)) for block in np.array_split(latencies - of_audio, TREND_BLOCKS)])
    first, second = np.triu_indices(TREND_BLOCKS, 1)
    differences = medians[second] - medians[first]
    score = float(np.sign(differences).sum())
    deviation = math.sqrt(TREND_BLOCKS * (TREND_BLOCKS - 1) * (2 * TREND_BLOCKS + 5) / 18)
    z = (score - math.copysign(1, score)) / deviation if score else 0.0
    slope = float(np.median(differences / (second - first))) * (TREND_BLOCKS - 1)
    span = float(np.ptp(latencies))
    growth = min(max(slope, -span), span)  # latency cannot grow by more than the range of latencies
    if abs(z) < TREND_Z or abs(growth) < NOTABLE * float(np.median(latencies)):
        return Steadiness("steady", growth)
    return Steadiness("rising" if growth > 0 else "falling", growth)


class _AudioCost(NamedTuple):
    """How much a second of audio adds to the latency, in seconds: the estimate and its bounds."""

    low: float
    likely: float
    high: float


def _audio_cost(latencies: np.ndarray, audio: np.ndarray) -> _AudioCost:
    """Estimate the cost of a second of audio by least squares, together with a linear trend; both arrays of shape (n,),
    in order of start. No cost is below 0 or above the median of latency over length. The bounds are those of a 99 %
    interval whose errors may be correlated within a block (cluster-robust: Liang and Zeger, Biometrika 73, 1986). If
    lengths follow the order nearly exactly, only these limits are known."""
    known = audio > 0
    if not known.any() or not np.ptp(audio):
        return _AudioCost(0.0, 0.0, 0.0)
    most = float(np.median(latencies[known] / audio[known]))
    by_audio, by_latency = _without_trend(audio), _without_trend(latencies)
    spread = float(by_audio @ by_audio)
    cost = float(by_audio @ by_latency) / spread if spread else 0.0
    likely = min(max(cost, 0.0), most)
    if not spread or abs(_rank_correlation(audio)) > SORTED:
        return _AudioCost(0.0, likely, most)
    errors = by_audio * (by_latency - cost * by_audio)
    together = math.sqrt(sum(float(block.sum()) ** 2 for block in np.array_split(errors, TREND_BLOCKS)))
    margin = TREND_Z * max(together, math.sqrt(float(errors @ errors))) / spread
    return _AudioCost(max(cost - margin, 0.0), likely, min(max(cost + margin, 0.0), most))


def sorted_by_length(records: Sequence[Record]) -> bool:
    """Whether clip lengths follow the order of the requests so closely, as in one pass over a sorted set, that the cost
    of a second of audio cannot be told from a trend over time."""
    order = sorted(records, key=lambda record: record.begins)
    return len(order) > 1 and abs(_rank_correlation(np.array([record.audio_s for record in order]))) > SORTED


def _without_trend(values: np.ndarray) -> np.ndarray:
    """Residuals of a straight line fitted over the order; shape (n,)."""
    order = np.arange(len(values)) - (len(values) - 1) / 2
    values = values - values.mean()
    residuals: np.ndarray = values - (order @ values) / (order @ order) * order
    return residuals


def _rank_correlation(values: np.ndarray) -> float:
    """Spearman's correlation of values, shape (n,), with their order; 0 if all are equal."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # equal values share the mean of their ranks
    return float(np.corrcoef(ranks, np.arange(len(values)))[0, 1]) if len(counts) > 1 else 0.0


def load_changes(users: Sequence[tuple[float, int]], measured: Sequence[Record]) -> bool:
    """Whether the number of users in a closed loop changed while it was measured, after its first moments. `users`:
    when the number changed, and to what."""
    if not measured:
        return False
    starts = [record.started_at for record in measured]
    first, last = min(starts), max(starts)
    settled = first + max(SPAWNED_S, SPAWNED * (last - first))
    return any(settled < at <= last for at, _ in users)
