"""The connections of a user: opened, kept, reopened; and the stamps of the request on them."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from itertools import islice
from typing import Any, Protocol
from urllib.parse import urlsplit

import gevent
from gevent import socket
from requests import PreparedRequest

from asr_load.http.addresses import Addresses
from asr_load.http.collector import Owner, SocketReader
from asr_load.http.decryption import Decryption
from asr_load.http.failure import Failure, connect_failure, failure
from asr_load.http.head import HeadParser
from asr_load.http.response import CLOSED, Reads, Response
from asr_load.http.socket_reader import ReaderFactory, python
from asr_load.http.tls import PIECE_BYTES, RECEIVE_BYTES, Tls, ssl_context
from asr_load.http.transport import PORTS, Transport
from asr_load.stream.cause import Cause
from asr_load.stream.reader import ProtocolError

MAX_PIECES = 1024
"""Maximum number of pieces in one call of the kernel: IOV_MAX of Linux."""

MAX_IDLE_READS = 16
"""Maximum number of reads on an idle connection; a TLS ticket takes a few hundred bytes."""

LOOK_S = 0.05
"""Seconds between checks, during an upload that makes no progress, whether the server has already responded."""


PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
"""Minimum and maximum pause of a user, in seconds, after a failed connection or a busy server's response."""


