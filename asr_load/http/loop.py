"""Share the event loop: long work lets other greenlets run in between."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent

from asr_load.stream.limits import TURN_S

NEXT_ROUND_S = 1e-9
"""Not 0, because gevent runs up to 50 ready callbacks, including repeated ones, before it looks at sockets and
timers."""


def let_others_run() -> None:
    """Wait for one round of the loop, in which greenlets, sockets and timers have a turn."""
    gevent.sleep(NEXT_ROUND_S)


def call_in_next_round(function: Callable[[], object]) -> None:
    """Let the loop call a function after one round."""
    timer = gevent.get_hub().loop.timer(NEXT_ROUND_S)

    def call() -> None:
        timer.close()
        function()

    timer.start(call)


class TimeSlice:
    """Lets others run when a greenlet has used the event loop for TURN_S, so that data does not wait to be read."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + TURN_S

    def give(self) -> None:
        """Let others run if the slice is used up."""
        if time.perf_counter() > self._until:
            let_others_run()
            self._until = time.perf_counter() + TURN_S
