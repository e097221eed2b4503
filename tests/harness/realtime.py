"""Realtime sessions against the embedded server, and a server with scripted sessions."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_sockets

from asr_load.apis.realtime import RealtimeOptions, RealtimeRequest
from asr_load.apis.transcription_request import TranscriptionRequest
from asr_load.audio.dither import NO_DITHER
from asr_load.http.attempt import ExchangeConfig
from asr_load.http.connection import UserConnection
from asr_load.http.transport import Timeouts, Transport
from asr_load.realtime.pacer import Playback
from asr_load.realtime.utterance import transmit
from asr_load.stream.record import Record
from harness.audio import clip
from harness.patience import PATIENCE_S
from harness.peer import LIMITS, READERS, TLS, ca_file
from harness.runs import Run, run
from harness.serving import serve

FAST = ("--engine", "scripted", "--tokens", "6", "--ttft-ms", "20", "--itl-ms", "5", "--final-ms", "40")
DIALECTS = ("vllm", "sglang", "omni", "openai")


def speak(clips: Path, results: Path, dialect: str, *words: str | Path, server: Sequence[str] = ()) -> Run:
    """A run of realtime sessions against the embedded server, in one dialect."""
    with serve(*FAST, "--realtime", dialect, *server) as url:
        named = (
            "--api",
            "realtime",
            "--realtime-dialect",
            dialect,
            *(["--model", "gpt"] if dialect == "openai" else []),
        )
        return run(url, clips, results, *named, *words)


def utter(url: str, way: str = "compiled", limits: Timeouts = LIMITS, proxy: str = "") -> Record:
    """Send an utterance of half a second in vLLM's dialect, from this process. `way` is one of WAYS."""
    user_connection = UserConnection()
    user_connection.reader_factory = READERS[way.removesuffix(TLS)]
    options = RealtimeOptions("vllm", 0.1, 1.0, 0.0, server_vad=False, utterances=1, model="", language="")
    speech = RealtimeRequest(options, clip(), NO_DITHER)
    request = TranscriptionRequest(url, [], {}, "a", "", 0.5, 0, 0, 0, realtime=speech)
    config = ExchangeConfig(limits, 0, transport=Transport(ca_file(), proxy=proxy))
    with requests.Session() as session:
        session.trust_env = False
        record, _ = transmit(session, user_connection, request, config, Playback())
    user_connection.close()
    return record


@contextmanager
def saying(*events: str | bytes | dict[str, object], last: dict[str, object] | None = None) -> Iterator[str]:
    """A server whose sessions start with these messages, whatever they receive, and then read until their end. They
    send `last` when the audio has ended, as vLLM's clients mark it."""

    def talk(connection: ServerConnection) -> None:
        try:
            for event in events:
                connection.send(json.dumps(event) if isinstance(event, dict) else event)
            for told in connection:
                if last is not None and '"final":true' in str(told):
                    connection.send(json.dumps(last))
        except ConnectionClosed:
            pass

    with serve_sockets(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(PATIENCE_S)


@contextmanager
def refusing(answer: bytes) -> Iterator[str]:
    """A server that responds to each handshake with these bytes."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(PATIENCE_S)
