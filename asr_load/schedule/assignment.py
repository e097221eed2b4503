"""Assign arrivals to workers, also when the fleet changes. No Locust, no clock."""

from __future__ import annotations

import bisect


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
