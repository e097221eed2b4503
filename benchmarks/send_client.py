"""Measure the CPU seconds of a request for several ways of sending it; benchmarks/send.py runs this.

python -m benchmarks.send_client PORT TLS-PORT AUTHORITY CLIPS REQUESTS ROUNDS
"""

# ruff: noqa: E402 (gevent patches what is imported after it)
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import base64
import json
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from asr_load.apis.api import RequestFields
from asr_load.apis.chat import Chat
from asr_load.apis.transcription_request import TranscriptionRequest, request_headers
from asr_load.audio.dither import new_dither
from asr_load.audio.shard import Shards
from asr_load.http.attempt import ExchangeConfig
from asr_load.http.connection import Connection, SharedState, UserConnection, place_of
from asr_load.http.exchange import exchange
from asr_load.http.self_check import choose
from asr_load.http.transport import Timeouts, Transport
from asr_load.options.table import DEFAULT_PROMPT
from benchmarks.sink import ANSWER

USERS, TENTH = 40, 10
"""Number of users whose first request is compared with their tenth."""

Way = Callable[[int], None]


class Client:
    """What all ways of sending share: ready requests for the clips, and the addresses."""

    def __init__(self, port: str, tls_port: str, authority: str, folder: str) -> None:
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self.tls_url = f"https://127.0.0.1:{tls_port}/v1/chat/completions"
        self.authority = authority
        self.shards = Shards(Path(folder))
        self.api = Chat(RequestFields("default", DEFAULT_PROMPT, 128))
        self.pieces: list[list[bytes | memoryview]] = []
        for number in range(len(self.shards)):
            parts = self.api.body(self.shards[number], new_dither())
            size = sum(map(len, parts))
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()
            self.pieces.append([head, *parts])
        self._reader = choose("auto")[1]
        self._connections = SharedState()
        self._config = ExchangeConfig(Timeouts(5, 5, 5), 0)

    def by_bytes(self, *, tls: bool) -> Way:
        """Send ready bytes with sendall on a bare socket."""
        place = place_of(self.tls_url if tls else self.url)
        connection = socket.create_connection((place.host, place.port))
        if tls:
            context = ssl.create_default_context(cafile=self.authority)
            connection = context.wrap_socket(connection, server_hostname=place.host)
        ready = [b"".join(pieces) for pieces in self.pieces]

        def way(number: int) -> None:
            connection.sendall(ready[number % len(ready)])
            _receive(lambda: connection.recv(65536))

        return way

    def by_connection(self, *, tls: bool) -> Way:
        """Send the same bytes with asr-load's connection."""
        transport = Transport(self.authority) if tls else Transport()
        connection = Connection(place_of(self.tls_url if tls else self.url), transport, SharedState())
        connection.open(5)

        def receive() -> bytes:
            assert connection.sock is not None
            data = connection.sock.recv(65536)
            return data if connection.tls is None else b"".join(connection.tls.decrypt(data))

        def way(number: int) -> None:
            connection.send(self.pieces[number % len(self.pieces)], 5, lambda: False)
            _receive(receive)

        return way

    def user(self) -> Way:
        """Do all work of a user's request, except for Locust's part."""
        user_connection, session = UserConnection(), requests.Session()
        session.trust_env = False
        user_connection.reader_factory, user_connection.shared = self._reader, self._connections
        user_connection.connect(place_of(self.url), Transport(), 5)
        headers = {"Accept-Encoding": "identity", "Content-Type": self.api.content_type}

        def way(number: int) -> None:
            body = self.api.body(self.shards[number % len(self.shards)], new_dither())
            own = request_headers("x", 0, number, "c")
            request = TranscriptionRequest(self.url, body, headers, "c", "", 1.0, number, 0, 0, own_headers=own)
            record, _ = exchange(session, user_connection, request, self._config)
            if not record.ok:
                raise SystemExit(f"{record.outcome} {record.error}")

        return way

    def by_json(self) -> Way:
        """Send a request the simplest way."""
        plain = requests.Session()
        wavs = [base64.b64decode(bytes(self.shards[number].audio_b64)) for number in range(len(self.shards))]

        def way(number: int) -> None:
            data = base64.b64encode(wavs[number % len(wavs)]).decode()
            audio = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
            body: Any = {"messages": [{"role": "user", "content": [audio]}], "stream": True}
            with plain.post(self.url, json=body, stream=True) as response:
                list(response.iter_content(None))

        return way


def _receive(receive: Callable[[], bytes]) -> None:
    got = 0
    while got < len(ANSWER):
        got += len(receive())


def first_and_tenth(client: Client) -> dict[str, list[float]]:
    """CPU seconds of the first and the tenth request of users with an open connection."""
    spent: dict[str, list[float]] = {"first": [], "tenth": []}
    for _ in range(USERS):
        way = client.user()
        for number in range(1, TENTH + 1):
            began = time.process_time()
            way(number)
            if number in (1, TENTH):
                spent["first" if number == 1 else "tenth"].append(time.process_time() - began)
    return spent


def main() -> None:
    client, count, rounds = Client(*sys.argv[1:5]), int(sys.argv[5]), int(sys.argv[6])
    ways = {
        "bytes": client.by_bytes(tls=False),
        "connection": client.by_connection(tls=False),
        "bytes, TLS": client.by_bytes(tls=True),
        "connection, TLS": client.by_connection(tls=True),
        "harness": client.user(),
        "json": client.by_json(),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            for number in range(count):
                way(number)
            if round_:  # the first round opens connections and fills caches
                spent[name].append((time.process_time() - began) / count)
    print(json.dumps(spent | first_and_tenth(client)))


if __name__ == "__main__":
    main()
