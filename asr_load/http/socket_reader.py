"""Reading an answer below requests: every read is stamped by the kernel, and the stream is parsed afterwards.

A greenlet that reads its own stream is woken for every chunk, through four layers of library code, and stamps the chunk
when its turn has come. A reader stands on the connection's socket from before the request is sent, and collects what
comes with its stamps; the greenlet is woken for the head of the answer and for its end. There are two kinds:

- compiled: a thread outside of the interpreter (_socket_reader.c) reads.
- python: gevent's loop reads. Where there is no compiler, or no Linux.

Linux stamps what it receives (SO_TIMESTAMPNS), so a read need not follow at once: both look at all sockets together,
and rest a moment before they look again. Chunks of one stream that come within a rest have the stamp of the last of
them. Elsewhere a read is stamped as it returns, and there is no rest.

Where there is TLS, what is read is decrypted afterwards: decryption.py. `plain` is the third way: the greenlet reads
by itself, and http.client and sseclient take apart what it reads. It is the oracle of the tests.
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

from asr_load.http.collector import Collector, FedReader, Owner, SocketReader
from asr_load.http.turn import call_in_next_round
from asr_load.stream.limits import TURN_S

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


class ReaderFactory(Protocol):
    """One way of reading. Its readers set their owner."""

    def __call__(self, descriptor: int, owner: Owner) -> SocketReader:
        """A reader of a socket."""

    def collector(self, owner: Owner) -> FedReader:
        """A reader of none."""


class PythonReader(Collector):
    """A reader that gevent's loop reads, when `PythonReaders` says so."""

    def __init__(self, readers: PythonReaders, descriptor: int, owner: Owner) -> None:
        super().__init__(owner)
        # A duplicate of our own: whoever closes the connection cannot pull the descriptor from under the loop.
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
            self.fail(error)
            return 0
        if size:
            self.feed(bytes(_buffer[:size]), self._readers.stamp(self, control))
        else:
            self.end()
        return size

    def came_out_of_order(self) -> bool:
        """Whether any packet did, or that is not known."""
        count = self._count_out_of_order()
        return count is None or count != self._out_of_order

    def _count_out_of_order(self) -> int | None:
        info = self.socket.getsockopt(_socket.IPPROTO_TCP, _TCP_INFO, _OUT_OF_ORDER.size)
        return _OUT_OF_ORDER.unpack(info)[0] if len(info) == _OUT_OF_ORDER.size else None


class PythonReaders:
    """What reads all sockets of a process: one look at every socket that is ready, and a rest, in turns. Where there is
    no epoll, the loop watches each socket by itself."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll
        self._reading: dict[int, PythonReader] = {}
        self._watchers: dict[int, Any] = {}
        self._since = self._epoch = self._free_since = 0
        self._stamped = False

    def __call__(self, descriptor: int, owner: Owner) -> SocketReader:
        return PythonReader(self, descriptor, owner)

    def collector(self, owner: Owner) -> FedReader:
        return Collector(owner)

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
        self._set(self._reader.woken())

    def _set(self, owners: list[Owner]) -> None:
        until = time.perf_counter() + TURN_S
        for number, owner in enumerate(owners, 1):
            owner.set()
            if time.perf_counter() > until:  # they decrypt
                call_in_next_round(partial(self._set, owners[number:]))
                return

    @property
    def nice(self) -> int:
        """The thread's rank with Linux's scheduler: -15 where this process has the right to it, unless ASR_LOAD_NICE is
        0."""
        nice: int = self._reader.nice
        return nice

    def lags(self) -> list[float]:
        """How late the thread ran, in seconds, each 20 ms since the last call (20 s at most)."""
        return [lag / 1e9 for lag in self._reader.lags()]

    def __call__(self, descriptor: int, owner: Owner) -> SocketReader:
        reader: SocketReader = self._reader.read_from(descriptor, owner)
        return reader

    def collector(self, owner: Owner) -> FedReader:
        collector: FedReader = self._reader.collector(owner)
        return collector


compiled: CompiledReaders | None = None if _socket_reader is None else CompiledReaders()
