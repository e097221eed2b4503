"""Send the packets of all sessions of a run when they are due. One timer serves all sessions, because waking a
greenlet for each packet would cost more than making and sending it."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import gevent
import pybase64

from asr_load.apis.dialects import Dialect
from asr_load.realtime.socket import Socket
from asr_load.realtime.speech import Resampled, Speech
from asr_load.stream.limits import TURN_S

TICK_S = 0.001


class Packets:
    """The packets of an utterance that begins at `begins`, in perf_counter seconds. Wakes `socket` after the last."""

    def __init__(
        self, socket: Socket, dialect: Dialect, speech: Speech, *, packet_s: float, pace: float, begins: float
    ) -> None:
        self.lags: list[float] = []
        """Delay of each sent packet, in seconds."""
        self.sent: list[tuple[float, float]] = []
        """For each sent packet, its time in perf_counter seconds and its end in the audio in seconds."""
        self.commits = 0
        """Number of messages sent that ended a part of the audio, or all of it."""
        self.uncommitted_s = 0.0
        """Seconds of audio since the last commit."""
        self.ended = False
        """Whether all packets were sent, or sending was stopped."""
        self.error: Exception | None = None
        """Why sending was stopped, if by an error."""
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
            """When the next packet is due, in perf_counter seconds; immediately without a pace."""

    @property
    def speech_ends(self) -> float | None:
        """When the speech ends, in perf_counter seconds; None without a pace."""
        return self._begins + self._speech_s / self._pace if self._pace else None

    @property
    def has_spoken(self) -> bool:
        """Whether all of the speech was sent, so that only silence may be left."""
        return bool(self.sent) and self.sent[-1][1] >= self._speech_s

    def send(self, now: float) -> None:
        """Send the next packet."""
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

    def finish(self) -> None:
        """End the audio that is not committed yet."""
        if self.uncommitted_s > 0:
            self.commits += 1
            self._socket.send(self._dialect.end())

    def end(self, error: Exception | None = None) -> None:
        """Stop sending."""
        self.ended, self.error = True, error
        self._socket.wake()


class Pacer:
    """Sends the due packets of all sessions of a run. `clock` returns seconds, like the packets' due times."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._due: list[tuple[float, int, Packets]] = []
        self._number = itertools.count()

    @cached_property
    def _tick(self) -> Any:
        # Create it for the first packet, because most runs have no realtime sessions.
        return gevent.get_hub().loop.timer(TICK_S, TICK_S)

    def add(self, packets: Packets) -> None:
        """Send an utterance's packets as they become due, until they have ended."""
        if not self._due:
            self._tick.start(self.send_due, update=True)
        heapq.heappush(self._due, (packets.due, next(self._number), packets))

    def send_due(self) -> None:
        """Send all packets that are due. Code that keeps the loop busy calls this between its steps."""
        due, now = self._due, self._clock()
        until = now + TURN_S
        while due and due[0][0] <= now < until:
            _, number, packets = due[0]
            if not packets.ended:
                try:
                    packets.send(now)
                except Exception as error:  # end only this session
                    packets.end(error)
            if packets.ended:
                heapq.heappop(due)
            else:
                heapq.heapreplace(due, (packets.due, number, packets))
            now = self._clock()
        if not due and "_tick" in vars(self):
            self._tick.stop()


@dataclass(frozen=True)
class Playback:
    """The pacer and the resampled clips that the realtime sessions of a run share."""

    pacer: Pacer = field(default_factory=Pacer)
    resampled: Resampled = field(default_factory=Resampled)
