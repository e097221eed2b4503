"""Read responses from sockets with the kernel's time stamps, and let Python parse the stream afterwards.

A greenlet that reads its own stream wakes for every chunk, through four layers of library code, and stamps the chunk
only when its turn comes. Instead, a reader watches the connection's socket from before the request is sent, and
collects data with its stamps. The greenlet wakes for the head of the response and for its end. There are two readers:

- compiled: a thread outside of the interpreter (_socket_reader.c).
- python: gevent's loop, without a compiler or on other systems than Linux.

Linux stamps received data (SO_TIMESTAMPNS), so a read need not follow immediately: both readers look at all sockets
together, and rest a moment before the next look. Chunks of one stream that arrive within a rest get the stamp of the
last one. Other systems give no stamps: there, a read is stamped when it returns, and readers do not rest.

With TLS, data is decrypted after it is read: see decryption.py.
"""

from __future__ import annotations

import _socket  # gevent's own sockets would wait
import contextlib
import os
import select
import struct
import time
from functools import cached_property, partial
from typing import Any, Protocol

import gevent
from gevent import monkey

from asr_load.http.collector import Collector, Owner, SocketReader
from asr_load.http.loop import call_in_next_round
from asr_load.stream.limits import TURN_S

try:
    from asr_load.http import _socket_reader
except ImportError:  # not compiled: see the extension in pyproject.toml
    _socket_reader = None  # type: ignore[assignment]

try:
    _epoll = monkey.get_original("select", "epoll")  # gevent removes it from `select`
    _EVENTS = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
    """Edge-triggered: the kernel reports data once, together with the end or urgent data that follows it."""
except AttributeError:  # not Linux
    _epoll, _EVENTS = None, 0

READ_BYTES = 32768
"""Bytes to read at once: few enough to parse in a few milliseconds, even in tiny chunks."""

BATCH = 1024
"""Maximum number of sockets that one look reads."""

REST_S = 0.001
"""As in _socket_reader.c."""

SO_TIMESTAMPNS = SCM_TIMESTAMPNS = 35
"""Constants of Linux that Python does not define."""

_buffer = memoryview(bytearray(READ_BYTES))
_into = [_buffer]
"""The buffer for all reads of the loop."""

_timespec = struct.Struct("ll")
_CONTROL_BYTES = 64
"""Size of the ancillary data: one timespec with its header."""

_TCP_INFO = 11
_OUT_OF_ORDER = struct.Struct("224xI")
"""The number of packets received out of order, in Linux's struct tcp_info (tcpi_rcv_ooopack, since 5.4)."""


class ReaderFactory(Protocol):
    """Makes readers of one kind, which set their owner."""

    def __call__(self, descriptor: int, owner: Owner) -> SocketReader:
        """Make a reader of a socket."""

    def collector(self, owner: Owner) -> SocketReader:
        """Make a reader without a socket, to be fed."""


