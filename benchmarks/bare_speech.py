"""A bare speaker, for the minimum cost of sending speech in real time: raw sockets, one epoll loop, ready frames.

    python -m benchmarks.bare_speech HOST:PORT SESSIONS SECONDS PACKET-MS

Session i begins i / 100 seconds after the first. Prints its CPU seconds and the number of packets.
"""

from __future__ import annotations

import heapq
import json
import os
import select
import socket
import sys
import time

import pybase64
from websockets.frames import Frame, Opcode

from asr_load.apis.dialects import DIALECTS, RATE
from asr_load.apis.realtime import RealtimeOptions

BEGIN_PER_S = 100


def _frame(text: bytes) -> bytes:
    return Frame(Opcode.TEXT, text).serialize(mask=True)


def main() -> None:
    address, sessions, seconds, packet_ms = sys.argv[1:]
    host, _, port = address.rpartition(":")
    vllm, packet_s = DIALECTS["vllm"], float(packet_ms) / 1e3
    options = RealtimeOptions("vllm", packet_s, 1.0, 0.0, server_vad=False, utterances=1, model="", language="")
    opening = b"".join(map(_frame, [*vllm.configure(options, RATE), *vllm.begin()]))
    packet, ending = _frame(vllm.append(pybase64.b64encode(os.urandom(2 * round(packet_s * RATE))))), _frame(vllm.end())
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
    upgrade = (
        f"GET /v1/realtime HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n"
    )
    poll, count = select.epoll(), round(float(seconds) / packet_s)
    connections: dict[int, socket.socket] = {}
    due: list[tuple[float, int, int]] = []
    began, first, sent, open_ = time.process_time(), time.perf_counter(), 0, int(sessions)
    starts = [first + number / BEGIN_PER_S for number in range(int(sessions))][::-1]
    while open_:
        now = time.perf_counter()
        while starts and starts[-1] <= now:
            starts.pop()
            made = socket.create_connection((host, int(port)))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.sendall(upgrade.encode() + opening)
            connections[made.fileno()] = made
            poll.register(made, select.EPOLLIN)
            heapq.heappush(due, (time.perf_counter() + packet_s, 1, made.fileno()))
        while due and due[0][0] <= time.perf_counter():
            at, number, descriptor = heapq.heappop(due)
            connections[descriptor].sendall(packet)
            sent += 1
            if number < count:
                heapq.heappush(due, (at + packet_s, number + 1, descriptor))
            else:
                connections[descriptor].sendall(ending)
        wait = min([*(each[0] for each in due[:1]), *starts[-1:], time.perf_counter() + 1]) - time.perf_counter()
        for descriptor, _ in poll.poll(max(wait, 0)):
            data = connections[descriptor].recv(65536)
            time.perf_counter_ns()  # the stamp
            if b"transcription.done" in data or not data:
                connections.pop(descriptor).close()
                open_ -= 1
    print(json.dumps({"cpu_s": time.process_time() - began, "packets": sent}))
    os._exit(0)


if __name__ == "__main__":
    main()
