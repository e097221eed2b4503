"""Which clip is sent next, and when it is enough. Pure: no Locust, no clock."""

from __future__ import annotations

import numpy as np


class Work:
    """Clips by number, pass after pass, each once in a pass, in order or shuffled with a seed.

    `budget` is the number of requests to hand out; 0 is no end.
    """

    def __init__(self, clips: int, budget: int = 0, shuffle: bool = False, seed: int = 0) -> None:
        self._clips, self._budget, self._shuffle, self._seed = clips, budget, shuffle, seed
        self._taken = 0
        self._order: np.ndarray | None = None

    @property
    def taken(self) -> int:
        """Requests handed out so far."""
        return self._taken

    def next(self) -> tuple[int, int] | None:
        """The request's sequence number and its clip's number; None when the budget is used up."""
        seq = self._taken
        if self._budget and seq >= self._budget:
            return None
        self._taken += 1
        round_, place = divmod(seq, self._clips)
        if not self._shuffle:
            return seq, place
        if place == 0 or self._order is None:
            self._order = np.random.default_rng([self._seed, round_]).permutation(self._clips)
        return seq, int(self._order[place])
