"""Decide which request is next, when it is due, and when the test is complete: each worker's part of a fleet's
requests, also when the fleet changes. No Locust, no clock."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np

from asr_load.schedule.arrivals import Arrivals
from asr_load.stream.record import Amount, Count


class ArrivalCounts(msgspec.Struct):
    """The arrivals of an open loop within `seconds`, for the whole fleet: the mean over all seeds (`expected`) with its
    standard deviation (`deviation`), and those of this run's seed (`due`)."""

    seconds: Amount
    expected: Amount
    deviation: Amount
    due: Count


@dataclass(frozen=True)
class Share:
    """A worker's part of a fleet's requests, which are numbered from 0: each `of`-th from its own number on.

    A worker that joins late has a number of at least `of`. It goes through the clips independently, and gets no part of
    a limited number of requests.
    """

    worker: int = 0
    of: int = 1

    @property
    def late(self) -> bool:
        return self.worker >= self.of

    def next(self, after: int) -> int:
        """The worker's next request after another of its requests (-1: its first)."""
        return self.worker if after < 0 else after + self.of


class ArrivalAssignment:
    """Distributes arrivals in turn over the members of a fleet, from each change to the next.

    A change only applies to future arrivals. As long as all workers learn of it before its first arrival, in any order,
    nothing is sent twice.
    """

    def __init__(self, plan: list[tuple[int, list[int]]]) -> None:
        """Make an assignment from pairs of a first arrival and the workers from there on, in order from arrival 0."""
        self._from = [first for first, _ in plan]
        self._members = [sorted(members) for _, members in plan]
        if self._from != sorted(set(self._from)) or self._from[:1] != [0]:
            raise ValueError(f"an assignment must begin at 0 and be in order, not {self._from}")

    @property
    def plan(self) -> list[tuple[int, list[int]]]:
        """The assignment as plain lists, for Locust's messages."""
        return list(zip(self._from, self._members, strict=True))

    def changed(self, first: int, members: list[int]) -> ArrivalAssignment:
        """The assignment with other members from an arrival on; replaces changes from there on."""
        return ArrivalAssignment([*((known, who) for known, who in self.plan if known < first), (first, members)])

    def next(self, worker: int, after: int) -> int | None:
        """This worker's first arrival after a number (-1: its first of all); None if there is no such arrival."""
        part = max(0, bisect.bisect_right(self._from, after + 1) - 1)
        for first, members, end in zip(
            self._from[part:], self._members[part:], [*self._from[part + 1 :], None], strict=True
        ):
            if worker in members:
                least = max(first, after + 1)
                number = least + (members.index(worker) - (least - first)) % len(members)
                if end is None or number < end:
                    return number
        return None


SOLE = Share()

Turn = Callable[[int], int | None]
"""Returns the number of this process's next request after one (-1: the first); None if there is no request now."""


class Job(NamedTuple):
    """A request to send: its number and, in an open loop, its due time in seconds from the start."""

    seq: int
    due: float | None


class Work:
    """This process's requests, by number. `budget` limits the number of requests of the fleet; 0: no limit. With
    `arrivals`, each request has a due time."""

    def __init__(self, turn: Turn = SOLE.next, *, budget: int = 0, arrivals: Arrivals | None = None) -> None:
        self._turn, self._budget, self._arrivals = turn, budget, arrivals
        self._last = -1
        self.taken = 0
        """Number of requests handed out by this process."""

    def peek(self) -> Job | None:
        """The next request, without taking it; None if there are no more, or none yet."""
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
        """Take the request that `peek` returned."""
        self._last = job.seq
        self.taken += 1

    def reschedule(self, arrivals: Arrivals | None) -> None:
        """Replace the arrivals. Those up to the last one handed out must be the same as before."""
        self._arrivals = arrivals

    def waiting(self, seconds: float) -> int:
        """The number of requests that are due by then but not handed out."""
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
        """The fleet's arrivals until then; None in a closed loop."""
        if self._arrivals is None:
            return None
        seconds = max(seconds, 0.0)  # a test may end before its arrivals begin
        due = self._arrivals.number_at(seconds)
        if self._budget and due >= self._budget:  # the last request of the budget ended the arrivals
            seconds, due = self._arrivals.due(self._budget - 1) or 0.0, self._budget
        return ArrivalCounts(seconds, *self._arrivals.expected(seconds), due)


class ClipOrder:
    """An order of clips in passes. Each pass has each clip once for the whole fleet, in order or shuffled by a seed."""

    def __init__(self, clips: int, *, shuffle: bool = False, seed: int = 0) -> None:
        self._clips, self._shuffle, self._seed = clips, shuffle, seed
        self._order: tuple[int, np.ndarray] | None = None

    def clip(self, position: int) -> int:
        """The clip at a position, counted from 0 over all passes."""
        pass_, place = divmod(position, self._clips)
        if not self._shuffle:
            return place
        if self._order is None or self._order[0] != pass_:
            self._order = pass_, np.random.default_rng([self._seed, pass_]).permutation(self._clips)
        return int(self._order[1][place])
