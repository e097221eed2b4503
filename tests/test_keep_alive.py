"""Requests on a kept connection are those that requests would send, and a connection is kept only where allowed."""

from __future__ import annotations

import io
import re
from http.client import HTTPResponse

import pytest

from asr_load.http.head import stream_head
from harness.peer import OK, SOUND, STREAM, talk


def test_kept_connection_sends_the_same_bytes_as_requests() -> None:
    with talk(SOUND, SOUND, SOUND) as (client, peer):
        assert [client.send(peer.url).outcome for _ in range(2)] == ["ok"] * 2
        own = {"X-Clip-Id": "ä%20".encode(), "X-Request-Id": b"3"}
        others = {"Accept": "text/event-stream", "Content-Type": "application/json"}
        client.session.post(peer.url, b'{"a":' + b"1" * 100 + b"}", headers={**others, **own})
    assert (peer.connections, client.user_connection.connections.count) == (2, 1)
    heads, bodies = zip(*(request.split(b"\r\n\r\n", 1) for request in peer.requests), strict=True)
    assert bodies[0] == bodies[1] == bodies[2] == b'{"a":' + b"1" * 100 + b"}"
    for number, head in enumerate(heads, 1):
        assert b"\r\nX-Request-Id: %d\r\n" % number in head + b"\r\n"
    lines = [re.sub(rb"(X-Request-Id): \d", rb"\1", head).split(b"\r\n") for head in heads]
    assert lines[0][0] == lines[1][0] == lines[2][0] == b"POST /v1/x?a=b HTTP/1.1"
    assert sorted(lines[0][1:]) == sorted(lines[1][1:]) == sorted(lines[2][1:])


def test_body_larger_than_the_kernel_buffer_is_sent() -> None:
    whole = bytes(range(256)) * 40_000
    with talk(SOUND, SOUND) as (client, peer):
        for _ in range(2):
            record = client.send(peer.url, [whole[:10], memoryview(whole)[10:-5], whole[-5:]])
            assert record.ok
            assert record.upload is not None
            assert record.headers is not None
            assert 0 < record.upload < record.headers
    assert all(request.endswith(b"\r\n\r\n" + whole) for request in peer.requests)


def test_cookie_set_by_the_server_is_sent_back() -> None:
    cookie = OK + b"Set-Cookie: seat=7; Path=/\r\n\r\n" + STREAM
    with talk(SOUND, cookie, SOUND) as (client, peer):
        for _ in range(3):
            assert client.send(peer.url).ok
    assert [b"seat=7" in request for request in peer.requests] == [False, False, True]


def test_expired_cookie_is_no_longer_sent() -> None:
    cookie = OK + b"Set-Cookie: seat=7; Path=/\r\n\r\n" + STREAM
    no_cookie = OK + b"Set-Cookie: seat=7; Path=/; Max-Age=0\r\n\r\n" + STREAM
    with talk(cookie, no_cookie, SOUND, SOUND) as (client, peer):
        assert [client.send(peer.url).outcome for _ in range(4)] == ["ok"] * 4
    assert [b"seat=7" in request for request in peer.requests] == [False, True, False, False]


@pytest.mark.parametrize(
    ("answer", "outcome", "error"),
    [
        (b'HTTP/1.1 503 Busy\r\nContent-Length: 26\r\n\r\n{"error":{"message":"full"', "http_503", None),
        (b"HTTP/1.1 307 Go\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n", "http_307", "redirected to http://x/"),
        (b"what is this\r\n\r\n", "protocol", None),
        (OK + b"Connection: close\r\n\r\n" + STREAM, "ok", None),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
            + STREAM[: STREAM.index(b"\n\n") + 2],
            "cut",
            None,
        ),
    ],
)
def test_responses_that_are_no_stream_leave_the_next_request_intact(
    answer: bytes, outcome: str, error: str | None
) -> None:
    with talk(SOUND, answer, SOUND, SOUND) as (client, peer):
        assert client.send(peer.url).ok
        record = client.send(peer.url)
        assert record.outcome == outcome
        assert error is None or (record.error or "").startswith(error)
        assert client.send(peer.url).ok


def test_connection_closed_by_the_server_is_replaced_without_a_failure() -> None:
    with talk(SOUND, OK + b"Connection: close\r\n\r\n" + STREAM, SOUND) as (client, peer):
        assert client.send(peer.url).ok
        # The client has read that the server will close, and does not reuse the connection.
        assert client.send(peer.url).ok
        assert client.send(peer.url).ok
    assert peer.connections == 2
    lone = OK + b"X: Connection: close\r\n\r\n" + STREAM  # closes unannounced: noticed only when it is written to
    with talk(SOUND, lone, SOUND) as (client, peer):
        assert [client.send(peer.url).outcome for _ in range(3)] == ["ok"] * 3
    assert peer.connections == client.user_connection.connections.count == 2


HEAD = b"HTTP/1.1 200 OK\r\nDate: x\r\nContent-Type: text/event-stream; charset=utf-8\r\n"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (b"Transfer-Encoding: chunked\r\n", (True, None, False)),
        (b"transfer-encoding:Chunked\r\nconnection: Close\r\n", (True, None, True)),
        (b"Content-Length: 12\r\nConnection: keep-alive\r\n", (False, 12, False)),
        (b"", (False, None, True)),
    ],
)
def test_plain_head_is_parsed_as_by_http_client(fields: bytes, told: tuple[bool, int | None, bool]) -> None:
    whole = HEAD + fields + b"\r\n"
    found = stream_head(whole + b"data: x")
    assert found is not None
    head, size = found
    assert (head.status, head.chunked, head.length, head.will_close) == (200, *told)
    assert size == len(whole)
    reference = HTTPResponse(_Stored(whole))  # type: ignore[arg-type]
    reference.begin()
    assert (bool(reference.chunked), reference.length, reference.will_close) == told
    for cut in range(size):
        assert stream_head(whole[:cut]) is None


class _Stored:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._data)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 500 Oh\r\nContent-Type: text/event-stream\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        HEAD + b"Set-Cookie: a=b\r\n\r\n",
        HEAD + b"Content-Encoding: gzip\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n",
        HEAD + b"Content-Length: -3\r\n\r\n",
        HEAD + b" folded: x\r\n\r\n",
        HEAD + b"no colon\r\n\r\n",
    ],
)
def test_other_heads_are_left_to_http_client(head: bytes) -> None:
    assert stream_head(head) is None
