"""Reading an answer below requests: every read is stamped by the kernel, and the stream is parsed afterwards.

A greenlet that reads its own stream is woken for every chunk, through four layers of library code, and stamps the chunk
when its turn has come. A tap stands on the connection's socket from before the request is sent, and collects what comes
with its stamps; the greenlet is woken for the head of the answer and for its end. There are two kinds:

- compiled: a thread outside of the interpreter (_tap.c) reads.
- python: gevent's loop reads. Where there is no compiler, or no Linux.

Linux stamps what it receives (SO_TIMESTAMPNS), so a read need not follow at once: both look at all sockets together,
and rest a moment before they look again. Chunks of one stream that come within a rest have the stamp of the last of
them. Elsewhere a read is stamped as it returns, and there is no rest.

requests and urllib3 still send the request and read the head; `TapFile` is the file that http.client reads it from.
`plain` is the third way: no tap at all, sseclient over the response. It is the oracle of the tests, and what TLS needs.
"""

from __future__ import annotations

import _socket  # gevent's own sockets would wait
import contextlib
import io
import os
import select
import struct
import time
from collections.abc import Callable
from functools import cached_property
from http.client import IncompleteRead
from typing import Any, Protocol

import gevent
from gevent import monkey
from gevent.event import Event
from urllib3.exceptions import ProtocolError as BrokenBody
from urllib3.exceptions import ReadTimeoutError

from asr_load.stream.chunked import Chunked

try:
    from asr_load.load import _tap
except ImportError:  # not compiled: see the extension in pyproject.toml
    _tap = None  # type: ignore[assignment]

try:
    _epoll = monkey.get_original("select", "epoll")  # gevent takes it away there
    _EVENTS = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
    """The kernel tells of a socket once, and of the other side's end, or of urgent data, with the bytes before it."""
except AttributeError:  # no Linux
    _epoll, _EVENTS = None, 0

READ_BYTES = 65536
MAX_BYTES = 64 << 20
"""Of one answer: no transcript comes near it, and memory stays bounded. As in _tap.c."""

BATCH = 1024
"""Sockets that one look reads, at the most."""

REST_S = 0.001
"""As in _tap.c."""

SO_TIMESTAMPNS = SCM_TIMESTAMPNS = 35
"""Linux's, which Python has no name for."""

_buffer = memoryview(bytearray(READ_BYTES))
_into = [_buffer]
"""What the loop reads into, one answer's bytes after the other's."""

_timespec = struct.Struct("ll")
_CONTROL_BYTES = 64
"""For one timespec with its head."""

_TCP_INFO = 11
_OUT_OF_ORDER = struct.Struct("224xI")
"""Of Linux's struct tcp_info: the packets that did not follow what a connection had (tcpi_rcv_ooopack, since 5.4)."""

CHUNKED, UNTIL_CLOSE = -1, -2
"""Framings of a body; any other is its length in bytes."""


class Tap(Protocol):
    """What comes on one socket, from a moment on. Stamps are `time.perf_counter_ns()`."""

    @property
    def status(self) -> str:
        """running; complete; cut: closed before its end; broken: not HTTP's chunks; too long; failed: see `error`."""

    @property
    def error(self) -> int:
        """errno, where the status is failed."""

    @property
    def last(self) -> int:
        """The stamp of the last read; 0 before the first."""

    @property
    def surplus(self) -> bool:
        """Whether bytes came after the end: the connection cannot be used again."""

    def want(self, beyond: int) -> bool:
        """Set the owner's event when the head has more than so many bytes (-1: when the answer has ended); True if that
        is so already, and nothing will be set."""

    def head(self, start: int) -> bytes:
        """The bytes from a position on, before `begin_body`."""

    def stamp(self, position: int) -> int:
        """The stamp of the read that brought the head up to a position."""

    def begin_body(self, start: int, framing: int) -> None:
        """Say where the body begins and how it is framed."""

    def collected(self) -> tuple[bytes, list[int], list[int]]:
        """The body so far without its framing, and for each read its stamp and where in the body it ended."""

    def close(self) -> None:
        """Read no more. The connection itself stays open."""


