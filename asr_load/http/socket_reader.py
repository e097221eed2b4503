"""Reading an answer below requests: every read is stamped by the kernel, and the stream is parsed afterwards.

A greenlet that reads its own stream is woken for every chunk, through four layers of library code, and stamps the chunk
when its turn has come. A reader stands on the connection's socket from before the request is sent, and collects what
comes with its stamps; the greenlet is woken for the head of the answer and for its end. There are two kinds:

- compiled: a thread outside of the interpreter (_socket_reader.c) reads.
- python: gevent's loop reads. Where there is no compiler, or no Linux.

Linux stamps what it receives (SO_TIMESTAMPNS), so a read need not follow at once: both look at all sockets together,
and rest a moment before they look again. Chunks of one stream that come within a rest have the stamp of the last of
them. Elsewhere a read is stamped as it returns, and there is no rest.

requests and urllib3 still send the request and read the head; `HeadFile` is the file that http.client reads it from.
`plain` is the third way: no reader at all, sseclient over the response. It is the oracle of the tests, and what TLS
needs.
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
from asr_load.stream.limits import MAX_BYTES, MAX_READS, MAX_WIRE_BYTES, TURN_S

try:
    from asr_load.http import _socket_reader
except ImportError:  # not compiled: see the extension in pyproject.toml
    _socket_reader = None  # type: ignore[assignment]

try:
    _epoll = monkey.get_original("select", "epoll")  # gevent takes it away there
    _EVENTS = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
    """The kernel tells of a socket once, and of the other side's end, or of urgent data, with the bytes before it."""
except AttributeError:  # no Linux
    _epoll, _EVENTS = None, 0

READ_BYTES = 32768
"""At once: taken apart in a few milliseconds, in whatever small chunks they are."""

PEEK_BYTES = 8192
"""That are looked at together: a line of a head, or as much as a plain body's read takes at once."""

BATCH = 1024
"""Sockets that one look reads, at the most."""

REST_S = 0.001
"""As in _socket_reader.c."""

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


class SocketReader(Protocol):
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


ReaderFactory = Callable[[int, Event], SocketReader]
"""Makes a reader on a descriptor, with the event to set."""


class PythonReader:
    """A reader that gevent's loop reads, when `PythonReaders` says so."""

    def __init__(self, readers: PythonReaders, descriptor: int, owner: Event) -> None:
        # A duplicate of our own: whoever closes the connection cannot pull the descriptor from under the loop.
        self.socket = _socket.socket(fileno=os.dup(descriptor))
        self.socket.setblocking(False)
        self._readers, self._owner = readers, owner
        self._raw = bytearray()
        self._raw_marks: list[tuple[int, int]] = []
        self._body: list[bytes] = []
        self._size = self._wire = 0
        self._stamps: list[int] = []
        self._ends: list[int] = []
        self._framing: int | Chunked | None = None
        self._waits: int | None = None
        self.status, self.error, self.last, self.surplus = "running", 0, 0, False
        self._out_of_order: int | None = None
        readers.add(self)

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
            self._readers.remove(self)

    def collected(self) -> tuple[bytes, list[int], list[int]]:
        return b"".join(self._body), self._stamps, self._ends

    def close(self) -> None:
        self._readers.remove(self)
        self.socket.close()

    def ask_for_stamps(self) -> None:
        """Have the kernel say when it got what is read. Linux only."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(_socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._out_of_order = self._count_out_of_order()

    def read(self, to_the_end: bool = False) -> bool:
        """Read what is there, which ends with a read that brings less than it could; or until the other side's end.
        Returns whether there may be more: others have their turn first."""
        until = time.perf_counter() + TURN_S
        while self._read_once() >= (1 if to_the_end else READ_BYTES) and self.status == "running":
            if time.perf_counter() > until:
                return True
        return False

    def _read_once(self) -> int:
        try:
            size, control, _, _ = self.socket.recvmsg_into(_into, _CONTROL_BYTES)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self.status, self.error = "failed", error.errno or 0
            size = 0
        self._wire += size
        if self._wire > MAX_WIRE_BYTES and self.status == "running":
            self.status = "too long"
        if size:
            data = bytes(_buffer[:size])
            self.last = at = self._readers.stamp(self, control)
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
            self._readers.remove(self)
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
            if self._size > MAX_BYTES or len(self._stamps) > MAX_READS:
                self.status = "too long"


class PythonReaders:
    """What reads all sockets of a process: one look at every socket that is ready, and a rest, in turns. Where there is
    no epoll, the loop watches each socket by itself."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll
        self._reading: dict[int, PythonReader] = {}
        self._watchers: dict[int, Any] = {}
        self._since = self._epoch = self._free_since = 0
        self._stamped = False

    def __call__(self, descriptor: int, owner: Event) -> SocketReader:
        return PythonReader(self, descriptor, owner)

    @cached_property
    def _poll(self) -> Any:
        # At the first reader, not at import: Locust forks into workers.
        poll = self._epoll()
        loop = gevent.get_hub().loop
        self._readable, self._rest = loop.io(poll.fileno(), 1, ref=False), loop.timer(REST_S, REST_S, ref=False)
        self._readable.start(self._look_at_once)
        return poll

    def add(self, reader: PythonReader) -> None:
        """Read a reader from now on, until it is removed."""
        descriptor = reader.socket.fileno()
        self._reading[descriptor] = reader
        if self._epoll is None:
            watcher = self._watchers[descriptor] = gevent.get_hub().loop.io(descriptor, 1)
            watcher.start(reader.read)
            return
        reader.ask_for_stamps()
        self._poll.register(descriptor, _EVENTS)

    def remove(self, reader: PythonReader) -> None:
        """Read it no more. A second time does no harm."""
        descriptor = reader.socket.fileno()
        if self._reading.pop(descriptor, None) is None:
            return
        if self._epoll is None:
            watcher = self._watchers.pop(descriptor)
            watcher.stop()
            watcher.close()
        else:
            self._poll.unregister(descriptor)

    def stamp(self, reader: PythonReader, control: list[tuple[int, int, bytes]]) -> int:
        """When what has just been read could be read: when the kernel got it, as it says beside it. _socket_reader.c
        tells what else is looked at, and why."""
        now = time.perf_counter_ns()
        self._stamped = bool(control) and control[0][1] == SCM_TIMESTAMPNS
        if not self._stamped:
            return now
        seconds, rest = _timespec.unpack(control[0][2])
        at: int = max(seconds * 1_000_000_000 + rest - self._epoch, self._since, reader.last)
        return now if at > now or (at < now - 2 * REST_S * 1e9 and reader.came_out_of_order()) else at

    def _look(self) -> bool:
        """Read all that is there. Returns whether so much comes that a rest is worth it."""
        looked = time.perf_counter_ns()
        self._epoch = time.time_ns() - time.perf_counter_ns()  # in this order: see _socket_reader.c
        ready = self._poll.poll(0, BATCH)
        for descriptor, events in ready:
            reader = self._reading.get(descriptor)
            if reader is not None and reader.read(to_the_end=events != select.EPOLLIN):
                self._poll.modify(descriptor, _EVENTS)  # the kernel tells of it again
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