@dataclass(frozen=True)
class Place:
    """Scheme, host and port of a URL."""

    scheme: str
    host: str
    port: int

    @property
    def name(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


@lru_cache
def place_of(url: str) -> Place:
    """The place of a URL, whatever its path."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host.isascii():
        host = host.encode("idna").decode()
    return Place(parts.scheme, host, parts.port or PORTS[parts.scheme])


class SharedState:
    """State that all users of a process share. Its times are those of connecting and TLS handshakes, in seconds."""

    def __init__(self, first: int = 0) -> None:
        self.addresses = Addresses(first)
        self.prepared: dict[tuple[object, ...], PreparedRequest] = {}
        """Prepared requests that users share, by their URL and headers."""
        self.count = 0
        self.total_s = 0.0
        self.longest_s = 0.0
        self.dropped = 0
        """Idle connections closed because unexpected bytes or their end arrived."""
        self.server: str | None = None
        """The Server header of the first response; None before that."""

    def add(self, took_s: float) -> None:
        self.count += 1
        self.total_s += took_s
        self.longest_s = max(self.longest_s, took_s)


class Connection:
    """A connection to one place, possibly through a proxy. It is opened for the first request, and reopened if it was
    closed."""

    def __init__(self, place: Place, transport: Transport, shared: SharedState) -> None:
        self.place, self.transport = place, transport
        self._shared = shared
        self.sock: socket.socket | None = None
        self.tls: Tls | None = None
        self._session: ssl.SSLSession | None = None
        self.replica = ""
        """The address of the server; empty behind a proxy."""
        self.unused = True
        """Whether it has not carried a request yet."""
        self.sent_all = True
        """Whether the last request was sent completely."""

    @property
    def _tunnels(self) -> bool:
        # A WebSocket uses a tunnel, like TLS (RFC 6455, 4.1).
        return bool(self.transport.proxy) and self.place.scheme != "http"

    def request_head(self, method: str, path: str, fields: Mapping[str, Any]) -> str:
        """The lines of a request's head, without the blank one. Adds Host, and what a proxy needs."""
        fields = {"Host": self.place.name, **fields}
        if self.transport.proxy and not self._tunnels:
            path = f"{self.place.scheme}://{self.place.name}{path}"
            fields |= self.transport.proxy_headers
        return f"{method} {path} HTTP/1.1\r\n" + _lines(fields)

    def open(self, limit_s: float) -> float:
        """Resolve the name, connect, pass the proxy and shake hands for TLS, within `limit_s` in all. Returns the
        seconds it took. Raises Failure."""
        began = time.perf_counter()
        try:
            with gevent.Timeout(limit_s, TimeoutError()):
                self._open(began + limit_s)
        except BaseException:
            self.close()
            raise
        took = time.perf_counter() - began
        self._shared.add(took)
        self.unused = True
        return took

    def _open(self, until: float) -> None:
        self.replica = ""
        proxy = self.transport.proxy and place_of(self.transport.proxy)
        to = proxy or self.place
        try:
            upstream = self.transport.upstream or ((to.host, to.port),)
            self.sock, self.replica = self._shared.addresses.connect(upstream, until)
        except OSError as error:
            raise connect_failure(error, proxy=bool(proxy)) from error
        if proxy:
            self.replica = ""
        try:
            if self._tunnels:
                self._ask_for_tunnel()
            if self.place.scheme in ("https", "wss"):
                context = ssl_context(self.transport.verify, self.transport.cert)
                self.tls = Tls(context, self.place.host, self._session)
                self.tls.shake_hands(self.sock)
        except OSError as error:
            raise connect_failure(error) from error

    def _ask_for_tunnel(self) -> None:
        assert self.sock is not None
        host = f"[{self.place.host}]" if ":" in self.place.host else self.place.host
        authority = f"{host}:{self.place.port}"
        fields = _lines({"Host": authority, **self.transport.proxy_headers})
        try:
            self.sock.sendall(f"CONNECT {authority} HTTP/1.1\r\n{fields}\r\n".encode("latin-1"))
            parser = HeadParser()
            while parser.head is None:
                data = self.sock.recv(RECEIVE_BYTES)
                if not data:
                    raise ProtocolError(CLOSED)
                parser.feed(data)
        except ProtocolError as error:
            raise Failure("connect", f"the proxy: {error}", Cause.PROXY) from error
        except OSError as error:
            raise connect_failure(error, proxy=True) from error
        if parser.head.status != HTTPStatus.OK:
            raise Failure("connect", f"the proxy: {parser.head.status} {parser.head.reason}", Cause.PROXY)

    def close(self) -> None:
        """Close the connection. May be called more than once."""
        if self.tls is not None:
            with contextlib.suppress(ValueError):  # the session cannot be resumed
                self._session = self.tls.session
            self.tls = None
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def is_free(self) -> bool:
        """Whether the connection can carry a request: it is open, and nothing arrived since the last response except
        TLS records without data, such as a session ticket. Otherwise closes it."""
        if self.sock is None:
            return False
        self.sock.settimeout(0)
        try:
            for _ in range(MAX_IDLE_READS):
                data, tls = self.sock.recv(RECEIVE_BYTES), self.tls
                if not data or tls is None or tls.decrypt(data) or tls.ended or tls.error:
                    break
        except BlockingIOError:
            return True
        except OSError:
            pass
        self.drop()
        return False

    def drop(self) -> None:
        """Close and count a connection on which unexpected bytes or the end arrived."""
        self.close()
        self._shared.dropped += 1

    def reads(self, factory: ReaderFactory) -> Reads:
        """A function that starts reading the next response."""

        def read(owner: Owner) -> tuple[SocketReader, Callable[[], None]]:
            assert self.sock is not None
            if self.tls is None:
                reader = factory(self.sock.fileno(), owner)
                return reader, reader.close
            decryption = Decryption(factory, self.sock.fileno(), owner, self.tls)
            return decryption.plaintext, decryption.close

        return read

    def send(self, pieces: Sequence[bytes | memoryview], stall: float, refused: Callable[[], bool]) -> None:
        """Send all pieces, without copying them unless TLS encrypts them. Raises Failure.

        Stops early if the server has closed, since its response may say why, or if it accepts no more data and
        `refused` reports that it has responded with an error.
        """
        self.sent_all = False
        try:
            if self.tls is None:
                self.sent_all = self._push(pieces, stall, refused)
            else:
                encrypted = map(self.tls.encrypt, _cut(pieces, PIECE_BYTES))
                self.sent_all = all(self._push([piece], stall, refused) for piece in encrypted)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except OSError as error:
            raise failure(error, while_sending=True) from error
        finally:
            if self.sock is not None:
                self.sock.settimeout(stall)

    def _push(self, pieces: Sequence[bytes | memoryview], stall: float, refused: Callable[[], bool]) -> bool:
        """Send pieces. Returns False if the server refused the request before it accepted all of them."""
        assert self.sock is not None
        self.sock.settimeout(LOOK_S)
        left: deque[memoryview] = deque(memoryview(piece) for piece in pieces)
        waited = 0.0  # counted, because a clock would include time in which this process was stopped
        while left:
            try:
                if taken := self.sock.sendmsg(list(islice(left, MAX_PIECES))):
                    waited = 0.0
                while left and taken >= len(left[0]):
                    taken -= len(left.popleft())
                if taken:
                    left[0] = left[0][taken:]
            except TimeoutError:
                if refused():
                    return False
                waited += LOOK_S
                if waited > stall:
                    raise
        return True


def _lines(fields: Mapping[str, Any]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items())


def _cut(pieces: Sequence[bytes | memoryview], size: int) -> Iterator[bytes | memoryview]:
    """Cut pieces to at most `size` bytes and join small ones, because each piece takes at least one TLS record."""
    small: list[bytes | memoryview] = []
    for piece in pieces:
        if len(piece) < size // 8:
            small.append(piece)
            continue
        if small:
            yield b"".join(small)
            small = []
        view = memoryview(piece)
        for at in range(0, len(piece), size):
            yield view[at : at + size]
    if small:
        yield b"".join(small)


def pause_s(retry_after: str) -> float:
    """Seconds to wait after a refusal, by its Retry-After (seconds or a date: RFC 9110, 10.2.3), within bounds."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            seconds = 0.0
    return min(max(PAUSE_S, seconds), MAX_PAUSE_S)  # in this order: NaN becomes PAUSE_S


class Closable(Protocol):
    """Something to close with the user's connections."""

    def close(self) -> None: ...


class UserConnection:
    """A user's connections to all places, and the stamps of its current request in perf_counter nanoseconds (None: not
    reached). Call `reset` before each request."""

    def __init__(self) -> None:
        self.shared = SharedState()
        """Counters, of this user or shared by all users of a process."""
        self.reader_factory: ReaderFactory = python
        """Makes the readers of responses."""
        self.connection: Connection | None = None
        """The connection of the last request."""
        self._by_destination: dict[tuple[Place, Transport], Connection] = {}
        self.response: Response | None = None
        """The response to the last request."""
        self.prepared: PreparedRequest | None = None
        """The part that the user's requests share."""
        self.common: tuple[object, ...] = ()
        """The URL, headers and transport that `prepared` was made from."""
        self.head = ""
        """The head of `prepared` as text."""
        self.session: Closable | None = None
        """A realtime session kept for the next utterance; `close` closes it."""
        self.reset()

    def reset(self) -> None:
        """Forget the last request."""
        self.started: int | None = None
        self.uploaded: int | None = None
        self.headers: int | None = None
        self.connect_s: float | None = None
        """Seconds to open a connection for the request."""
        self.reused = False
        self.pause_s = 0.0
        """Seconds to wait before the next request, because the server is busy or unreachable."""
        self.may_retry = False
        """Whether the server sent Retry-After."""

    def pause(self, retry_after: str = "") -> None:
        """Let the user wait before its next request, because the server is busy or unreachable: as long as a response's
        Retry-After header says, if there is one."""
        self.pause_s, self.may_retry = pause_s(retry_after), bool(retry_after)

    @property
    def replica(self) -> str:
        return "" if self.connection is None else self.connection.replica

    @property
    def last_read(self) -> int | None:
        """The stamp of the last bytes of the response."""
        return None if self.response is None else self.response.reader.last or None

    def connection_for(self, place: Place, transport: Transport) -> Connection:
        """The connection to a place, open or not."""
        self.drop()
        connection = self._by_destination.get((place, transport))
        if connection is None:
            connection = self._by_destination[place, transport] = Connection(place, transport, self.shared)
        self.connection = connection  # so that the record of a failed connection does not name another's address
        return connection

    def connect(self, place: Place, transport: Transport, limit_s: float) -> Connection:
        """Return an open, idle connection to a place. Raises Failure."""
        connection = self.connection_for(place, transport)
        if not connection.is_free():
            self.connect_s = connection.open(limit_s)
        return connection

    def begin(self, connection: Connection, stall: float) -> Response:
        """Start reading the response and start the clock. Send the request immediately afterwards."""
        self.response = Response(connection.reads(self.reader_factory), stall)
        self.reused, connection.unused = not connection.unused, False
        self.started = time.perf_counter_ns()
        return self.response

    def drop(self) -> None:
        """Stop reading the last response. Closes its connection if it cannot carry another request."""
        response, connection = self.response, self.connection
        self.response = None
        if response is None or connection is None:
            return
        response.close()
        if response.is_last or not connection.sent_all:
            connection.close()
        elif response.surplus and connection.sock is not None:
            connection.drop()

    def close(self) -> None:
        """Close all connections and the session."""
        self.drop()
        if self.session is not None:
            self.session.close()
        for connection in self._by_destination.values():
            connection.close()
