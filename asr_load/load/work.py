"""Which clip is sent next, and when it is enough. Pure: no Locust, no clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """A worker's part of a fleet's work: of all requests, numbered from 0, each `of`-th from its own number on.

    A worker that joins late has a number from `of` on: nobody has kept a part for it, and it goes through the clips by
    itself.
    """

    worker: int = 0
    of: int = 1


SOLE = Share()


class Work:
    """Clips by number, pass after pass, each once in a pass over the whole fleet, in order or shuffled with a seed.

    `budget` is the number of requests that the fleet hands out; 0 is no end.
    """

    def __init__(self, clips: int, budget: int = 0, shuffle: bool = False, seed: int = 0, share: Share = SOLE) -> None:
        self._clips, self._budget, self._shuffle, self._seed = clips, budget, shuffle, seed
        self._share = share
        self._taken = 0
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def taken(self) -> int:
        """Requests handed out so far, here."""
        return self._taken

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to hand out here."""
        late = self._share.worker >= self._share.of
        return bool(self._budget) and (late or self._next_seq >= self._budget)

    @property
    def _next_seq(self) -> int:
        return self._share.worker + self._taken * self._share.of

    def next(self) -> tuple[int, int] | None:
        """The request's sequence number and its clip's number; None when the budget is used up."""
        if self.exhausted:
            return None
        seq = self._next_seq
        self._taken += 1
        round_, place = divmod(seq, self._clips)
        if not self._shuffle:
            return seq, place
        if self._order is None or self._order[0] != round_:
            self._order = round_, np.random.default_rng([self._seed, round_]).permutation(self._clips)
        return seq, int(self._order[1][place])
