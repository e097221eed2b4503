"""Socket readers of each kind."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

from asr_load.http import socket_reader
from asr_load.http.collector import Owner, SocketReader
from asr_load.http.response import Response
from asr_load.http.socket_reader import ReaderFactory
from harness.serving import wait_until

COMPILED = pytest.param(
    "compiled",
    marks=pytest.mark.skipif(socket_reader.compiled is None, reason="no compiled reader here: no C compiler at setup"),
)


MAKERS = [COMPILED, "python", "python without epoll"]


STAMPED = MAKERS[:2]
"""The readers that have the kernel's stamps."""


CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
"""The head of a response with a chunked body."""


def source(maker: str) -> ReaderFactory:
    if maker != "compiled":
        return socket_reader.python if maker == "python" else socket_reader.PythonReaders(epoll=None)
    assert socket_reader.compiled is not None
    return socket_reader.compiled


def response(maker: str, here: socket.socket, stall: float) -> Response:
    def read(owner: Owner) -> tuple[SocketReader, Callable[[], None]]:
        reader = source(maker)(here.fileno(), owner)
        return reader, reader.close

    return Response(read, stall)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    for end in (here, there):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return here, there


def pieces(body: bytes, seed: int) -> list[bytes]:
    """Cut a body at random places that depend on the seed."""
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(1, len(body)), rng.randrange(len(body) - 1)))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def settle(what: Callable[[], bool]) -> None:
    wait_until(what, "all sent bytes are read", pause=lambda _: gevent.sleep(0.001))


def collect(maker: str, parts: list[bytes], framing: int) -> SocketReader:
    """A reader that has read these parts as a body to its end, after a head of two bytes. Each part starts a read."""
    here, there = pair()
    with here, there:
        made = source(maker)(here.fileno(), Event())
        there.sendall(b"ab")
        settle(lambda: made.head(0) == b"ab")
        made.begin_body(2, framing)
        for part in parts:
            before = made.last
            there.sendall(part)
            settle(lambda before=before: made.last > before or made.status != "running")  # type: ignore[misc]
            if made.status != "running":
                break
        # A part that is larger than the socket's buffer takes several reads.
        settle(lambda: made.status != "running")
        made.close()
        return made
