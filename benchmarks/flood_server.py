"""A server that floods realtime sessions. It prints its port and runs until it is stopped. The path of a session names
the flood and the phase in which it begins.

python -m benchmarks.flood_server [CERTIFICATE]
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
from collections.abc import Iterator

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol


def frame(opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> bytes:
    """Serialize a frame from a server."""
    return Frame(opcode, data, fin).serialize(mask=False)


FLOODS = {
    "events": (b"", frame(Opcode.TEXT, b'{"type":"a"}')),
    "fragments": (frame(Opcode.TEXT, fin=False), frame(Opcode.CONT, fin=False)),
    "pings": (b"", frame(Opcode.PING)),
    "pongs": (b"", frame(Opcode.PONG)),
}
"""Floods by name: the first bytes, and the bytes to repeat."""

PHASES = {"before": b"", "during": b"append", "after": b'"final":true'}
"""Phases of a session's speech, each with the words in the client's message that begin it."""

CREATED = frame(Opcode.TEXT, b'{"type":"session.created","id":"a","created":1}')


def accept(listener: socket.socket) -> None:
    """Flood every client, each in a thread, until the listener is closed."""
    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=flood, args=(listener.accept()[0],), daemon=True).start()


def flood(connection: socket.socket) -> None:
    """Flood a session until its client closes it."""
    with connection, contextlib.suppress(OSError, StopIteration):
        protocol = ServerProtocol()
        events = _events(connection, protocol)
        request = next(events)
        assert isinstance(request, Request)
        protocol.send_response(protocol.accept(request))
        connection.sendall(b"".join(protocol.data_to_send()))
        _, name, phase = request.path.split("/")
        first, repeated = FLOODS[name]
        if words := PHASES[phase]:
            connection.sendall(CREATED)
            next(event for event in events if isinstance(event, Frame) and words in event.data)
        connection.sendall(first)
        while True:
            connection.sendall(repeated * -(-65536 // len(repeated)))


def _events(connection: socket.socket, protocol: ServerProtocol) -> Iterator[object]:
    while data := connection.recv(65536):
        protocol.receive_data(data)
        yield from protocol.events_received()


def main() -> None:
    """Serve on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        if not sys.argv[1:]:
            accept(listener)
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[1])
        accept(context.wrap_socket(listener, server_side=True))


if __name__ == "__main__":
    main()
