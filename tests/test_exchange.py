"""Responses as real servers and proxies send them, with each reader: the record, and the next request."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate

import gevent
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from asr_load.http.connection import MAX_PAUSE_S, PAUSE_S, pause_s
from asr_load.http.transport import Timeouts, Transport
from asr_load.stream.record import decode_record, encode_record
from conftest import CHECKOUT
from harness.answers import CHUNKED, EVENTS, JSON, chunk, each_reader, sized
from harness.oracle import Reading, ask
from harness.patience import PATIENCE_S
from harness.peer import LIMITS, OK, READERS, SOUND, STREAM, TLS, WAYS, Client, Peer, Piece, ca_file, talk
from harness.realtime import utter
from harness.serving import wait_until
from harness.socket_readers import settle

TEXT, STOP, DONE = STREAM.split(b"\n\n")[:3]


def chunked(*events: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return EVENTS + CHUNKED + b"".join(chunk(event + b"\n\n") for event in events) + end


@each_reader
@pytest.mark.parametrize(
    "kind", [b"text/event-stream", b"text/plain", b"application/json", b"", b"application/x-ndjson"]
)
def test_stream_is_parsed_under_any_content_type(reader: str, kind: bytes) -> None:
    field = b"Content-Type: %b\r\n" % kind if kind else b""
    said = b"HTTP/1.1 200 OK\r\n" + field + CHUNKED + chunk(STREAM) + b"0\r\n\r\n"
    with talk(said, said, reader=reader) as (client, peer):
        for _ in range(2):
            record = client.send(peer.url)
            assert (record.outcome, record.text, record.streamed) == ("ok", "a", True)
    assert peer.connections == 1


@each_reader
@pytest.mark.parametrize("kind", [b"application/json", b"text/event-stream", b"text/plain"])
def test_complete_response_is_parsed_under_any_content_type(reader: str, kind: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n" % kind
    good, bad = sized(b' {"text": "whole"}', head), sized(b'{"detail": "no memory"}', head)
    with talk(good, bad, good, reader=reader) as (client, peer):
        told = [client.send(peer.url) for _ in range(3)]
    assert [(record.outcome, record.text, record.error) for record in told] == [
        ("ok", "whole", None),
        ("stream_error", "", "no memory"),
        ("ok", "whole", None),
    ]
    assert not told[0].streamed
    assert peer.connections == 1


RESPONSES = {
    "length": SOUND,
    "chunks": chunked(TEXT, TEXT, STOP, DONE),
    "a chunk for each byte": EVENTS + CHUNKED + b"".join(map(chunk, (bytes([each]) for each in STREAM))) + b"0\r\n\r\n",
    "chunks with extensions": EVENTS + CHUNKED + b"%x;a=b\r\n%b\r\n0;c\r\n\r\n" % (len(STREAM), STREAM),
    "trailers": chunked(TEXT, STOP, DONE, end=b"0\r\nX-Sum: 7\r\n\r\n"),
    "until the connection closes": EVENTS + b"Connection: close\r\n\r\n" + STREAM,
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n" + STREAM,
    "no reason": b"HTTP/1.1 200\r\nContent-Length: %d\r\n\r\n" % len(STREAM) + STREAM,
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" + SOUND,
    "line ends of Windows": sized(STREAM.replace(b"\n", b"\r\n")),
    "bare line ends": b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(STREAM) + STREAM,
    "gzip": sized(gzip.compress(STREAM), EVENTS + b"Content-Encoding: gzip\r\n"),
    "whole": sized(b'{"text": "whole", "usage": {"completion_tokens": 3}}', JSON),
    "no text": sized(b"data: [DONE]\n\n"),
    "no end": chunked(TEXT),
    "aborted": chunked(TEXT, STOP.replace(b"stop", b"abort"), DONE),
    "an error in the stream": chunked(TEXT, b'data: {"error": {"message": "full", "code": 503}}'),
    "a page": sized(b"<html>It works!</html>"),
    "busy": b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nfull",
    "nothing": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
    "cut off": EVENTS + b"Connection: close\r\n" + CHUNKED + chunk(TEXT + b"\n\n") + b"5\r\nda",
}


@pytest.mark.parametrize("name", RESPONSES)
@each_reader
def test_readers_agree_with_the_reference(reader: str, name: str) -> None:
    with talk(RESPONSES[name], RESPONSES[name], reader=reader) as (client, peer):
        expected = ask(peer.url)
        record = client.send(peer.url)
    assert {field: getattr(record, field) for field in Reading._fields} == expected._asdict()


@each_reader
@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
def test_unrequested_compression_is_decoded_or_reported(reader: str, coding: bytes) -> None:
    make: Callable[[bytes], bytes] = gzip.compress if coding == b"gzip" else zlib.compress
    head = b"Content-Encoding: " + coding + b"\r\n"
    answers = [sized(make(STREAM), EVENTS + head), sized(make(b'{"text": "a"}'), JSON + head), SOUND]
    with talk(*answers, reader=reader) as (client, peer):
        assert [(record.outcome, record.text) for record in (client.send(peer.url) for _ in range(3))] == [
            ("ok", "a")
        ] * 3
    assert peer.connections == 1
    with talk(sized(STREAM, EVENTS + b"Content-Encoding: br\r\n"), SOUND, reader=reader) as (client, peer):
        record = client.send(peer.url)
        assert (record.outcome, record.error) == ("protocol", "unsupported content-encoding: br")
        assert client.send(peer.url).ok


@each_reader
@pytest.mark.parametrize("interim", [b"100 Continue", b"102 Processing", b"103 Early Hints", b"199 What"])
def test_interim_responses_are_skipped(reader: str, interim: bytes) -> None:
    hints = b"HTTP/1.1 " + interim + b"\r\nLink: </x>; rel=preload\r\nContent-Length: 7\r\n\r\n"
    with talk(SOUND, hints + SOUND, [hints, 0.02, hints, 0.02, SOUND], SOUND, reader=reader) as (client, peer):
        assert [client.send(peer.url).outcome for _ in range(4)] == ["ok"] * 4
    assert peer.connections == 1


@each_reader
def test_switching_protocols_is_a_protocol_error(reader: str) -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nsomething else"
    with talk(SOUND, switch, SOUND, SOUND, reader=reader) as (client, peer):
        told = [client.send(peer.url) for _ in range(3)]
    assert [record.outcome for record in told] == ["ok", "protocol", "ok"]
    assert "101" in (told[1].error or "")
    assert peer.connections == 2


LATE_408 = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
OPEN_408 = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"


def has_come(client: Client) -> bool:
    """Whether the connection of the last response is readable."""
    connection = client.user_connection.connection
    assert connection is not None
    assert connection.sock is not None
    return bool(select.select([connection.sock], [], [], 0)[0])


@each_reader
@pytest.mark.parametrize(
    "behind",
    [b"\r\n", b"0\r\n\r\n", SOUND, LATE_408, OPEN_408, b"HTTP/1.1 200 OK\r\n"],
    ids=["blank line", "last chunk", "response", "408", "408, kept open", "partial response"],
)
@pytest.mark.parametrize("later", [True, False])
def test_bytes_on_an_idle_connection_are_not_a_response(reader: str, behind: bytes, later: bool) -> None:
    other = sized(STREAM.replace(b'"a"', b'"b"'))
    idle, come = threading.Event(), threading.Event()
    said: list[Piece] = [SOUND, idle, behind, come.set] if later else [SOUND + behind]
    with talk(said, other, other, reader=reader) as (client, peer):
        assert client.send(peer.url).text == "a"
        if later:
            idle.set()
            assert come.wait(PATIENCE_S)
            settle(lambda: has_come(client))  # a busy kernel may deliver it some time after the peer's sendall
        told = [client.send(peer.url) for _ in range(2)]
    assert [(record.outcome, record.text, record.retries) for record in told] == [("ok", "b", 0)] * 2
    assert (peer.connections, client.user_connection.shared.dropped) == (2, 1)


@each_reader
@pytest.mark.parametrize("answer", [LATE_408, OPEN_408, None])
def test_retry_on_a_stale_connection_is_recorded_and_not_in_latencies(reader: str, answer: bytes | None) -> None:
    # The server closes the idle connection just as the request arrives, with or without a 408.
    with talk(SOUND, [0.2, answer], [0.02, SOUND], SOUND, reader=reader) as (client, peer):
        assert client.send(peer.url).retries == 0
        began = time.perf_counter()
        again = client.send(peer.url)
        took = time.perf_counter() - began
        after = client.send(peer.url)
    assert (again.outcome, again.retries, again.http_status) == ("ok", 1, 200)
    assert again.retry_s > 0.19
    assert again.ttft is not None
    assert again.ttft > 0.01
    assert again.started_at - began > 0.19
    # The time of the first attempt is in retry_s, and not in the latencies of the second.
    assert again.retry_s + again.ttft <= took
    assert again.started_at - began + again.ttft <= took
    assert (after.outcome, after.retries, after.retry_s) == ("ok", 0, 0)
    assert peer.connections == 2


@each_reader
def test_408_on_a_new_connection_is_the_outcome(reader: str) -> None:
    with talk(LATE_408, SOUND, reader=reader) as (client, peer):
        assert [client.send(peer.url).outcome for _ in range(2)] == ["http_408", "ok"]


@each_reader
@pytest.mark.parametrize("status", [b"413 Too Large", b"500 Broken", b"401 Who", b"204 Nothing"])
def test_unread_rest_of_a_response_does_not_affect_the_next_request(reader: str, status: bytes) -> None:
    long = b"HTTP/1.1 " + status + b"\r\nContent-Length: 400000\r\n\r\n" + b"x" * 400_000
    if status.startswith(b"204"):
        long = b"HTTP/1.1 204 No Content\r\n\r\n" + SOUND
    with talk(SOUND, long, SOUND, SOUND, reader=reader) as (client, peer):
        told = [client.send(peer.url) for _ in range(3)]
    assert [record.outcome for record in told] == ["ok", f"http_{int(status[:3])}", "ok"]


@each_reader
def test_two_hosts_have_two_connections(reader: str) -> None:
    other = sized(STREAM.replace(b'"a"', b'"b"'))
    with talk(SOUND, SOUND, reader=reader) as (client, peer), talk(other, other) as (_, second):
        urls = [peer.url, second.url, peer.url, second.url]
        assert [client.send(url).text for url in urls] == ["a", "b", "a", "b"]
    assert len(peer.requests) == len(second.requests) == 2


@pytest.mark.parametrize(("pause", "reader"), [*((0.3, way) for way in WAYS), *((1.4, way) for way in READERS)])
def test_content_after_a_finish_reason_belongs_to_the_transcript(pause: float, reader: str) -> None:
    more = chunk(TEXT.replace(b'"a"', b'" b"') + b"\n\n")
    pieces: list[Piece] = [
        chunked(TEXT, STOP, end=b""),
        pause,
        more,
        pause,
        more,
        0.1,
        chunk(DONE + b"\n\n"),
        b"0\r\n\r\n",
    ]
    with talk(pieces, SOUND, reader=reader) as (client, peer):
        record = client.send(peer.url)
        assert (record.outcome, record.text, record.chunks) == ("ok", "a b b", 3)
        assert record.stream_end is not None
        assert client.send(peer.url).ok
    assert peer.connections == 1


@each_reader
def test_segments_end_with_the_body(reader: str) -> None:
    segments = [b'data: {"text": " he"}', b'data: {"text": " said"}']
    answers: list[bytes | list[Piece]] = [
        chunked(*segments),
        sized(b"\n\n".join([*segments, b""])),
        [chunked(*segments, end=b""), None],
        EVENTS + b"Connection: close\r\n\r\n" + segments[0] + b"\n\n",
    ]
    with talk(*answers, reader=reader) as (client, peer):
        told = [client.send(peer.url) for _ in answers]
    assert [(record.outcome, record.text.strip()) for record in told] == [
        ("ok", "he said"),
        ("ok", "he said"),
        ("cut", "he said"),
        ("cut", "he"),
    ]


LEFT_S = 0.8
"""Seconds for which a body stays open after the last event of its stream, or for which a reader waits for its end."""


@pytest.mark.long
@each_reader
@pytest.mark.parametrize("end", ["cut off", "reset", "never"])
def test_successful_record_has_the_time_when_its_stream_ended(reader: str, end: str) -> None:
    """This holds when the test ends before the body does, when the connection breaks, and when the body never ends."""
    over = threading.Event()
    hows: dict[str, list[Piece]] = {"cut off": [over], "reset": [LEFT_S, None], "never": [over]}
    with talk([chunked(TEXT, STOP, DONE, end=b""), *hows[end]], reader=reader) as (client, peer):
        began = time.perf_counter()
        asked = gevent.spawn(client.send, peer.url)
        if end == "cut off":
            gevent.sleep(LEFT_S)
            asked.kill()
        record = asked.get(timeout=PATIENCE_S)
        took = time.perf_counter() - began
        over.set()
        assert record.outcome == "ok"
        assert record.stream_end is not None
        assert record.e2el is not None
        # The stream ends with its last event. The time until its body ended, or was abandoned, is excluded.
        assert record.e2el <= record.stream_end < took - LEFT_S / 2


@each_reader
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("field", "at_least", "at_most"),
    [
        (b"", PAUSE_S, PAUSE_S),
        (b"Retry-After: 7\r\n", 7, 7),
        (b"Retry-After: 900\r\n", MAX_PAUSE_S, MAX_PAUSE_S),
        (b"Retry-After: soon\r\n", PAUSE_S, PAUSE_S),
    ],
)
def test_429_and_503_pause_the_user_for_retry_after(
    reader: str, status: int, field: bytes, at_least: float, at_most: float
) -> None:
    busy = b"HTTP/1.1 %d No\r\n%bContent-Length: 4\r\n\r\nfull" % (status, field)
    with talk(busy, SOUND, reader=reader) as (client, peer):
        record = client.send(peer.url)
        assert (record.outcome, record.error) == (f"http_{status}", "full")
        assert at_least <= client.user_connection.pause_s <= at_most
        assert client.send(peer.url).ok
        assert client.user_connection.pause_s == 0


@each_reader
def test_503_in_the_stream_under_status_200_pauses_the_user(reader: str) -> None:
    with talk(chunked(b'data: {"error": {"message": "full", "code": 503}}'), reader=reader) as (client, peer):
        assert client.send(peer.url).outcome == "stream_error"
        assert client.user_connection.pause_s == PAUSE_S


def test_pause_is_parsed_from_retry_after() -> None:
    assert pause_s("12.5") == 12.5
    assert pause_s("-3") == pause_s("nan") == pause_s("") == pause_s("Thu, 01 Jan 1970 00:00:00 GMT") == PAUSE_S
    assert pause_s("inf") == MAX_PAUSE_S
    assert 8 < pause_s(formatdate(time.time() + 10, usegmt=True)) <= 10
    assert pause_s(formatdate(time.time() + 1000, usegmt=True)) == MAX_PAUSE_S
    assert pause_s("Thu, 99 Foo 99999 00:00:00 GMT") == PAUSE_S


@pytest.mark.parametrize(("reader", "limit"), [*((reader, "stall") for reader in WAYS), ("python", "total")])
def test_hanging_response_gets_the_outcome_of_its_timeout(reader: str, limit: str) -> None:
    short = Timeouts(connect=PATIENCE_S, **{"stall": PATIENCE_S, "total": PATIENCE_S, limit: 0.3})
    over = threading.Event()
    hang: list[Piece] = [chunked(TEXT, end=b""), over]
    with talk(SOUND, hang, SOUND, reader=reader) as (client, peer):
        told = []
        for limits in (LIMITS, short, LIMITS):
            client.limits = limits
            told.append(client.send(peer.url))
        over.set()
    assert [record.outcome for record in told] == ["ok", "stalled" if limit == "stall" else "timeout", "ok"]


@each_reader
def test_retry_that_cannot_connect_has_no_negative_time(reader: str) -> None:
    """The server drops the connection that it kept, and listens no more."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/x"

    def serve() -> None:
        connection, _ = listener.accept()
        listener.close()
        with connection:
            for answer in (SOUND, b""):
                while not connection.recv(1 << 16).endswith(b"}"):
                    pass
                connection.sendall(answer)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    serving = threading.Thread(target=serve)
    serving.start()
    with talk(SOUND, reader=reader) as (client, _):
        assert client.send(url).outcome == "ok"
        record = client.send(url)
    serving.join()
    assert (record.outcome, record.retries, record.retry_s) == ("connect", 1, 0.0)
    assert decode_record(encode_record(record)).outcome == "connect"


STALL_S = 5.0
"""All requests must be sent within this time, before the process is stopped."""

CHILD = "import sys; sys.path.append('..'); from test_exchange import ask_all; ask_all(*sys.argv[1:])"


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
