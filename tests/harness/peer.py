"""A server with scripted responses, and a client that uses the load generator's readers."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import requests
import trustme

from asr_load.apis.transcription_request import TranscriptionRequest
from asr_load.http import socket_reader
from asr_load.http.attempt import ExchangeConfig
from asr_load.http.connection import UserConnection
from asr_load.http.exchange import exchange
from asr_load.http.socket_reader import ReaderFactory
from asr_load.http.transport import Timeouts, Transport
from asr_load.stream.record import Record
from asr_load.text import Intake
from harness.patience import PATIENCE_S

STREAM = (
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n" % len(STREAM)
SOUND = OK + b"\r\n" + STREAM
LIMITS = Timeouts(connect=PATIENCE_S, stall=PATIENCE_S, total=PATIENCE_S)


Piece = bytes | float | threading.Event | Callable[[], object] | None
"""Part of a response: bytes, seconds or an event to wait for, a function to call, or None to reset the connection."""

READERS: dict[str, ReaderFactory] = {"python": socket_reader.python}
if socket_reader.compiled is not None:  # there is a C compiler
    READERS = {"compiled": socket_reader.compiled, **READERS}
TLS = ", TLS"
OVER_TLS = [reader + TLS for reader in READERS]
WAYS = [*READERS, *OVER_TLS]
"""Each reader, over TCP and over TLS."""


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def ca_file() -> str:
    return _kept(authority().cert_pem.bytes())


@functools.cache
def server_pem() -> str:
    """The path of a file with a server certificate and its key."""
    return _kept(authority().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes())


def _kept(pem: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".pem", delete=False) as file:
        file.write(pem)
    atexit.register(os.unlink, file.name)
    return file.name


@functools.cache
def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.load_cert_chain(server_pem())
    return context


class Peer:
    """A server that gives each request the next of its responses, and stores the requests."""

    def __init__(self, answers: list[bytes | Sequence[Piece]], tls: bool) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.resumed = 0
        self._answers, self._tls = answers, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' * tls}://127.0.0.1:{self._listener.getsockname()[1]}/v1/x?a=b"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while self._answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(ConnectionError, ssl.SSLError))  # the client has closed it
            stack.enter_context(connection)
            if self._tls:
                connection = stack.enter_context(server_context().wrap_socket(connection, server_side=True))
                assert connection.selected_alpn_protocol() == "http/1.1"
                self.resumed += bool(connection.session_reused)
            while self._answers and (request := _read_request(connection)):
                self.requests.append(request)
                answer = self._answers.pop(0)
                if not self._say([answer] if isinstance(answer, bytes) else answer, connection):
                    break

    @staticmethod
    def _say(pieces: Sequence[Piece], connection: socket.socket) -> bool:
        """Send a response. Return whether the connection stays open."""
        stays = True
        for piece in pieces:
            if piece is None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            if isinstance(piece, bytes):
                connection.sendall(piece)
                stays = stays and b"Connection: close" not in piece
            elif isinstance(piece, threading.Event):
                piece.wait(PATIENCE_S)
            elif callable(piece):
                piece()
            else:
                time.sleep(piece)
        return stays

    def close(self) -> None:
        self._listener.close()


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < _length(data):
        if not (more := connection.recv(65536)):
            return b""
        data += more
    return data


def _length(data: bytes) -> int:
    lines = data.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    return next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))


class Client:
    """A user's session and connection. `reader` is one of WAYS."""

    def __init__(self, reader: str = "python", limits: Timeouts = LIMITS) -> None:
        self.session = requests.Session()
        self.session.trust_env = False
        self.user_connection = UserConnection()
        self.user_connection.reader_factory = READERS[reader.removesuffix(TLS)]
        self.limits = limits
        self.transport = Transport(ca_file())
        self.keep = True
        self.sent = 0

    def send(self, url: str, body: list[bytes | memoryview] | None = None, secrets: Sequence[str] = ()) -> Record:
        self.sent += 1
        headers = {"Accept": "text/event-stream", "Content-Type": "application/json", "x-clip-id": "not this"}
        own = {"X-Clip-Id": "ä%20".encode().decode("latin-1"), "X-Request-Id": f"{self.sent}"}
        pieces = body or [b'{"a":', memoryview(b"1" * 100), b"}"]
        request = TranscriptionRequest(url, pieces, headers, "c", "", 1.0, 0, 0, 0, own_headers=own)
        config = ExchangeConfig(self.limits, 0, Intake(secrets), self.transport, self.keep)
        return exchange(self.session, self.user_connection, request, config)[0]


@contextmanager
def talk(
    *answers: bytes | Sequence[Piece], reader: str = "python", limits: Timeouts = LIMITS
) -> Iterator[tuple[Client, Peer]]:
    peer, client = Peer(list(answers), reader.endswith(TLS)), Client(reader, limits)
    try:
        yield client, peer
    finally:
        client.user_connection.close()
        client.session.close()
        peer.close()
