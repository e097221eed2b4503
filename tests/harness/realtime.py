"""Realtime sessions of the embedded server, and a server that says what a test wants it to."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_sockets

from harness.runs import Run, run
from harness.serving import serve

FAST = ("--engine", "scripted", "--tokens", "6", "--ttft-ms", "20", "--itl-ms", "5", "--final-ms", "40")
DIALECTS = ("vllm", "sglang", "omni", "openai")


def speak(clips: Path, results: Path, dialect: str, *words: str | Path, server: Sequence[str] = ()) -> Run:
    """A run of realtime sessions against the embedded server in a dialect."""
    with serve(*FAST, "--realtime", dialect, *server) as url:
        named = (
            "--api",
            "realtime",
            "--realtime-dialect",
            dialect,
            *(["--model", "gpt"] if dialect == "openai" else []),
        )
        return run(url, clips, results, *named, *words)


@contextmanager
def saying(*events: str | bytes | dict[str, object]) -> Iterator[str]:
    """A server whose sessions begin with these messages, whatever they are told; then they hear until their end."""

    def talk(connection: ServerConnection) -> None:
        try:
            for event in events:
                connection.send(json.dumps(event) if isinstance(event, dict) else event)
            for _ in connection:
                pass
        except ConnectionClosed:
            pass

    with serve_sockets(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(10)


@contextmanager
def refusing(answer: bytes) -> Iterator[str]:
    """A server that answers each handshake with these bytes."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(10)
