"""The clips to send: a sample of a set, and an order that keeps a mix of lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asr_load.errors import InputError
from asr_load.schedule.mix import LengthClass
from asr_load.schedule.work import ClipOrder
from asr_load.text import count_of


def sample_of(clips: int, sample: int, seed: int) -> np.ndarray:
    """The numbers of `sample` random clips, in order; all clips for 0. Raises InputError if there are fewer."""
    if sample > clips:
        raise InputError(f"--sample {sample}: --data has only {count_of(clips, 'clip')}")
    if not sample:
        return np.arange(clips)
    return np.sort(np.random.default_rng([seed, clips]).choice(clips, sample, replace=False))


class MixedOrder:
    """An order of clips with classes of lengths by weight, spread evenly (smooth weighted round robin), and as in
    ClipOrder within a class. `lengths` are those of all clips, in seconds. Raises InputError if a class has no clip."""

    def __init__(
        self, lengths: Sequence[float] | np.ndarray, classes: Sequence[LengthClass], *, shuffle: bool, seed: int
    ) -> None:
        seconds = np.asarray(lengths)
        self._members = [np.flatnonzero((seconds >= length.low) & (seconds < length.high)) for length in classes]
        for length, members in zip(classes, self._members, strict=True):
            if not len(members):
                raise InputError(f"--mix: no clip of --data is {length} seconds long; change the mix or the data")
        self._orders = [ClipOrder(len(members), shuffle=shuffle, seed=seed) for members in self._members]
        self._pattern = _spread([length.weight for length in classes])
        self._weights = [length.weight for length in classes]
        taken = [0] * len(classes)
        self._before: list[int] = []
        """For each place of the pattern, the number of earlier places of its class."""
        for kind in self._pattern:
            self._before.append(taken[kind])
            taken[kind] += 1

    def clip(self, position: int) -> int:
        """The clip at a position, counted from 0."""
        round_, place = divmod(position, len(self._pattern))
        kind = self._pattern[place]
        return int(self._members[kind][self._orders[kind].clip(round_ * self._weights[kind] + self._before[place])])


def _spread(weights: Sequence[int]) -> list[int]:
    """A pattern in which each class occurs as often as its weight, as evenly as possible."""
    total, credit, pattern = sum(weights), [0] * len(weights), []
    for _ in range(total):
        credit = [one + weight for one, weight in zip(credit, weights, strict=True)]
        chosen = max(range(len(weights)), key=credit.__getitem__)
        credit[chosen] -= total
        pattern.append(chosen)
    return pattern
