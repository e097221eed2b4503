"""CPU seconds of a request, several ways of sending it in turn: see benchmarks/send.py, which runs this.

python -m benchmarks.send_client PORT CLIPS REQUESTS ROUNDS
"""

# ruff: noqa: E402 (gevent patches what is imported after it)
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import base64
import json
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from asr_load.audio.payload import make_builder, new_dither
from asr_load.audio.shard import Shards
from asr_load.http.connection import UserConnection
from asr_load.http.exchange import ExchangeConfig, TranscriptionRequest, exchange, request_headers
from asr_load.http.self_check import choose
from asr_load.http.timeouts import Timeouts
from asr_load.options.parser import DEFAULT_PROMPT
from benchmarks.sink import ANSWER


def main() -> None:
    port, folder, count, rounds = sys.argv[1:]
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    shards = Shards(Path(folder))
    build, content_type = make_builder("chat", "default", DEFAULT_PROMPT, 128, {})
    raw = socket.create_connection(("127.0.0.1", int(port)))
    ready = []
    for number in range(len(shards)):
        body = b"".join(build(shards[number], new_dither()))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        ready.append(head.encode() + body)

    def by_bytes(number: int) -> None:
        raw.sendall(ready[number % len(ready)])
        got = 0
        while got < len(ANSWER):
            got += len(raw.recv(65536))

    user_connection = UserConnection()
    _, user_connection.reader_factory = choose("auto")
    config = ExchangeConfig(Timeouts(5, 5, 5), 0, str)
    session = requests.Session()
    session.trust_env = False

    headers = {"Accept-Encoding": "identity", "Content-Type": content_type}

    def by_harness(number: int) -> None:
        clip = shards[number % len(shards)]
        own = request_headers("x", 0, number, "c")
        request = TranscriptionRequest(
            url, build(clip, new_dither()), headers, "c", "", 1.0, number, 0, 0, own_headers=own
        )
        record, _ = exchange(session, user_connection, request, config)
        if not record.ok:
            raise SystemExit(f"{record.outcome} {record.error}")

    plain = requests.Session()
    wavs = [base64.b64decode(bytes(shards[number].audio_b64)) for number in range(len(shards))]

    def by_json(number: int) -> None:
        data = base64.b64encode(wavs[number % len(wavs)]).decode()
        audio = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
        body: Any = {"messages": [{"role": "user", "content": [audio]}], "stream": True}
        with plain.post(url, json=body, stream=True) as response:
            list(response.iter_content(None))

    ways: dict[str, Callable[[int], None]] = {"bytes": by_bytes, "harness": by_harness, "json": by_json}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(int(rounds) + 1):
        for name, way in ways.items():
            began = time.process_time()
            for number in range(int(count)):
                way(number)
            if round_:  # the first one opens connections and fills caches
                spent[name].append((time.process_time() - began) / int(count))
    print(json.dumps(spent))


if __name__ == "__main__":
    main()
