"""Estimate the offset of a worker's clock from its master's by exchanging time stamps. Does not use Locust.

As in NTP (RFC 5905, section 8): if a question leaves at t1 and returns at t4 with the master's time t2, the offset is
t2 - (t1 + t4) / 2, with an error of at most half the round trip. Messages wait in busy event loops, so the estimate is
that of the fastest of many rounds.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

ROUNDS = 32
"""Number of rounds to keep: one minute at a round every two seconds, in which no clock drifts by a millisecond."""


class Offset(NamedTuple):
    """Seconds to add to a worker's times to get the master's, and their maximum error."""

    seconds: float
    error: float


class ClockOffset:
    """Estimates an offset from rounds. Times are in nanoseconds."""

    def __init__(self) -> None:
        self._rounds: deque[Offset] = deque(maxlen=ROUNDS)

    def add(self, sent: int, answered: int, received: int) -> None:
        """Add a round: when the question left and its answer arrived by the worker's clock, and the master's time."""
        if received < sent:  # the clock was set back in between
            return
        self._rounds.append(Offset((answered - (sent + received) / 2) / 1e9, (received - sent) / 2e9))

    @property
    def best(self) -> Offset | None:
        """The estimate of the fastest round; None before the first."""
        return min(self._rounds, key=lambda offset: offset.error, default=None)
