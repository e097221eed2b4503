"""Wait until a point in time, to a fraction of a millisecond.

An event loop's timers count whole milliseconds, so a chunk would leave up to 2.5 ms late even on an idle loop. Linux
has timers with file descriptors, which any loop can watch; other systems use the loop's timers.
"""

import asyncio
import ctypes
import heapq
import itertools
import os
import sys
import time

_CLOCK_MONOTONIC = 1  # what time.perf_counter() reads on Linux
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
_SLACK = 0.0002  # seconds; setting the timer costs 20 µs, so chunks due this close together leave together


class _TimerSpec(ctypes.Structure):
    """struct itimerspec: interval (unused), then the time."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns")]


class Alarm:
    """One timer for all waiters of an event loop. It must be made on that loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()  # equal times: futures cannot be compared
        self._file = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)  # os.timerfd_create comes with Python 3.13
            self._file = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file >= 0:
            self._loop.add_reader(self._file, self._ring)

    async def wait_until(self, due: float) -> None:
        """Return at `due` (`time.perf_counter()` seconds), never before; immediately if it has passed."""
        if self._file < 0:
            while (delay := due - time.perf_counter()) > 0:
                await asyncio.sleep(max(delay, 0.001))
        elif due > time.perf_counter():
            future = self._loop.create_future()
            heapq.heappush(self._waiting, (due, next(self._order), future))
            if self._waiting[0][2] is future:
                self._set(due)
            await future

    def _set(self, due: float) -> None:
        seconds, fraction = divmod(due, 1)
        spec = _TimerSpec(0, 0, int(seconds), int(fraction * 1e9) + 1)
        self._libc.timerfd_settime(self._file, _ABSOLUTE, ctypes.byref(spec), None)

    def _ring(self) -> None:
        os.read(self._file, 8)
        now = time.perf_counter()
        while self._waiting and self._waiting[0][0] <= now:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():  # futures of disconnected clients were cancelled
                future.set_result(None)
        if self._waiting:
            self._set(max(self._waiting[0][0], now + _SLACK))
