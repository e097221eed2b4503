"""Arrival times of requests in an open loop: absolute, so that a slow server does not delay them. No Locust, no clock.

All workers of a fleet compute the same arrivals of the whole fleet, and each sends its own (ArrivalAssignment), so that
the sum has the requested rate and distribution. (Separate processes would only work for Poisson arrivals, whose sum is
a Poisson process again.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from asr_load.schedule.loop import Loop, Stage, parse_stages
from asr_load.schedule.trace import read_trace

BLOCK = 8192


class Profile:
    """A rate over time: stages, after which the last rate stays.

    Arrivals at a changing rate are those at rate 1 with rescaled times: the n-th arrives when the area under the rate
    reaches the n-th time of the process at rate 1 (Çinlar's method).
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._starts = np.cumsum([0.0, *(stage.seconds for stage in stages)])
        self._areas = np.cumsum([0.0, *(stage.seconds * (stage.first + stage.last) / 2 for stage in stages)])
        final = stages[-1].last
        self._rates = np.array([*(stage.first for stage in stages), final])
        self._slopes = np.array([*((stage.last - stage.first) / stage.seconds for stage in stages), 0.0])

    def times(self, areas: np.ndarray) -> np.ndarray:
        """When the area under the rate reaches each of `areas`, in seconds; infinity if it never does."""
        at = np.searchsorted(self._areas, areas, side="left") - 1
        at = np.clip(at, 0, None)
        rate, slope, left = self._rates[at], self._slopes[at], areas - self._areas[at]
        # Solve slope/2 t² + rate t = left with a formula that is exact for a small or zero slope.
        root = np.sqrt(np.maximum(rate * rate + 2 * slope * left, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.where(left > 0, 2 * left / (rate + root), 0.0)
        times: np.ndarray = self._starts[at] + inside
        return times

    def area(self, seconds: float) -> float:
        """The area under the rate from the start on, which is the average number of arrivals by then."""
        at = int(np.searchsorted(self._starts, seconds, side="right")) - 1
        passed = seconds - float(self._starts[at])
        return float(self._areas[at] + self._rates[at] * passed + self._slopes[at] * passed**2 / 2)


class Process(Protocol):
    """Arrivals at rate 1, in blocks that can each be computed independently."""

    variance: float
    """The variance of the gaps, whose mean is 1."""

    def times(self, block: int) -> np.ndarray:
        """The times of a block's BLOCK arrivals, relative to the last one of the previous block."""
        ...


class Gamma:
    """Independent gaps with a gamma distribution of this shape: 1 makes Poisson arrivals."""

    def __init__(self, shape: float, seed: int) -> None:
        self._shape, self._seed = shape, seed
        self.variance = 1 / shape

    def times(self, block: int) -> np.ndarray:
        times: np.ndarray = np.cumsum(
            np.random.default_rng([self._seed, block]).gamma(self._shape, 1 / self._shape, BLOCK)
        )
        return times


class Constant:
    """Equal gaps, from an arrival at 0 on."""

    variance = 0.0

    def times(self, block: int) -> np.ndarray:
        return np.arange(BLOCK) + (1.0 if block else 0.0)


class Arrivals:
    """The arrivals of a fleet, by number from 0. Sequential access is cheap; a jump computes all arrivals before it."""

    def __init__(self, profile: Profile, process: Process) -> None:
        self._profile, self._process = profile, process
        self._block, self._before = -1, 0.0
        self._due = np.empty(0)

    def due(self, number: int) -> float | None:
        """When an arrival is due, in seconds after the start; None if there are no more."""
        block, place = divmod(number, BLOCK)
        self._go_to(block)
        due = float(self._due[place])
        return None if math.isinf(due) else due

    def number_at(self, seconds: float) -> int:
        """The number of the first arrival due at or after a time; after the last one, the number of arrivals."""
        block = max(self._block, 0)
        self._go_to(block)
        if block and self._due[0] > seconds:
            block = 0
        while True:
            self._go_to(block)
            due = self._due[np.isfinite(self._due)]
            if len(due) < BLOCK or due[-1] >= seconds:
                return block * BLOCK + int(np.searchsorted(due, seconds, side="left"))
            block += 1

    def expected(self, seconds: float) -> tuple[float, float]:
        """The mean and standard deviation, over all seeds, of the number of arrivals due by then."""
        mean = self._profile.area(seconds)
        return mean, math.sqrt(mean * self._process.variance)

    def _go_to(self, block: int) -> None:
        if block == self._block:
            return
        if block < self._block:
            self._block, self._before = -1, 0.0
        while self._block < block:
            self._block += 1
            areas = self._before + self._process.times(self._block)
            self._before = float(areas[-1])
        self._due = self._profile.times(areas)


class Replay(Arrivals):
    """Arrivals at recorded times, in seconds, sped up by a factor."""

    def __init__(self, times: Sequence[float], speed: float) -> None:
        self._due = (np.array(times) - times[0]) / speed

    def due(self, number: int) -> float | None:
        return float(self._due[number]) if number < len(self._due) else None

    def number_at(self, seconds: float) -> int:
        return int(np.searchsorted(self._due, seconds, side="left"))

    def expected(self, seconds: float) -> tuple[float, float]:
        return self.number_at(seconds), 0.0


_PROCESSES: dict[str, Callable[[Loop], Process]] = {
    "poisson": lambda loop: Gamma(1.0, loop.seed),
    "constant": lambda _: Constant(),
    "gamma": lambda loop: Gamma(loop.burstiness, loop.seed),
}


def arrivals_of(loop: Loop, announced: Sequence[Stage] = ()) -> Arrivals | None:
    """The arrivals of a loop; None for a closed one. `announced`: stages of a search, which replace the loop's. Raises
    InputError."""
    loop.check()
    if loop.trace:
        return Replay(read_trace(Path(loop.trace).expanduser()), loop.speed)
    if announced or loop.stages:
        profile = Profile(announced or parse_stages(loop.stages))
    elif loop.rate is not None:
        profile = Profile([Stage(1.0, loop.rate, loop.rate)])
    else:
        return None
    return Arrivals(profile, _PROCESSES[loop.arrivals](loop))
