"""A user's connection: opened, kept, opened again, and what happened to the request that is on it."""

from __future__ import annotations

import contextlib
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from http.client import HTTPException
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent import monkey, socket
from requests import PreparedRequest

from asr_load.http.addresses import Addresses
from asr_load.http.collector import Collector, Owner, SocketReader
from asr_load.http.decryption import Decryption
from asr_load.http.failure import Failure, connect_failure, failure
from asr_load.http.head import FinalHead
from asr_load.http.head_file import HeadFile, Reads, closable
from asr_load.http.socket_reader import ReaderFactory
from asr_load.http.tls import PIECE_BYTES, READ_BYTES, Tls, context
from asr_load.http.transport import PORTS, Transport
from asr_load.http.turn import Turn
from asr_load.stream.cause import Cause

_poll = monkey.get_original("select", "poll")
"""gevent's would let other greenlets run."""

MOST_PIECES = 1024
"""That the kernel takes in one call: IOV_MAX of Linux."""

MOST_READS = 16
"""Of what comes on an idle connection: a ticket of TLS takes a few hundred bytes."""

LOOK_S = 0.05
"""How often a sender that waits for the network looks whether it was answered already."""


@dataclass(frozen=True)
class Place:
    """Where a URL leads."""

    scheme: str
    host: str
    port: int

    @property
    def name(self) -> str:
        """As the Host field has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


@lru_cache
def place_of(url: str) -> Place:
    """Of an address, whatever its path."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host.isascii():
        host = host.encode("idna").decode()
    return Place(parts.scheme, host, parts.port or PORTS[parts.scheme])


class Connections:
    """All that a process opens: how many, the seconds that it took to connect and to agree on TLS."""

    def __init__(self, first: int = 0) -> None:
        self.addresses = Addresses(first)
        self.prepared: dict[tuple[object, ...], PreparedRequest] = {}
        """What requests have in common, by what it was made of."""
        self.count = 0
        self.total_s = 0.0
        self.longest_s = 0.0
        self.dropped = 0
        """Closed because something came on them, or their end, while nothing was asked."""
        self.server: str | None = None
        """What the other end calls itself, by its header of that name; None before the first answer."""

    def add(self, took_s: float) -> None:
        self.count += 1
        self.total_s += took_s
        self.longest_s = max(self.longest_s, took_s)