python = PythonReaders(_epoll)


class CompiledReaders:
    """One reading thread for a process, and its wakings in gevent's loop."""

    def __init__(self) -> None:
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        # A thread does not survive a fork, as Locust's into workers.
        if vars(self).pop("_reader", None) is not None:
            self._watcher.stop()

    @cached_property
    def _reader(self) -> Any:
        reader = _socket_reader.ReadingThread()
        self._watcher = gevent.get_hub().loop.io(reader.fileno(), 1, ref=False)
        self._watcher.start(self._wake)
        return reader

    def _wake(self) -> None:
        for owner in self._reader.woken():
            owner.set()

    @property
    def nice(self) -> int:
        """The thread's rank with Linux's scheduler: -15 where this process has the right to it, unless ASR_LOAD_NICE is
        0."""
        nice: int = self._reader.nice
        return nice

    def lags(self) -> list[float]:
        """How late the thread ran, in seconds, each 20 ms since the last call (20 s at most)."""
        return [lag / 1e9 for lag in self._reader.lags()]

    def __call__(self, descriptor: int, owner: Event) -> SocketReader:
        reader: SocketReader = self._reader.read_from(descriptor, owner)
        return reader


compiled: CompiledReaders | None = None if _socket_reader is None else CompiledReaders()


class HeadFile(io.RawIOBase):
    """What http.client reads an answer from: its head, and any body that is not collected.

    Raises TimeoutError when nothing comes for `stall` seconds, as a socket does, and its other errors.
    """

    def __init__(self, source: ReaderFactory, descriptor: int, stall: float) -> None:
        self._come = Event()
        self.reader = source(descriptor, self._come)
        self._position = 0
        self._in_body = False
        self._ahead, self._ahead_at = b"", 0
        """What was last taken from the reader, and where in the answer it begins: each byte is taken once."""
        self._stall = stall
        self._began = time.perf_counter_ns()

    def makefile(self, _: str) -> HeadFile:
        """Itself: http.client asks a socket for its file."""
        return self

    def readable(self) -> bool:
        return True

    def peek(self, _: int = 0) -> bytes:
        """What is there from here on, PEEK_BYTES at most; waits until there is something, or the end."""
        at = self._position - self._ahead_at
        if at < len(self._ahead):
            return self._ahead[at : at + PEEK_BYTES]
        data = self._take_ahead()
        if data:
            return data
        self._come.clear()
        if not self.reader.want(self._position) and not self._come.wait(self._stall):
            raise TimeoutError("timed out")
        data = self._take_ahead()
        if not data and self.reader.status == "failed":
            raise self._failure()
        return data

    def _take_ahead(self) -> bytes:
        self._ahead, self._ahead_at = self.reader.head(self._position), self._position
        return self._ahead[:PEEK_BYTES]

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
        return self.reader.stamp(self._position)

    @property
    def surplus(self) -> bool:
        """Whether more came than was taken, or than the body."""
        return self.reader.surplus or (not self._in_body and bool(self.reader.head(self._position)))

    def begin_body(self, framing: int) -> None:
        """Collect what follows as a body."""
        self._in_body = True
        self.reader.begin_body(self._position, framing)

    def wait_for_end(self, at_most: float) -> bool:
        """Wait for the end of the body, so many seconds at most, and return whether it has come. Raises what urllib3
        raises where the body ends otherwise or stalls."""
        reader = self.reader
        self._come.clear()
        if not reader.want(-1):
            idle = (time.perf_counter_ns() - (reader.last or self._began)) / 1e9
            if idle >= self._stall:
                raise ReadTimeoutError(None, "", "nothing came")  # type: ignore[arg-type]
            self._come.wait(min(at_most, self._stall - idle))
        match reader.status:
            case "cut":
                raise BrokenBody("the body ended early", IncompleteRead(b""))
            case "broken":
                raise BrokenBody("the body is not chunked as HTTP is")
            case "too long":
                raise BrokenBody(f"an answer of more than {MAX_BYTES} bytes, or in more than {MAX_READS} reads")
            case "failed":
                raise BrokenBody("the connection broke", self._failure())
        return reader.status == "complete"

    def _failure(self) -> OSError:
        return OSError(self.reader.error, os.strerror(self.reader.error))

    def close(self) -> None:
        if not self.closed:
            self.reader.close()
        super().close()
