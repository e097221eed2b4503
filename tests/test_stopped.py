"""A process stopped by SIGSTOP for longer than the stall timeout while its responses arrive."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace

import gevent
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from asr_load.http.transport import Transport
from conftest import CHECKOUT
from harness.patience import PATIENCE_S
from harness.peer import LIMITS, OK, SOUND, STREAM, TLS, WAYS, Client, Peer, Piece, ca_file
from harness.realtime import utter
from harness.serving import wait_until

STALL_S = 5.0
"""All requests must be sent within this time, before the process is stopped."""

CHILD = "import sys; sys.path.append('..'); from test_stopped import ask_all; ask_all(*sys.argv[1:])"


def ask_all(plain: str, tls: str, live: str, authority: str) -> None:
    """Send all requests concurrently, two with each reader, and print the outcomes."""
    limits = replace(LIMITS, stall=STALL_S)

    def ask(way: str) -> str:
        client = Client(way, limits)
        client.transport = Transport(authority)
        return client.send(tls if way.endswith(TLS) else plain).outcome

    def speak(way: str) -> str:
        return utter(live, way, limits).outcome

    asked = [gevent.spawn(ask, way) for way in WAYS * 2] + [gevent.spawn(speak, way) for way in WAYS[:2]]
    gevent.joinall(asked)
    print(json.dumps([each.value for each in asked]))


@contextmanager
def live_server(waiting: list[int], go: threading.Event) -> Iterator[str]:
    """A server whose sessions end when `go` is set."""

    def talk(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            connection.send('{"type":"session.created","id":"a","created":1}')
            next(message for message in connection if '"final":true' in str(message))
            waiting.append(1)
            go.wait(PATIENCE_S)
            connection.send('{"type":"transcription.done","text":"hello"}')

    with serve(talk, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/v1/realtime"


@pytest.mark.long
def test_responses_that_arrive_while_stopped_are_not_stalled() -> None:
    go, waiting = threading.Event(), list[int]()
    whole: list[Piece] = [go, SOUND]
    body: list[Piece] = [OK + b"\r\n" + STREAM[:20], go, STREAM[20:]]
    half = len(WAYS) // 2
    plain, tls = Peer([whole, body] * half, tls=False), Peer([whole, body] * half, tls=True)
    with live_server(waiting, go) as live:
        command = [sys.executable, "-c", CHILD, plain.url, tls.url, live, ca_file()]
        child = subprocess.Popen(command, cwd=CHECKOUT / "tests", stdout=subprocess.PIPE, text=True)
        try:
            asked: list[Sized] = [plain.requests, tls.requests, waiting]
            wait_until(lambda: sum(map(len, asked)) == 2 * len(WAYS) + 2, "all have asked")
            os.kill(child.pid, signal.SIGSTOP)
            go.set()
            time.sleep(1.2 * STALL_S)  # the responses wait in the kernel
            os.kill(child.pid, signal.SIGCONT)
            outcomes = json.loads(child.communicate(timeout=PATIENCE_S)[0])
        finally:
            child.kill()
    plain.close()
    tls.close()
    assert set(outcomes) == {"ok"}