Source = Callable[[int, Event], Tap]
"""Makes a tap on a descriptor, with the event to set."""


class PythonTap:
    """A tap that gevent's loop reads, when `PythonTaps` says so."""

    def __init__(self, taps: PythonTaps, descriptor: int, owner: Event) -> None:
        # A duplicate of our own: whoever closes the connection cannot pull the descriptor from under the loop.
        self.socket = _socket.socket(fileno=os.dup(descriptor))
        self.socket.setblocking(False)
        self._taps, self._owner = taps, owner
        self._raw = bytearray()
        self._raw_marks: list[tuple[int, int]] = []
        self._body: list[bytes] = []
        self._size = 0
        self._stamps: list[int] = []
        self._ends: list[int] = []
        self._framing: int | Chunked | None = None
        self._waits: int | None = None
        self.status, self.error, self.last, self.surplus = "running", 0, 0, False
        self._out_of_order: int | None = None
        taps.add(self)

    def want(self, beyond: int) -> bool:
        come = self.status != "running" or 0 <= beyond < len(self._raw)
        self._waits = None if come else beyond
        return come

    def head(self, start: int) -> bytes:
        return bytes(self._raw[start:])

    def stamp(self, position: int) -> int:
        return next((at for at, end in self._raw_marks if position <= end), self.last)

    def begin_body(self, start: int, framing: int) -> None:
        self._framing = Chunked() if framing == CHUNKED else framing
        before, self.status = self.status, "running"
        if framing == 0:
            self.status = "complete"
        for at, end in self._raw_marks:
            if end > start:
                self._take(bytes(self._raw[start:end]), at)
                start = end
        if self.status == "running" and before != "running":
            self.status = "complete" if before == "cut" and framing == UNTIL_CLOSE else before
        if self.status != "running":
            self._taps.remove(self)

    def collected(self) -> tuple[bytes, list[int], list[int]]:
        return b"".join(self._body), self._stamps, self._ends

    def close(self) -> None:
        self._taps.remove(self)
        self.socket.close()

    def ask_for_stamps(self) -> None:
        """Have the kernel say when it got what is read. Linux only."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(_socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._out_of_order = self._count_out_of_order()

    def read(self, to_the_end: bool = False) -> None:
        """Read what is there, which ends with a read that brings less than it could; or until the other side's end."""
        while self._read_once() >= (1 if to_the_end else READ_BYTES) and self.status == "running":
            pass

    def _read_once(self) -> int:
        try:
            size, control, _, _ = self.socket.recvmsg_into(_into, _CONTROL_BYTES)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self.status, self.error = "failed", error.errno or 0
            size = 0
        if size:
            data = bytes(_buffer[:size])
            self.last = at = self._taps.stamp(self, control)
            if self._framing is not None:
                self._take(data, at)
            else:
                self._raw += data
                self._raw_marks.append((at, len(self._raw)))
                if len(self._raw) > MAX_BYTES:
                    self.status = "too long"
        elif self.status == "running":
            self.status = "complete" if self._framing == UNTIL_CLOSE else "cut"
        ended = self.status != "running"
        if ended:
            self._taps.remove(self)
        if self._waits is not None and (ended or 0 <= self._waits < len(self._raw)):
            self._waits = None
            self._owner.set()
        return size

    def came_out_of_order(self) -> bool:
        """Whether any packet did, or that is not known."""
        count = self._count_out_of_order()
        return count is None or count != self._out_of_order

    def _count_out_of_order(self) -> int | None:
        info = self.socket.getsockopt(_socket.IPPROTO_TCP, _TCP_INFO, _OUT_OF_ORDER.size)
        return _OUT_OF_ORDER.unpack(info)[0] if len(info) == _OUT_OF_ORDER.size else None

    def _take(self, data: bytes, at: int) -> None:
        if self.status != "running":
            self.surplus = True
            return
        framing = self._framing
        if isinstance(framing, Chunked):
            payload = framing.take(data)
            if framing.ended or framing.broken:
                self.status, self.surplus = "complete" if framing.ended else "broken", framing.surplus
        elif framing == UNTIL_CLOSE:
            payload = data
        else:
            assert framing is not None
            payload, self.surplus = data[:framing], len(data) > framing
            self._framing = framing = framing - len(payload)
            if not framing:
                self.status = "complete"
        if payload:
            self._body.append(payload)
            self._size += len(payload)
            self._stamps.append(at)
            self._ends.append(self._size)
            if self._size > MAX_BYTES:
                self.status = "too long"


