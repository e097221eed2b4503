"""Which clip is sent next and when, and when it is enough. Pure: no Locust, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np

from asr_load.schedule.arrivals import Arrivals
from asr_load.stream.record import Amount, Count


class ArrivalCounts(msgspec.Struct):
    """What an open loop's whole fleet was due to send within so many `seconds`: on average over all seeds
    (`expected`, with its standard deviation), and with this run's (`due`)."""

    seconds: Amount
    expected: Amount
    deviation: Amount
    due: Count


@dataclass(frozen=True)
class Share:
    """A worker's part of a fleet's work: of all requests, numbered from 0, each `of`-th from its own number on.

    A worker that joins late has a number from `of` on: nobody has kept a part for it, and it goes through the clips by
    itself; of a limited number of requests it has none.
    """

    worker: int = 0
    of: int = 1

    @property
    def late(self) -> bool:
        return self.worker >= self.of

    def next(self, after: int) -> int:
        """Its first request beyond one of its own; -1: the first of all."""
        return self.worker if after < 0 else after + self.of


SOLE = Share()

Turn = Callable[[int], int | None]
"""The number of this process's next request after one (-1: the first); None while it has none."""


class Job(NamedTuple):
    """A request to send: its number, and in an open loop when it is due, in seconds from the start."""

    seq: int
    due: float | None


class Work:
    """This process's requests, by number. `budget` is how many the fleet hands out; 0 is no end. With `arrivals`, each
    has its time."""

    def __init__(self, turn: Turn = SOLE.next, *, budget: int = 0, arrivals: Arrivals | None = None) -> None:
        self._turn, self._budget, self._arrivals = turn, budget, arrivals
        self._last = -1
        self.taken = 0
        """Requests handed out so far, here."""

    def peek(self) -> Job | None:
        """The next request, which stays the next one; None where there is none (any more, or as yet)."""
        seq = self._turn(self._last)
        if seq is None or (self._budget and seq >= self._budget):
            return None
        due = None
        if self._arrivals is not None:
            due = self._arrivals.due(seq)
            if due is None:
                return None
        return Job(seq, due)

    def take(self, job: Job) -> None:
        """Hand out what `peek` gave."""
        self._last = job.seq
        self.taken += 1

    def reschedule(self, arrivals: Arrivals | None) -> None:
        """Take other arrivals; those up to the last one that was handed out are the same as before."""
        self._arrivals = arrivals

    def waiting(self, seconds: float) -> int:
        """How many requests are due by then and not handed out."""
        if self._arrivals is None:
            return 0
        end = self._arrivals.number_at(seconds)
        if self._budget:
            end = min(end, self._budget)
        count, last = 0, self._turn(self._last)
        while last is not None and last < end:
            count, last = count + 1, self._turn(last)
        return count

    def arrivals_until(self, seconds: float) -> ArrivalCounts | None:
        """What the fleet was due to send by then; None in a closed loop."""
        if self._arrivals is None:
            return None
        seconds = max(seconds, 0.0)  # a test may end before its arrivals begin
        due = self._arrivals.number_at(seconds)
        if self._budget and due >= self._budget:  # the last one that was asked for ended the arrivals
            seconds, due = self._arrivals.due(self._budget - 1) or 0.0, self._budget
        return ArrivalCounts(seconds, *self._arrivals.expected(seconds), due)


class ClipOrder:
    """Clips by number, pass after pass, each once in a pass over the whole fleet, in order or shuffled with a seed."""

    def __init__(self, clips: int, *, shuffle: bool = False, seed: int = 0) -> None:
        self._clips, self._shuffle, self._seed = clips, shuffle, seed
        self._order: tuple[int, np.ndarray] | None = None

    def clip(self, position: int) -> int:
        """The clip at a position, counted over all passes from 0."""
        pass_, place = divmod(position, self._clips)
        if not self._shuffle:
            return place
        if self._order is None or self._order[0] != pass_:
            self._order = pass_, np.random.default_rng([self._seed, pass_]).permutation(self._clips)
        return int(self._order[1][place])