class PythonReader(Collector):
    """A reader whose socket `PythonReaders` reads in gevent's loop."""

    def __init__(self, readers: PythonReaders, descriptor: int, owner: Owner) -> None:
        super().__init__(owner)
        # Duplicate the descriptor, so that closing the connection does not close it while the loop uses it.
        self.socket = _socket.socket(fileno=os.dup(descriptor))
        self.socket.setblocking(False)
        self._readers = readers
        self._out_of_order: int | None = None
        readers.add(self)

    def _stop(self) -> None:
        self._readers.remove(self)

    def close(self) -> None:
        super().close()
        self.socket.close()

    def ask_for_stamps(self) -> None:
        """Let the kernel stamp received data. Linux only."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(_socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._out_of_order = self._count_out_of_order()

    def read(self, to_the_end: bool = False) -> bool:
        """Read until a read returns less than it could or, with `to_the_end`, until the other side's end. Returns
        whether there may be more, because others must have a turn first."""
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
            self.fail(error)
            return 0
        if size:
            self.feed(bytes(_buffer[:size]), self._readers.stamp(self, control))
        else:
            self.end()
        return size

    def came_out_of_order(self) -> bool:
        """Whether a packet arrived out of order, or this is unknown."""
        count = self._count_out_of_order()
        return count is None or count != self._out_of_order

    def _count_out_of_order(self) -> int | None:
        info = self.socket.getsockopt(_socket.IPPROTO_TCP, _TCP_INFO, _OUT_OF_ORDER.size)
        return _OUT_OF_ORDER.unpack(info)[0] if len(info) == _OUT_OF_ORDER.size else None


class PythonReaders:
    """Reads all sockets of a process: looks at all ready sockets, rests, and looks again. Without epoll, the loop
    watches each socket separately."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll
        self._reading: dict[int, PythonReader] = {}
        self._watchers: dict[int, Any] = {}
        self._since = self._epoch = self._free_since = 0
        self._stamped = False

    def __call__(self, descriptor: int, owner: Owner) -> SocketReader:
        return PythonReader(self, descriptor, owner)

    def collector(self, owner: Owner) -> SocketReader:
        return Collector(owner)

    @cached_property
    def _poll(self) -> Any:
        # Create it for the first reader, not on import, because Locust forks into workers.
        poll = self._epoll()
        loop = gevent.get_hub().loop
        self._readable, self._rest = loop.io(poll.fileno(), 1, ref=False), loop.timer(REST_S, REST_S, ref=False)
        self._readable.start(self._look_at_once)
        return poll

    def add(self, reader: PythonReader) -> None:
        """Read the reader's socket until it is removed."""
        descriptor = reader.socket.fileno()
        self._reading[descriptor] = reader
        if self._epoll is None:
            watcher = self._watchers[descriptor] = gevent.get_hub().loop.io(descriptor, 1)
            watcher.start(reader.read)
            return
        reader.ask_for_stamps()
        self._poll.register(descriptor, _EVENTS)

    def remove(self, reader: PythonReader) -> None:
        """Stop reading the reader's socket. May be called more than once."""
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
        """The time at which the kernel received the data just read, from the ancillary data. _socket_reader.c explains
        the checks."""
        now = time.perf_counter_ns()
        self._stamped = bool(control) and control[0][1] == SCM_TIMESTAMPNS
        if not self._stamped:
            return now
        seconds, rest = _timespec.unpack(control[0][2])
        at: int = max(seconds * 1_000_000_000 + rest - self._epoch, self._since, reader.last)
        return now if at > now or (at < now - 2 * REST_S * 1e9 and reader.came_out_of_order()) else at

    def _look(self) -> bool:
        """Read all data that is ready. Returns whether so much arrives that a rest is worthwhile."""
        looked = time.perf_counter_ns()
        self._epoch = time.time_ns() - time.perf_counter_ns()  # in this order: see _socket_reader.c
        ready = self._poll.poll(0, BATCH)
        for descriptor, events in ready:
            reader = self._reading.get(descriptor)
            if reader is not None and reader.read(to_the_end=events != select.EPOLLIN):
                self._poll.modify(descriptor, _EVENTS)  # so that the kernel reports the socket again
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
    """One reading thread per process, which wakes gevent's loop."""

    def __init__(self) -> None:
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        # Threads do not survive a fork, such as that of Locust's workers.
        if vars(self).pop("_reader", None) is not None:
            self._watcher.stop()

    @cached_property
    def _reader(self) -> Any:
        reader = _socket_reader.ReadingThread()
        self._watcher = gevent.get_hub().loop.io(reader.fileno(), 1, ref=False)
        self._watcher.start(self._wake)
        return reader

    def _wake(self) -> None:
        self._set(self._reader.woken())

    def _set(self, owners: list[Owner]) -> None:
        until = time.perf_counter() + TURN_S
        for number, owner in enumerate(owners, 1):
            owner.set()
            if time.perf_counter() > until:  # owners may decrypt, which takes time
                call_in_next_round(partial(self._set, owners[number:]))
                return

    @property
    def nice(self) -> int:
        """The thread's nice value: -15 if this process may set it and ASR_LOAD_NICE is not 0."""
        nice: int = self._reader.nice
        return nice

    def lags(self) -> list[float]:
        """How late the thread ran at each 20 ms tick since the last call, in seconds; at most 1024 ticks."""
        return [lag / 1e9 for lag in self._reader.lags()]

    def __call__(self, descriptor: int, owner: Owner) -> SocketReader:
        reader: SocketReader = self._reader.read_from(descriptor, owner)
        return reader

    def collector(self, owner: Owner) -> SocketReader:
        collector: SocketReader = self._reader.collector(owner)
        return collector


compiled: CompiledReaders | None = None if _socket_reader is None else CompiledReaders()
