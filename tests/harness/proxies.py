"""A forward proxy for CONNECT and for requests in absolute form, which always connects to one server."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from harness.patience import PATIENCE_S

PAUSE_S = 0.02
"""The pause between two bytes of a dripping server, far shorter than any limit."""


@contextmanager
def proxy(server: str, refuses: str = "") -> Iterator[tuple[str, list[str]]]:
    """The proxy's URL and the request heads that it received. For any host it connects to `server`. With `refuses`, a
    status line, it refuses every request with it."""
    heads: list[str] = []
    place = urlsplit(server)

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(1 << 16)
            heads.append(head.partition(b"\r\n\r\n")[0].decode())
            if refuses:
                client.sendall(f"HTTP/1.1 {refuses}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):
                    pass
                return
            with socket.create_connection((place.hostname or "", place.port or 0)) as upstream:
                if head.startswith(b"CONNECT"):
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    upstream.sendall(re.sub(rb"^POST http://[^/]+", b"POST ", head, count=1))
                back = threading.Thread(target=copy, args=(upstream, client), daemon=True)
                back.start()
                copy(client, upstream)
                back.join(PATIENCE_S)

    with listening(serve) as address:
        yield f"http://{address}", heads


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The host and port of a server that passes each connection to `serve` in a thread."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def never_ending(begin: bytes, piece: bytes, pause_s: float = PAUSE_S) -> Iterator[str]:
    """The host and port of a server that sends `begin`, and then `piece` again and again."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(begin)
            until = time.monotonic() + PATIENCE_S
            while time.monotonic() < until:
                connection.sendall(piece)
                time.sleep(pause_s)

    with listening(serve) as address:
        yield address


def copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
