"""Who sends which arrival, also when the fleet changes. Pure."""

from __future__ import annotations

import bisect


class ArrivalAssignment:
    """Arrivals in turn over the members of a fleet, from an arrival on until the next change.

    A change is announced for arrivals that lie ahead. A worker that hears of it late has sent its part by the old
    assignment, and the new one never reaches back: so nothing is sent twice, whoever hears when, as long as all hear
    before.
    """

    def __init__(self, plan: list[tuple[int, list[int]]]) -> None:
        """`plan`: from which arrival on which workers share, in order; it begins with arrival 0."""
        self._from = [first for first, _ in plan]
        self._members = [sorted(members) for _, members in plan]
        if self._from != sorted(set(self._from)) or self._from[:1] != [0]:
            raise ValueError(f"an assignment begins at 0 and goes on in order, not {self._from}")

    @property
    def plan(self) -> list[tuple[int, list[int]]]:
        """As plain lists, which Locust's messages carry."""
        return list(zip(self._from, self._members, strict=True))

    def changed(self, first: int, members: list[int]) -> ArrivalAssignment:
        """The assignment with other members from an arrival on; a change for the same or later ones gives way to it."""
        return ArrivalAssignment([*((known, who) for known, who in self.plan if known < first), (first, members)])

    def next(self, worker: int, after: int) -> int | None:
        """The first arrival beyond a number (-1: from the first on) that is this worker's; None if none ever is."""
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
