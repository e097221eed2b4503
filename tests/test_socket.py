"""WebSockets: frames in any pieces, and servers that flood a session while other users go on."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gevent
import pytest
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from asr_load.apis.transcript import Transcript
from asr_load.http.connection import Connection, SharedState, place_of
from asr_load.http.socket_reader import compiled, python
from asr_load.http.transport import Transport
from asr_load.realtime import socket as realtime
from asr_load.realtime.socket import Socket
from asr_load.stream.limits import MAX_STREAM_BYTES
from asr_load.stream.reader import ProtocolError
from benchmarks.flood_server import FLOODS, PHASES, accept, frame
from harness.patience import PATIENCE_S
from harness.peer import LIMITS, TLS, WAYS, server_context
from harness.realtime import utter


def accepted(server: socket.socket) -> tuple[socket.socket, ServerProtocol]:
    """Accept a connection; its handshake response is prepared, but not sent."""
    peer, _ = server.accept()
    protocol = ServerProtocol()
    protocol.receive_data(peer.recv(65536))
    (request,) = protocol.events_received()
    protocol.send_response(protocol.accept(request))  # type: ignore[arg-type]
    return peer, protocol


def client_to(url: str, factory: Any) -> Socket:
    """A socket that is connected, but has not shaken hands."""
    connection = Connection(place_of(url), Transport(), SharedState())
    connection.open(PATIENCE_S)
    return Socket(connection, factory, url)


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
@pytest.mark.parametrize("factory", [python, *([compiled] if compiled else [])], ids=lambda each: type(each).__name__)
def test_frames_parse_alike_however_reads_are_split(size: int, factory: Any) -> None:
    texts = ["", "short", "ä" * 200, "x" * (70000 if size > 100 else 300)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}/v1/realtime"

        def talk() -> None:
            peer, protocol = accepted(server)
            for text in texts:
                data = text.encode()
                half = len(data) // 2
                protocol.send_text(data[:half], fin=False)  # in fragments with a ping between them
                protocol.send_ping(b"p")
                protocol.send_continuation(data[half:], fin=True)
            protocol.send_close(1011, "the end")
            data = b"".join(protocol.data_to_send())
            for at in range(0, len(data), size):
                peer.sendall(data[at : at + size])
            pongs = b""
            while piece := peer.recv(65536):
                pongs += piece
            got.append(pongs)
            peer.close()

        got: list[bytes] = []
        thread = threading.Thread(target=talk)
        thread.start()
        client = client_to(url, factory)
        client.shake_hands({}, time.perf_counter() + PATIENCE_S)
        while client.is_open:
            client.listen(time.perf_counter() + PATIENCE_S)
        assert [text.decode() for text, _ in client.messages] == texts
        assert (client.close_code, client.close_reason) == (1011, "the end")
        stamps = [at for _, at in client.messages]
        assert stamps == sorted(stamps)
        client.close()
        thread.join(PATIENCE_S)
    assert got[0].count(b"\x8a") >= len(texts)  # a pong for each ping


def test_masked_frame_is_a_protocol_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}/v1/realtime"

        def talk() -> None:
            peer, protocol = accepted(server)
            masked = Frame(Opcode.TEXT, b"masked").serialize(mask=True)
            peer.sendall(b"".join(protocol.data_to_send()) + masked)
            peer.recv(65536)
            peer.close()

        thread = threading.Thread(target=talk)
        thread.start()
        client = client_to(url, python)
        with pytest.raises(ProtocolError, match="malformed WebSocket frames"):
            client.shake_hands({}, time.perf_counter() + PATIENCE_S)
            client.listen(time.perf_counter() + PATIENCE_S)
        client.drop()
        thread.join(PATIENCE_S)


def test_blocked_time_of_a_socket_is_measured() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}/v1/realtime"
        peers: list[socket.socket] = []

        def talk() -> None:
            peer, protocol = accepted(server)
            peer.sendall(b"".join(protocol.data_to_send()))
            peers.append(peer)  # and read nothing

        thread = threading.Thread(target=talk)
        thread.start()
        client = client_to(url, python)
        client.shake_hands({}, time.perf_counter() + PATIENCE_S)
        thread.join(PATIENCE_S)
        for _ in range(200):
            client.send(b"x" * 100_000)
        client.listen(time.perf_counter() + 0.2)
        assert client.blocked_s > 0.15
        peers[0].sendall(Frame(Opcode.BINARY, b"x").serialize(mask=False))
        with pytest.raises(ProtocolError, match="a binary frame"):
            while True:
                client.listen(time.perf_counter() + PATIENCE_S)
        client.drop()
        peers[0].close()


MOST_FRAMES = 20_000
"""The limit for an utterance in these tests."""

IN_A_ROUND = 5 * 1024
"""The limit of frames and events per round of the loop: two calls of `listen`, and a margin."""


@contextmanager
def flooded(name: str, phase: str, *, tls: bool = False) -> Iterator[str]:
    """The URL of a session that gets flooded."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener = server_context().wrap_socket(server, server_side=True) if tls else server
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"ws{'s' * tls}://127.0.0.1:{listener.getsockname()[1]}/{name}/{phase}"
        listener.close()