class Connection:
    """To one place, by way of a proxy or not. It is opened with the first request, and again where it was closed."""

    def __init__(self, place: Place, transport: Transport, connections: Connections) -> None:
        self.place, self.transport = place, transport
        self._connections = connections
        self.sock: socket.socket | None = None
        self.tls: Tls | None = None
        self._session: Any = None
        self.replica = ""
        """The address that it was opened to, where no proxy is between."""
        self.unused = True
        """Whether it has carried no request yet."""
        self.sent_all = True
        """Whether the last request has left as a whole."""

    @property
    def _tunnels(self) -> bool:
        # A WebSocket goes through a proxy as TLS does (RFC 6455, 4.1).
        return bool(self.transport.proxy) and self.place.scheme != "http"

    @property
    def target(self) -> str:
        """What stands before the path in a request's first line: a proxy is told the whole address."""
        if self.transport.proxy and not self._tunnels:
            return f"{self.place.scheme}://{self.place.name}"
        return ""

    def open(self, limit_s: float) -> float:
        """Connect, and agree on TLS, within `limit_s` in all: for the name, the connection, the proxy, and TLS. Returns
        the seconds that it took. Raises Failure."""
        began = time.perf_counter()
        try:
            with gevent.Timeout(limit_s, TimeoutError()):
                self._open(began + limit_s)
        except BaseException:
            self.close()
            raise
        took = time.perf_counter() - began
        self._connections.add(took)
        self.unused = True
        return took

    def _open(self, until: float) -> None:
        self.replica = ""
        proxy = self.transport.proxy and place_of(self.transport.proxy)
        to = proxy or self.place
        try:
            upstream = self.transport.upstream or ((to.host, to.port),)
            self.sock, self.replica = self._connections.addresses.connect(upstream, until)
        except OSError as error:
            raise connect_failure(error, proxy=bool(proxy)) from error
        if proxy:
            self.replica = ""
        try:
            if self._tunnels:
                self._ask_for_tunnel()
            if self.place.scheme in ("https", "wss"):
                made = context(self.transport.verify, self.transport.cert)
                self.tls = Tls(made, self.place.host, self._session)
                self.tls.shake_hands(self.sock)
        except OSError as error:
            raise connect_failure(error) from error

    def _ask_for_tunnel(self) -> None:
        assert self.sock is not None
        host = f"[{self.place.host}]" if ":" in self.place.host else self.place.host
        fields = {"Host": f"{host}:{self.place.port}", **self.transport.proxy_headers}
        lines = [f"CONNECT {host}:{self.place.port} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        try:
            self.sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
            answer = FinalHead(self.sock, method="CONNECT")
            answer.begin()
        except HTTPException as error:
            raise Failure("connect", f"the proxy: {failure(error)}", Cause.PROXY) from error
        except OSError as error:
            raise connect_failure(error, proxy=True) from error
        if answer.status != HTTPStatus.OK:
            raise Failure("connect", f"the proxy: {answer.status} {answer.reason}", Cause.PROXY)

    def close(self) -> None:
        """Close it. A second time does no harm."""
        if self.tls is not None:
            with contextlib.suppress(ValueError):  # one that is not to be resumed
                self._session = self.tls.session
            self.tls = None
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def is_free(self) -> bool:
        """Whether it may carry a request: it is open, and nothing has come since the last answer, nor its end. Else it
        is closed."""
        if self.sock is None:
            return False
        if not self.is_readable() or (self.tls is not None and self._is_quiet(self.tls)):
            return True
        self.drop()
        return False

    def is_readable(self) -> bool:
        """Whether anything has come, or the end, and nobody has read it."""
        assert self.sock is not None
        poll = _poll()
        poll.register(self.sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _is_quiet(self, tls: Tls) -> bool:
        """Whether what has come is TLS's own, as a ticket for the next handshake."""
        assert self.sock is not None
        self.sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            for _ in range(MOST_READS):
                data = self.sock.recv(READ_BYTES)
                if not data or tls.decrypt(data) or tls.ended or tls.error:
                    return False
            return False
        return True

    def drop(self) -> None:
        """Close it because more came than was asked for, or its end."""
        self.close()
        self._connections.dropped += 1

    def reads(self, factory: ReaderFactory | None) -> Reads:
        """What makes the reader of the next answer; None: one that reads when it is asked."""
        assert self.sock is not None
        descriptor, tls = self.sock.fileno(), self.tls
        if factory is None:
            return lambda owner: closable(_BlockingReader(owner, self))
        if tls is None:
            return lambda owner: closable(factory(descriptor, owner))

        def decrypting(owner: Owner) -> tuple[SocketReader, Callable[[], None]]:
            decryption = Decryption(factory, descriptor, owner, tls)
            return decryption.plaintext, decryption.close

        return decrypting

    def receive(self) -> bytes:
        """What has come, waiting for it; empty at its end. Raises OSError."""
        assert self.sock is not None
        turn = Turn()
        while data := self.sock.recv(READ_BYTES):
            if self.tls is None:
                return data
            if plain := self.tls.decrypt(data):
                return b"".join(plain)
            if self.tls.error is not None:
                raise self.tls.error
            if self.tls.ended:
                break
            turn.give()  # records of TLS may hold nothing, one after the other
        return b""

    def send(self, pieces: Sequence[bytes | memoryview], stall: float, refused: Callable[[], bool]) -> None:
        """Send all of it, without a copy where nothing encrypts it. Where the server takes no more, it is asked for a
        refusal that has come: then the rest is not sent, as it is not where the server has closed, which may have said
        why. Raises Failure."""
        self.sent_all = False
        try:
            self.sent_all = self._send(pieces, stall, refused)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except OSError as error:
            raise failure(error, while_sending=True) from error
        finally:
            if self.sock is not None:
                self.sock.settimeout(stall)

    def _send(self, pieces: Sequence[bytes | memoryview], stall: float, refused: Callable[[], bool]) -> bool:
        if self.tls is not None:
            encrypt = self.tls.encrypt
            return all(self._push([encrypt(piece)], stall, refused) for piece in _cut(pieces, PIECE_BYTES))
        return self._push(pieces, stall, refused)

    def _push(self, pieces: Sequence[bytes | memoryview], stall: float, refused: Callable[[], bool]) -> bool:
        """Returns False where the server has refused it before it took all."""
        assert self.sock is not None
        self.sock.settimeout(LOOK_S)
        left: deque[memoryview] = deque(memoryview(piece) for piece in pieces)
        waited = 0.0  # not by a clock, which goes on while this process is stopped
        while left:
            try:
                if taken := self.sock.sendmsg(list(islice(left, MOST_PIECES))):
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


def _cut(pieces: Sequence[bytes | memoryview], size: int) -> Any:
    """Pieces of at most so many bytes, small ones together: each is a record of TLS, at the least."""
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


class _BlockingReader(Collector):
    """Reads when it is asked, as any client does: each read has the time at which it returned."""

    def __init__(self, owner: Owner, connection: Connection) -> None:
        super().__init__(owner)
        self._connection = connection

    def want(self, beyond: int) -> bool:
        while self.status == "running" and not super().want(beyond):
            try:
                data = self._connection.receive()
            except TimeoutError as error:
                if self._connection.is_readable():  # it came while this process was stopped
                    continue
                raise failure(error) from error
            except OSError as error:
                self.fail(error)
                break
            self.feed(data, time.perf_counter_ns()) if data else self.end()
        return True


class UserConnection:
    """A user's way to each place that it speaks to, and stamps of the request that is on it, in perf_counter
    nanoseconds; None where not reached. Call `reset` before each request."""

    def __init__(self) -> None:
        self.connections = Connections()
        """Of this user, or of whatever else they are to be counted for."""
        self.reader_factory: ReaderFactory | None = None
        """What reads answers; None: the greenlet itself."""
        self.connection: Connection | None = None
        """The last request's."""
        self._ways: dict[tuple[Place, Transport], Connection] = {}
        self.file: HeadFile | None = None
        """What the last request's answer is read from."""
        self.prepared: PreparedRequest | None = None
        """What the user's requests have in common."""
        self.common: tuple[object, ...] = ()
        """What it was made of."""
        self.head = ""
        """It as text."""
        self.session: Any = None
        """A realtime session that is kept for the next utterance; `close` closes it."""
        self.reset()

    def reset(self) -> None:
        """Forget the last request."""
        self.started: int | None = None
        self.uploaded: int | None = None
        self.headers: int | None = None
        self.connect_s: float | None = None
        """What it took to open a connection for it."""
        self.reused = False
        self.pause_s = 0.0
        """How long the server wants to be left alone."""
        self.may_retry = False
        """Whether it has said for how long."""

    @property
    def replica(self) -> str:
        return "" if self.connection is None else self.connection.replica

    @property
    def last_read(self) -> int | None:
        """The stamp of the last bytes of an answer."""
        return None if self.file is None else self.file.reader.last or None

    def way(self, place: Place, transport: Transport) -> Connection:
        """The connection to a place, open or not."""
        self.drop()
        way = self._ways.get((place, transport))
        if way is None:
            way = self._ways[place, transport] = Connection(place, transport, self.connections)
        self.connection = way  # the record of one that cannot be opened names no other's address
        return way

    def connect(self, place: Place, transport: Transport, limit_s: float) -> Connection:
        """An open connection that waits for a request. Raises Failure."""
        way = self.way(place, transport)
        if not way.is_free():
            self.connect_s = way.open(limit_s)
        return way

    def begin(self, connection: Connection, stall: float) -> HeadFile:
        """Begin to read the answer on a connection, and start the clock: its request is sent next."""
        self.file = file = HeadFile(connection.reads(self.reader_factory), stall)
        self.reused, connection.unused = not connection.unused, False
        self.started = time.perf_counter_ns()
        return file

    def drop(self) -> None:
        """Stop to read the last answer. Where more came than it, its connection is closed."""
        if self.file is not None:
            self.file.close()
            if self.file.surplus and self.connection is not None and self.connection.sock is not None:
                self.connection.drop()
            self.file = None

    def close(self) -> None:
        """Close all."""
        self.drop()
        if self.session is not None:
            self.session.close()
        for way in self._ways.values():
            way.close()
