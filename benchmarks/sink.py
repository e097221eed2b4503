"""A server that reads a request's body, throws it away and answers at once: it prints its port and runs until ended."""

from __future__ import annotations

import socket
import threading

_EVENTS = b'data: {"choices":[{"delta":{"content":"a"},"index":0}]}\n\ndata: [DONE]\n\n'
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%X\r\n%b\r\n0\r\n\r\n" % (len(_EVENTS), _EVENTS)
)


def serve(connection: socket.socket) -> None:
    """Answer each request on a connection."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = bytearray(1 << 20)
    while True:
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(65536)
            if not data:
                return
            head += data
        head, _, rest = head.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        left = int({name.lower(): value for name, value in fields.items()}[b"content-length"]) - len(rest)
        while left > 0:
            left -= connection.recv_into(buffer)
        connection.sendall(ANSWER)


def main() -> None:
    """Serve on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
