"""Turns on the event loop: whoever has much to do lets others run in between."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent

from asr_load.stream.limits import TURN_S

NEXT_ROUND_S = 1e-9
"""0 would not do: gevent runs 50 callbacks that are ready, those that are ready again among them, before it looks at
sockets and timers."""


def let_others_run() -> None:
    """Wait for a round of the loop, in which everybody has a turn: greenlets, sockets, timers."""
    gevent.sleep(NEXT_ROUND_S)


def call_in_next_round(function: Callable[[], object]) -> None:
    """Have the loop call a function after such a round."""
    timer = gevent.get_hub().loop.timer(NEXT_ROUND_S)

    def call() -> None:
        timer.close()
        function()

    timer.start(call)


class Turn:
    """Gives the event loop to others when a greenlet has had it for long: what is there to be read never waits."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + TURN_S

    def give(self) -> None:
        """Let others run, where it is time."""
        if time.perf_counter() > self._until:
            let_others_run()
            self._until = time.perf_counter() + TURN_S