class PythonTaps:
    """What reads all taps of a process: one look at every socket that is ready, and a rest, in turns. Where there is no
    epoll, the loop watches each socket by itself."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll
        self._reading: dict[int, PythonTap] = {}
        self._watchers: dict[int, Any] = {}
        self._since = self._epoch = self._free_since = 0
        self._stamped = False

    def __call__(self, descriptor: int, owner: Event) -> Tap:
        return PythonTap(self, descriptor, owner)

    @cached_property
    def _poll(self) -> Any:
        # At the first tap, not at import: Locust forks into workers.
        poll = self._epoll()
        loop = gevent.get_hub().loop
        self._readable, self._rest = loop.io(poll.fileno(), 1, ref=False), loop.timer(REST_S, REST_S, ref=False)
        self._readable.start(self._look_at_once)
        return poll

    def add(self, tap: PythonTap) -> None:
        """Read a tap from now on, until it is removed."""
        descriptor = tap.socket.fileno()
        self._reading[descriptor] = tap
        if self._epoll is None:
            watcher = self._watchers[descriptor] = gevent.get_hub().loop.io(descriptor, 1)
            watcher.start(tap.read)
            return
        tap.ask_for_stamps()
        self._poll.register(descriptor, _EVENTS)

    def remove(self, tap: PythonTap) -> None:
        """Read it no more. A second time does no harm."""
        descriptor = tap.socket.fileno()
        if self._reading.pop(descriptor, None) is None:
            return
        if self._epoll is None:
            watcher = self._watchers.pop(descriptor)
            watcher.stop()
            watcher.close()
        else:
            self._poll.unregister(descriptor)

    def stamp(self, tap: PythonTap, control: list[tuple[int, int, bytes]]) -> int:
        """When what has just been read could be read: when the kernel got it, as it says beside it. _tap.c tells what
        else is looked at, and why."""
        now = time.perf_counter_ns()
        self._stamped = bool(control) and control[0][1] == SCM_TIMESTAMPNS
        if not self._stamped:
            return now
        seconds, rest = _timespec.unpack(control[0][2])
        at: int = max(seconds * 1_000_000_000 + rest - self._epoch, self._since, tap.last)
        return now if at > now or (at < now - 2 * REST_S * 1e9 and tap.came_out_of_order()) else at

    def _look(self) -> bool:
        """Read all that is there. Returns whether so much comes that a rest is worth it."""
        looked = time.perf_counter_ns()
        self._epoch = time.time_ns() - time.perf_counter_ns()  # in this order: see _tap.c
        ready = self._poll.poll(0, BATCH)
        for descriptor, events in ready:
            self._reading[descriptor].read(to_the_end=events != select.EPOLLIN)
        if len(ready) < BATCH:
            self._since = looked
        if not ready:
            return False
        busy = self._stamped and looked - self._free_since < REST_S * 1e9
        self._free_since = looked + round(REST_S * 1e9) * busy
        return busy

    def _look_at_once(self) -> None:
        if self._look():
            self._readable.stop()
            self._rest.again(self._look_after_rest)

    def _look_after_rest(self) -> None:
        if not self._look():
            self._rest.stop()
            self._readable.start(self._look_at_once)


python = PythonTaps(_epoll)


class CompiledTaps:
    """One reading thread for a process, and its wakings in gevent's loop."""

    @cached_property
    def _reader(self) -> Any:
        # At the first tap, not at import: a thread does not survive Locust's fork into workers.
        reader = _tap.Reader()
        self._watcher = gevent.get_hub().loop.io(reader.fileno(), 1, ref=False)
        self._watcher.start(self._wake)
        return reader

    def _wake(self) -> None:
        for owner in self._reader.woken():
            owner.set()

    def lags(self) -> list[float]:
        """How late the thread ran, in seconds, each 20 ms since the last call (20 s at most)."""
        return [lag / 1e9 for lag in self._reader.lags()]

    def __call__(self, descriptor: int, owner: Event) -> Tap:
        tap: Tap = self._reader.tap(descriptor, owner)
        return tap


