"""Packets of all sessions of a process, given to their sockets when they are due. One tick looks at all of them: to
wake a greenlet for each packet costs more than to make and send it."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import gevent
import pybase64

from asr_load.realtime.dialects import Dialect
from asr_load.realtime.socket import Socket
from asr_load.realtime.speech import Speech
from asr_load.stream.limits import TURN_S

TICK_S = 0.001


class Packets:
    """Those of an utterance, from `begins` on, in perf_counter seconds. `socket` is woken when the last was sent."""

    def __init__(
        self, socket: Socket, dialect: Dialect, speech: Speech, *, packet_s: float, pace: float, begins: float
    ) -> None:
        self.lags: list[float] = []
        """How late each was given to the socket, in seconds."""
        self.sent: list[tuple[float, float]] = []
        """For each: when that was, in perf_counter seconds, and the second of the audio with which it ends."""
        self.commits = 0
        """Sent between packets."""
        self.uncommitted_s = 0.0
        """Of audio, since the last of these."""
        self.ended = False
        """Whether all were sent, or the rest is not to be."""
        self.error: Exception | None = None
        """Why the rest is not."""
        self._socket, self._dialect, self._pace, self._begins = socket, dialect, pace, begins
        self._speech_s = speech.end_s
        self._rest = speech.packets(packet_s)
        self._go_on()

    def _go_on(self) -> None:
        following = next(self._rest, None)
        if following is None:
            self.end()
        else:
            self._next = following
            self.due = self._begins + following[1] / self._pace if self._pace else 0.0
            """When the next is due, in perf_counter seconds; without a pace it is at once."""

    @property
    def speech_ends(self) -> float | None:
        """When the speech ends, in perf_counter seconds; None without a pace, which gives it no time."""
        return self._begins + self._speech_s / self._pace if self._pace else None

    @property
    def has_spoken(self) -> bool:
        """Whether all of the speech was sent: what is left, if anything, is silence."""
        return bool(self.sent) and self.sent[-1][1] >= self._speech_s

    def send(self, now: float) -> None:
        """Send the next."""
        pcm, end_s = self._next
        self.lags.append(max(now - self.due, 0.0) if self._pace else 0.0)
        self.uncommitted_s += end_s - (self.sent[-1][1] if self.sent else 0.0)
        self.sent.append((now, end_s))
        self._socket.send(self._dialect.append(pybase64.b64encode(pcm)))
        if self._dialect.longest_s is not None and self.uncommitted_s >= self._dialect.longest_s:
            self.uncommitted_s = 0.0
            self.commits += 1
            self._socket.send(self._dialect.commit())
        self._go_on()

    def end(self, error: Exception | None = None) -> None:
        """Send no more."""
        self.ended, self.error = True, error
        self._socket.wake()


class Pacer:
    """One for a process. `clock` gives seconds, as those in which packets are due."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._due: list[tuple[float, int, Packets]] = []
        self._number = itertools.count()

    @cached_property
    def _tick(self) -> Any:
        # At the first packet, not at import: Locust forks into workers.
        return gevent.get_hub().loop.timer(TICK_S, TICK_S)

    def add(self, packets: Packets) -> None:
        """Send them as they become due, until they have ended."""
        if not self._due:
            self._tick.start(self.send_due, update=True)
        heapq.heappush(self._due, (packets.due, next(self._number), packets))

    def send_due(self) -> None:
        """Send what is due now. Whoever keeps the loop busy calls it between two steps of its own."""
        due, now = self._due, self._clock()
        until = now + TURN_S
        while due and due[0][0] <= now < until:
            _, number, packets = due[0]
            if not packets.ended:
                try:
                    packets.send(now)
                except Exception as error:  # one session's: the others go on
                    packets.end(error)
            if packets.ended:
                heapq.heappop(due)
            else:
                heapq.heapreplace(due, (packets.due, number, packets))
            now = self._clock()
        if not due and "_tick" in vars(self):
            self._tick.stop()


PACER = Pacer()
