"""Intervals for a share of events, such as an error rate, that are valid even with few or no events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Counted(NamedTuple):
    """Events and trials by cluster, such as stretches of time; shapes (clusters,)."""

    events: np.ndarray
    trials: np.ndarray

    @property
    def share(self) -> float:
        """Events divided by trials over all clusters; nan without a trial."""
        total = float(self.trials.sum())
        return float(self.events.sum()) / total if total else math.nan


def design_effect(counted: Counted) -> float | None:
    """Factor, at least 1, by which the variance of the share exceeds that of independent trials (Kish, Survey Sampling,
    1965). None if all trials or none are events, which leaves it unknown."""
    events, trials = counted
    total, count, share = float(trials.sum()), len(trials), counted.share
    if count < 2 or not 0 < share < 1:
        return None
    between = float(((events - share * trials) ** 2).sum()) * count / (count - 1) / total**2
    return max(1.0, between / (share * (1 - share) / total))


def wilson(share: float, trials: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a share (JASA 22, 1927); `z` is its half width in standard deviations."""
    z2 = z**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return middle - half, middle + half


def difference_of_shares(one: Counted, other: Counted, z: float) -> tuple[float, float] | None:
    """Newcombe's hybrid score interval of the first share minus the second (Statistics in Medicine 17, 1998); None if a
    side has no trial. Unlike a bootstrap, it keeps its width if a side has no event. Events that come in bursts count
    less, by the larger design effect of the two sides."""
    if not (one.trials.sum() and other.trials.sum()):
        return None
    sides: Sequence[Counted] = (one, other)
    burst = max(design_effect(side) or 1.0 for side in sides)
    shares = [side.share for side in sides]
    bounds = [wilson(side.share, max(float(side.trials.sum()) / burst, 1.0), z) for side in sides]
    (low, high), (other_low, other_high) = bounds
    apart = shares[0] - shares[1]
    below = math.hypot(shares[0] - low, other_high - shares[1])
    return apart - below, apart + math.hypot(high - shares[0], shares[1] - other_low)
