"""One user's connection, with the times that requests does not tell."""

from __future__ import annotations

import contextlib
import io
import select
import time
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPException, IncompleteRead
from http.client import HTTPResponse as Head
from typing import Any

from gevent import monkey
from requests import PreparedRequest
from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool, PoolManager, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from asr_load.http.socket_reader import HeadFile, ReaderFactory
from asr_load.http.transport import Transport
from asr_load.stream.chunked import HEX_DIGITS, MAX_LINE
from asr_load.stream.limits import MAX_HEAD_BYTES, MAX_INTERIM, MAX_LENGTH_DIGITS

_poll = monkey.get_original("select", "poll")
"""gevent's would let other greenlets run."""

Connection = Any
"""One of urllib3's. Its `sock`, `host`, `port`, `default_port` and `proxy` are used; its types know less."""


@dataclass
class Connects:
    """Connections that were opened, and the seconds that it took: to connect, and to agree on TLS."""

    count: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0
    dropped: int = 0
    """Closed because something came on them, or their end, while nothing was asked."""
    server: str = ""
    """What the other end calls itself, by its header of that name."""

    def add(self, took_s: float) -> None:
        self.count += 1
        self.total_s += took_s
        self.longest_s = max(self.longest_s, took_s)


class UserConnection:
    """Stamps of the request that is on a user's connection, in perf_counter nanoseconds; None where not reached.

    Give `pool_manager` to the user's HttpSession, and call `reset` before each request.
    """

    def __init__(self) -> None:
        self._pools: Any = {"http": self._pool, "https": self._pool_tls}
        self.pool_manager = PoolManager(num_pools=2, maxsize=1)
        self.pool_manager.pool_classes_by_scheme = self._pools
        self.prepared: PreparedRequest | None = None
        """What the user's requests have in common."""
        self.common: dict[str, str] = {}
        """The headers that `prepared` was given."""
        self.head = ""
        """It as text, where it has been written to a kept connection."""
        self.reader_factory: ReaderFactory | None = None
        """What reads answers from now on; None leaves it to urllib3."""
        self.stall = float("inf")
        """Seconds without a byte after which a reader gives up."""
        self.file: HeadFile | None = None
        """What the last request's answer is read from, if a reader reads it."""
        self.connection: Connection | None = None
        """The connection of the last request, if a reader can read from it."""
        self.connects = Connects()
        """Of this user, or of whatever else they are to be counted for."""
        self.address: tuple[str, int] | None = None
        """The host and port that `prepared` goes to, where a kept connection may."""
        self.unused = False
        """Whether the connection has carried no request yet."""
        self.reset()

    def through(self, transport: Transport) -> ProxyManager:
        """What connects by way of a proxy, with the same stamps."""
        manager = ProxyManager(transport.proxy, num_pools=2, maxsize=1, proxy_headers=transport.proxy_headers)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def reset(self) -> None:
        """Forget the last request."""
        self.started: int | None = None
        self.uploaded: int | None = None
        self.headers: int | None = None
        self.read_at: int | None = None
        """When the last bytes of a body were read that no reader reads."""
        self.reused = False
        self.pause_s = 0.0
        """How long the server wants to be left alone."""

    @property
    def last_read(self) -> int | None:
        """The stamp of the last bytes of an answer."""
        return self.read_at if self.file is None else self.file.reader.last or None

    def begin(self, connection: Connection | None) -> HeadFile | None:
        """Begin to read the answer on a connection, and start the clock: its request is sent next. None where it is not
        to be read by a reader."""
        self.drop()
        self.connection = connection
        self.reused, self.unused = not self.unused, False
        if connection is not None and self.reader_factory is not None:
            self.file = HeadFile(self.reader_factory, connection.sock.fileno(), self.stall)
        if self.started is None:
            self.started = time.perf_counter_ns()
        return self.file

    def drop(self) -> None:
        """Stop to read the last answer. Where more came than it, its connection is closed."""
        if self.file is not None:
            self.file.close()
            if self.file.surplus and self.connection is not None and self.connection.sock is not None:
                self.connection.close()
                self.connects.dropped += 1
            self.file = None

    def _pool(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        pool = HTTPConnectionPool(*args, **kwargs)
        pool.ConnectionCls = self._connection(_StampedConnection)
        return pool

    def _pool_tls(self, *args: Any, **kwargs: Any) -> HTTPSConnectionPool:
        pool = HTTPSConnectionPool(*args, **kwargs)
        pool.ConnectionCls = self._connection(_StampedTlsConnection)
        return pool

    def _connection(self, base: Any) -> Any:
        # A class of its own for each user: urllib3 makes the connections, and leaves no other way to say whose it is.
        return type(base.__name__, (base,), {"user_connection": self})


class _Stamped:
    """Mixed into urllib3's connections: connects before the clock starts, so that no TTFT holds a handshake."""

    user_connection: UserConnection
    head: FinalHead | None = None
    """Of the last answer that urllib3 read."""

    @property
    def is_connected(self) -> bool:
        """Whether it may carry a request: it is open, and nothing has come since the last answer, nor its end."""
        connection: Any = self
        if connection.sock is None:
            return False
        poll = _poll()
        poll.register(connection.sock.fileno(), select.POLLIN)
        if not (self.head and self.head.surplus) and not poll.poll(0):
            return True
        self.user_connection.connects.dropped += 1
        connection.close()
        return False

    def connect(self) -> None:
        began = time.perf_counter()
        super().connect()  # type: ignore[misc]
        self.user_connection.connects.add(time.perf_counter() - began)
        self.user_connection.unused = True

    def request(self, *args: Any, **kwargs: Any) -> None:
        connection: Any = self
        user_connection = self.user_connection
        if connection.sock is None:  # urllib3 has connected already where there is TLS
            connection.connect()
        # TLS is urllib3's: what a reader would read is encrypted.
        file = user_connection.begin(None if isinstance(self, HTTPSConnection) else connection)
        connection.response_class = FinalHead if file is None else partial(_head, file)
        super().request(*args, **kwargs)  # type: ignore[misc]
        user_connection.uploaded = time.perf_counter_ns()

    def getresponse(self) -> HTTPResponse:
        response: HTTPResponse = super().getresponse()  # type: ignore[misc]
        file = self.user_connection.file
        self.user_connection.headers = time.perf_counter_ns() if file is None else file.read_at
        head: Any = response._original_response
        self.head = head
        return response


class FinalHead(Head):
    """The head of the answer itself: what comes before it (1xx) is passed over, as RFC 9110, section 15.2, asks. Only
    101 is none that another follows."""

    def __init__(self, source: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(source, *args, **kwargs)
        self.surplus = False
        """Whether more came with a body than the body. A reader knows it better."""
        self._source = source
        self._heads = 0

    def _close_conn(self) -> None:
        """At the end of a body: forget what was read ahead, which http.client keeps for nobody."""
        if isinstance(self.fp, io.BufferedReader):
            timeout = self._source.gettimeout()
            with contextlib.suppress(OSError):  # nothing is there: TLS says it so
                self._source.settimeout(0)
                self.surplus = bool(self.fp.peek())
            self._source.settimeout(timeout)
        super()._close_conn()  # type: ignore[misc]

    def begin(self) -> None:
        file, bounded = self.fp, _BoundedLines(self.fp)
        self.fp: Any = bounded
        try:
            super().begin()
            while self.status // 100 == 1 and self.status != HTTPStatus.SWITCHING_PROTOCOLS:
                self.headers: Any = None  # it has not begun
                super().begin()
        finally:
            if self.fp is bounded:  # no body is left to be read, else
                self.fp = file
        if len(self.headers.get("content-length", "").strip()) > MAX_LENGTH_DIGITS:
            raise HTTPException(f"a content-length of more than {MAX_LENGTH_DIGITS} digits")
        if self.status == HTTPStatus.REQUEST_TIMEOUT:
            self.will_close = True  # whether it says so or not: RFC 9110, section 15.5.9

    def _read_status(self) -> tuple[str, int, str]:
        self._heads += 1  # http.client passes over any number of 100 by itself
        if self._heads > MAX_INTERIM + 1:
            raise HTTPException(f"more than {MAX_INTERIM} interim answers")
        found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
        return found

    def _read_next_chunk_size(self) -> int:
        """http.client takes a size of any length, and what is none for the end."""
        line = self.fp.readline(MAX_LINE + 1)
        digits = line.partition(b";")[0].strip(b" \t\r\n")
        if not line.endswith(b"\n") and len(line) <= MAX_LINE:
            raise IncompleteRead(b"")
        if not line.endswith(b"\n") or not 0 < len(digits) <= MAX_LENGTH_DIGITS or digits.strip(HEX_DIGITS):
            raise HTTPException("the body is not chunked as HTTP is")
        return int(digits, 16)

    def _read_and_discard_trailer(self) -> None:
        file, self.fp = self.fp, _BoundedLines(self.fp)
        try:
            super()._read_and_discard_trailer()  # type: ignore[misc]
        finally:
            self.fp = file


class _BoundedLines:
    """A file whose lines are MAX_HEAD_BYTES together, at most: http.client bounds each line alone."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, MAX_HEAD_BYTES

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._file.readline(limit)
        self._left -= len(line)
        if self._left < 0:
            raise HTTPException(f"a head of more than {MAX_HEAD_BYTES} bytes")
        return line


def _head(file: Any, _: Any, *args: Any, **kwargs: Any) -> Head:
    return FinalHead(file, *args, **kwargs)


class _StampedConnection(_Stamped, HTTPConnection):  # type: ignore[misc]
    pass


class _StampedTlsConnection(_Stamped, HTTPSConnection):  # type: ignore[misc]
    pass
