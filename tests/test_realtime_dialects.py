"""What is said in each dialect, and what is heard: events as the engines' sources write them."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import gevent
import pytest
from openai.types.realtime import InputAudioBufferAppendEvent, InputAudioBufferCommitEvent, SessionUpdateEvent
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from asr_load.http.connection import Connection, Connections, place_of
from asr_load.http.socket_reader import compiled, python
from asr_load.http.transport import Transport
from asr_load.realtime.dialects import DIALECTS, Event, Heard, LiveOptions, choose, error_words, read_event, told_by
from asr_load.realtime.socket import Socket
from asr_load.stream.reader import ProtocolError

OPTIONS = LiveOptions(
    dialect="auto", packet_s=0.1, pace=1, silence_s=0, server_vad=False, utterances=1, model="m", language="en"
)
ITEM = "conversation.item.input_audio_transcription"


def hear(dialect: str, *events: dict[str, Any]) -> Heard:
    heard = Heard()
    for at, event in enumerate(events, 1):
        DIALECTS[dialect].hear(read_event(json.dumps(event).encode()), heard, at)
    return heard


def test_openai_s_types_take_what_is_said() -> None:
    for name in ("openai", "sglang"):
        dialect = DIALECTS[name]
        (update,) = dialect.configure(OPTIONS, dialect.rates[0])
        if name == "openai":  # SGLang takes 16 kHz too, which OpenAI does not
            told = SessionUpdateEvent.model_validate_json(update, strict=True)
            assert told.session.type == "transcription"
        InputAudioBufferAppendEvent.model_validate_json(dialect.append(b"AAAA"), strict=True)
        InputAudioBufferCommitEvent.model_validate_json(dialect.end(), strict=True)


def test_the_first_event_tells_the_dialect() -> None:
    def told(event: dict[str, Any], host: str = "gpu") -> str:
        return told_by(read_event(json.dumps({"type": "session.created", **event}).encode()), host)

    assert told({"id": "sess-1", "created": 1795579195}) == "vllm"
    nested = {"event_id": "e", "session": {"object": "realtime.transcription_session", "type": "transcription"}}
    assert told(nested) == "sglang"
    assert told(nested, "api.openai.com") == "openai"
    assert told(nested, "notopenai.com") == "sglang"
    assert told({"event_index": 0, "session": {"intent": "transcription"}}) == "omni"
    assert told({"session": {"object": "realtime.session"}}) == ""
    created = read_event(json.dumps({"type": "session.created", **nested}).encode())
    assert choose("openai", created, "gpu").name == "openai"  # whoever names one of the two is believed
    with pytest.raises(ProtocolError, match="the server speaks sglang, not vllm"):
        choose("vllm", created, "gpu")


def test_vllm_joins_deltas_and_counts_none_that_is_empty() -> None:
    deltas = [{"type": "transcription.delta", "delta": delta} for delta in ("language English<asr_text>Hel", "", "lo")]
    done = {"type": "transcription.done", "text": "language English<asr_text>Hello", "usage": {"completion_tokens": 9}}
    heard = hear("vllm", *deltas, done, done)
    assert heard.text == "language English<asr_text>Hello"
    assert heard.times == [1, 3]
    assert heard.revised == 0
    assert heard.usage == {"completion_tokens": 9}


def test_items_are_matched_by_their_ids_whatever_their_order() -> None:
    events = [
        {"type": f"{ITEM}.delta", "item_id": "a", "delta": "one"},
        {"type": f"{ITEM}.delta", "item_id": "b", "delta": "two"},
        {"type": f"{ITEM}.completed", "item_id": "b", "transcript": "two"},
    ]
    sglang = DIALECTS["sglang"]
    assert not sglang.is_final(hear("sglang", *events), commits=2)
    both = hear("sglang", *events, {"type": f"{ITEM}.completed", "item_id": "a", "transcript": "one"})
    assert sglang.is_final(both, commits=2)
    assert both.text == "one two"
    failed = hear("sglang", {"type": f"{ITEM}.failed", "item_id": "a", "error": {"code": "x", "message": "y"}})
    assert failed.failed == "x: y"


def test_replaced_segments_count_what_is_withdrawn() -> None:
    def segment(index: int, text: str, end: int = 1000, name: str = "s1") -> dict[str, Any]:
        place = {"segment_id": name, "audio_start_ms": 0, "audio_end_ms": end}
        return {"type": "transcription.segment", "event_index": index, "text": text, **place}

    heard = hear("omni", segment(1, "a b"), segment(2, "a c d"), segment(3, "a c d", 2000), segment(4, "e", 3000, "s2"))
    assert (heard.text, heard.revised, heard.times) == ("a c d e", 1, [1, 2, 4])
    assert heard.positions[-1] == (4, 3.0)
    end = {"type": "transcription.completed", "event_index": 5, "text": "a c d  e"}
    assert hear("omni", segment(1, "a c d"), segment(2, "e", 3000, "s2"), end).text == "a c d e"
    with pytest.raises(ProtocolError, match="event_index 1 after 2"):
        hear("omni", segment(2, "a"), segment(1, "b"))


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"delta":"x"}', b'"x"', b'{"type":"\xff"}'])
def test_what_is_no_event_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_event(data)


def test_errors_in_each_shape() -> None:
    assert error_words(Event("error", error="broke", code="processing_error")) == "processing_error: broke"
    assert error_words(Event("error", error={"type": "t", "code": None, "message": "m"})) == "t: m"
    assert error_words(Event("error", error={"odd": 1})) == "{'odd': 1}"


def accepted(server: socket.socket) -> tuple[socket.socket, ServerProtocol]:
    """The next connection, its handshake answered but not sent."""
    peer, _ = server.accept()
    protocol = ServerProtocol()
    protocol.receive_data(peer.recv(65536))
    (request,) = protocol.events_received()
    protocol.send_response(protocol.accept(request))  # type: ignore[arg-type]
    return peer, protocol


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
@pytest.mark.parametrize("factory", [python, *([compiled] if compiled else [])], ids=lambda each: type(each).__name__)
def test_frames_are_the_same_however_their_bytes_are_cut(size: int, factory: Any) -> None:
    texts = ["", "short", "ä" * 200, "x" * (70000 if size > 100 else 300)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}/v1/realtime"

        def talk() -> None:
            peer, protocol = accepted(server)
            for text in texts:
                data = text.encode()
                half = len(data) // 2
                protocol.send_text(data[:half], fin=False)  # in fragments, with a ping between them
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
        connection = Connection(place_of(url), Transport(), Connections())
        connection.open(5)
        client = Socket(connection, factory, url)
        client.shake_hands({}, 5)
        while client.is_open:
            client.listen(time.perf_counter() + 30)
        assert [text.decode() for text, _ in client.messages] == texts
        assert (client.close_code, client.close_reason) == (1011, "the end")
        stamps = [at for _, at in client.messages]
        assert stamps == sorted(stamps)
        client.close()
        thread.join(10)
    assert got[0].count(b"\x8a") >= len(texts)  # a pong for each ping


def test_a_frame_that_breaks_the_protocol_is_told() -> None:
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
        connection = Connection(place_of(url), Transport(), Connections())
        connection.open(5)
        client = Socket(connection, python, url)
        with pytest.raises(ProtocolError, match="not a WebSocket's frames"):
            client.shake_hands({}, 5)
            client.listen(time.perf_counter() + 30)
        client.drop()
        thread.join(10)


def test_a_socket_that_takes_nothing_is_counted_while_it_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}/v1/realtime"
        peers: list[socket.socket] = []

        def talk() -> None:
            peer, protocol = accepted(server)
            peer.sendall(b"".join(protocol.data_to_send()))
            peers.append(peer)  # and reads nothing

        thread = threading.Thread(target=talk)
        thread.start()
        connection = Connection(place_of(url), Transport(), Connections())
        connection.open(5)
        client = Socket(connection, python, url)
        client.shake_hands({}, 5)
        thread.join(10)
        for _ in range(200):
            client.send(b"x" * 100_000)
        client.listen(time.perf_counter() + 0.2)
        assert client.blocked_s > 0.15
        peers[0].sendall(Frame(Opcode.BINARY, b"x").serialize(mask=False))
        gevent.sleep(0.05)
        assert not client.is_quiet  # nothing that is kept has anything to say
        client.drop()
        peers[0].close()
