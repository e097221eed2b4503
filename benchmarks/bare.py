"""A bare reader, for the minimum cost of reading: raw sockets, one epoll loop, no parsing except for a response's end.

    python -m benchmarks.bare HOST:PORT STREAMS REQUESTS BODY-FILE

Prints its CPU seconds and the number of events.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from pathlib import Path

END = b"0\r\n\r\n"


def main() -> None:
    address, streams, requests, body_file = sys.argv[1:]
    host, _, port = address.rpartition(":")
    body = Path(body_file).read_bytes()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    poll = select.epoll()
    connections = {}
    for _ in range(int(streams)):
        made = socket.create_connection((host, int(port)))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections[made.fileno()] = made
        poll.register(made, select.EPOLLIN)
    left, flying, events = int(requests), 0, 0
    began = time.process_time()
    # Spread the starts over a second, like the users that it is compared with.
    starting, first = list(connections.values()), time.perf_counter()
    while left or flying:
        while starting and left and time.perf_counter() - first >= 1 - len(starting) / int(streams):
            starting.pop().sendall(request)
            left, flying = left - 1, flying + 1
        for descriptor, _ in poll.poll(0.002 if starting else 1):
            data = connections[descriptor].recv(65536)
            time.perf_counter_ns()  # the stamp
            if not data:
                raise SystemExit("the server closed a connection")
            events += data.count(b"data: ")
            if data.endswith(END):
                flying -= 1
                if left:
                    connections[descriptor].sendall(request)
                    left, flying = left - 1, flying + 1
    print(json.dumps({"cpu_s": time.process_time() - began, "events": events}))


if __name__ == "__main__":
    main()