compiled: CompiledTaps | None = None if _tap is None else CompiledTaps()


class TapFile(io.RawIOBase):
    """What http.client reads an answer from: its head, and any body that is not collected.

    Raises TimeoutError when nothing comes for `stall` seconds, as a socket does, and its other errors.
    """

    def __init__(self, source: Source, descriptor: int, stall: float) -> None:
        self._come = Event()
        self.tap = source(descriptor, self._come)
        self._position = 0
        self._in_body = False
        self._stall = stall
        self._began = time.perf_counter_ns()

    def makefile(self, _: str) -> TapFile:
        """Itself: http.client asks a socket for its file."""
        return self

    def readable(self) -> bool:
        return True

    def peek(self, _: int = 0) -> bytes:
        """What is there from here on; waits until there is something, or the end."""
        data = self.tap.head(self._position)
        if data:
            return data
        self._come.clear()
        if not self.tap.want(self._position) and not self._come.wait(self._stall):
            raise TimeoutError("timed out")
        data = self.tap.head(self._position)
        if not data and self.tap.status == "failed":
            raise self._failure()
        return data

    def read1(self, size: int = -1) -> bytes:
        """As much as is there, `size` bytes at most."""
        return self.read(READ_BYTES if size < 0 else size) or b""

    def readinto(self, buffer: Any) -> int:
        data = self.peek()[: len(buffer)] if len(buffer) else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def skip(self, size: int) -> None:
        """Take so many bytes that were seen."""
        self._position += size

    @property
    def read_at(self) -> int:
        """The stamp of the read that brought the last byte that was taken."""
        return self.tap.stamp(self._position)

    @property
    def surplus(self) -> bool:
        """Whether more came than was taken, or than the body."""
        return self.tap.surplus or (not self._in_body and bool(self.tap.head(self._position)))

    def begin_body(self, framing: int) -> None:
        """Collect what follows as a body."""
        self._in_body = True
        self.tap.begin_body(self._position, framing)

    def wait_for_end(self, at_most: float) -> bool:
        """Wait for the end of the body, so many seconds at most, and return whether it has come. Raises what urllib3
        raises where the body ends otherwise or stalls."""
        tap = self.tap
        self._come.clear()
        if not tap.want(-1):
            idle = (time.perf_counter_ns() - (tap.last or self._began)) / 1e9
            if idle >= self._stall:
                raise ReadTimeoutError(None, "", "nothing came")  # type: ignore[arg-type]
            self._come.wait(min(at_most, self._stall - idle))
        match tap.status:
            case "cut":
                raise BrokenBody("the body ended early", IncompleteRead(b""))
            case "broken":
                raise BrokenBody("the body is not chunked as HTTP is", IncompleteRead(b""))
            case "too long":
                raise BrokenBody(f"an answer of more than {MAX_BYTES} bytes")
            case "failed":
                raise BrokenBody("the connection broke", self._failure())
        return tap.status == "complete"

    def _failure(self) -> OSError:
        return OSError(self.tap.error, os.strerror(self.tap.error))

    def close(self) -> None:
        if not self.closed:
            self.tap.close()
        super().close()