@pytest.fixture
def most_in_a_round(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """The largest number of frames and events taken in one round of the event loop so far."""
    taken, rounds = 0, [0]

    def counted(owner: type, name: str) -> None:
        plain = getattr(owner, name)

        def take(*args: object) -> None:
            nonlocal taken
            taken += 1
            plain(*args)

        monkeypatch.setattr(owner, name, take)

    def begin_round() -> None:
        nonlocal taken
        rounds.append(taken)
        taken = 0

    counted(realtime.Socket, "_handle")
    counted(Transcript, "count")
    watcher = gevent.get_hub().loop.prepare()
    watcher.start(begin_round)
    yield lambda: max(rounds)
    watcher.close()


CASES = [
    *((name, phase, "compiled") for name, phase in itertools.product(FLOODS, PHASES)),
    *((name, "after", "compiled" + TLS) for name in FLOODS),
    *(("pings", "after", way) for way in WAYS if way.startswith("python")),
]


@pytest.mark.parametrize(("name", "phase", "way"), CASES)
def test_flood_yields_to_other_users_and_ends_at_the_limit(
    name: str, phase: str, way: str, most_in_a_round: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "MAX_EVENTS", MOST_FRAMES, raising=False)
    with flooded(name, phase, tls=way.endswith(TLS)) as url:
        record = utter(url, way)
    assert record.outcome == "protocol"
    assert f"more than {MOST_FRAMES} frames" in (record.error or "")
    assert 0 < most_in_a_round() < IN_A_ROUND


@pytest.mark.parametrize("phase", PHASES)
def test_total_timeout_ends_a_flooded_utterance(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_EVENTS", "MAX_STREAM_BYTES"):
        monkeypatch.setattr(realtime, name, 1 << 60, raising=False)
    monkeypatch.setitem(FLOODS, "long pings", (b"", frame(Opcode.PING, b"x" * 125)))
    with flooded("long pings", phase) as url:
        assert utter(url, limits=replace(LIMITS, total=0.6)).outcome == "timeout"


def test_text_of_an_utterance_has_the_limit_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = b'{"type":"transcription.delta","delta":"%b"}' % (b"word " * 10_000)
    monkeypatch.setitem(FLOODS, "deltas", (b"", frame(Opcode.TEXT, delta)))
    with flooded("deltas", "after") as url:
        record = utter(url)
    assert record.outcome == "protocol"
    assert f"{MAX_STREAM_BYTES} bytes" in (record.error or "")
    assert MAX_STREAM_BYTES / 2 < len(record.text) < MAX_STREAM_BYTES
