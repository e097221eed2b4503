"""How far a worker's clock is from its master's, estimated from messages with times in them. Pure: no Locust.

As NTP does it (RFC 5905, section 8): of a question that left at t1 and came back at t4 with the master's time t2 in it,
the offset is t2 - (t1 + t4) / 2, and wrong by at most half of what the round took. Messages wait in busy event loops,
so of many rounds the quickest is believed.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

ROUNDS = 32
"""How many rounds are remembered. At one each two seconds it is a minute, in which no clock drifts by a millisecond."""


class Offset(NamedTuple):
    """Seconds to add to a worker's times to have the master's, and by how much that may be wrong."""

    seconds: float
    error: float


class ClockOffset:
    """Takes rounds; times in nanoseconds."""

    def __init__(self) -> None:
        self._rounds: deque[Offset] = deque(maxlen=ROUNDS)

    def add(self, sent: int, answered: int, received: int) -> None:
        """A round: when the question left and its answer came, by the worker's clock, and the master's in between."""
        if received < sent:  # a clock was set back in between
            return
        self._rounds.append(Offset((answered - (sent + received) / 2) / 1e9, (received - sent) / 2e9))

    @property
    def best(self) -> Offset | None:
        """The estimate of the quickest round; None before the first."""
        return min(self._rounds, key=lambda offset: offset.error, default=None)
