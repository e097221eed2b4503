"""A server that reads a request, discards its body and responds immediately. It prints its ports, the second for TLS,
and runs until it is stopped.

python -m benchmarks.sink CERTIFICATE
"""

from __future__ import annotations

import socket
import ssl
import sys
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
    """Serve on two free ports."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    with socket.create_server(("127.0.0.1", 0)) as plain, socket.create_server(("127.0.0.1", 0)) as secret:
        print(plain.getsockname()[1], secret.getsockname()[1], flush=True)
        encrypted = context.wrap_socket(secret, server_side=True)
        threading.Thread(target=_accept, args=(encrypted,), daemon=True).start()
        _accept(plain)


def _accept(listener: socket.socket) -> None:
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
