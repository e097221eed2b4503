"""Heads of responses, compared with http.client, and what happens where the two parsers differ."""

from __future__ import annotations

import contextlib
import io
from http.client import HTTPException, HTTPResponse

import pytest

from asr_load.http.collector import CHUNKED, UNTIL_CLOSE
from asr_load.http.head import Head, HeadParser
from asr_load.stream.limits import MAX_HEAD_LINES
from asr_load.stream.reader import ProtocolError

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: 5\r\n"


def parse(data: bytes, pieces: int | None = None) -> tuple[Head | None, int]:
    """The head at the beginning of `data`, fed in pieces of some bytes, and its length."""
    parser, used = HeadParser(), 0
    size = pieces or len(data)
    for start in range(0, len(data), size):
        if parser.head is None:
            used += parser.feed(data[start : start + size])
    return parser.head, used


class _Stored:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def by_http_client(data: bytes) -> HTTPResponse:
    reference = HTTPResponse(_Stored(data), method="POST")  # type: ignore[arg-type]
    reference.begin()
    return reference


ALIKE: dict[str, tuple[bytes, int, int, bool]] = {
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n", 200, CHUNKED, True),
    "capitals": (OK + b"transfer-encoding:Chunked\r\nconnection: Close\r\n", 200, CHUNKED, False),
    "length": (OK + LENGTH + b"Connection: keep-alive\r\n", 200, 5, True),
    "length with spaces": (OK + b"content-length: \t5 \r\n", 200, 5, True),
    "neither": (OK, 200, UNTIL_CLOSE, False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n", 200, UNTIL_CLOSE, False),
    "HTTP/1.0 with a length": (b"HTTP/1.0 200 OK\r\n" + LENGTH, 200, 5, False),
    "HTTP/1.0, kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + LENGTH, 200, 5, True),
    "HTTP/1.0 with chunks": (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n", 200, CHUNKED, False),
    "no reason": (b"HTTP/1.1 200\r\n" + LENGTH, 200, 5, True),
    "an empty reason": (b"HTTP/1.1 200 \r\n" + LENGTH, 200, 5, True),
    "a reason in UTF-8": ("HTTP/1.1 500 Möglich\r\n".encode() + LENGTH, 500, 5, True),
    "a value in UTF-8": (OK + "X: Grüße\r\n".encode() + LENGTH, 200, 5, True),
    "a control character in a value": (OK + b"X: a\x01b\r\n" + LENGTH, 200, 5, True),
    "bare line feeds": (b"HTTP/1.1 200 OK\nX: y\n" + LENGTH, 200, 5, True),
    "folded": (OK + b"X: y\r\n z\r\n\tz\r\n" + LENGTH, 200, 5, True),
    "chunks and a length": (OK + LENGTH + b"Transfer-Encoding: chunked\r\n", 200, CHUNKED, True),
    "a length and chunks": (OK + b"Transfer-Encoding: chunked\r\n" + LENGTH, 200, CHUNKED, True),
    "chunks twice": (OK + b"Transfer-Encoding: chunked\r\n" * 2, 200, CHUNKED, True),
    "closes": (OK + LENGTH + b"Connection: keep-alive, Close\r\n", 200, 5, False),
    "another connection word": (OK + LENGTH + b"Connection: x\r\n", 200, 5, True),
    "no content": (b"HTTP/1.1 204 No Content\r\n", 204, 0, True),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\n" + LENGTH, 304, 0, True),
    "an upgrade is offered": (OK + b"Upgrade: h2c\r\nConnection: Upgrade\r\n" + LENGTH, 200, 5, True),
    "101": (b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n", 101, 0, True),
    "101 without fields": (b"HTTP/1.1 101 Go\r\n", 101, 0, True),
    "after 100": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + LENGTH, 200, 5, True),
    "a large status": (b"HTTP/1.1 999 What\r\n" + LENGTH, 999, 5, True),
}


@pytest.mark.parametrize("name", ALIKE)
def test_head_is_parsed_as_by_http_client(name: str) -> None:
    start, status, framing, keep_alive = ALIKE[name]
    data = start + (b"\n" if name == "bare line feeds" else b"\r\n")
    reference = by_http_client(data)
    for pieces in (None, 1, 7):
        head, used = parse(data + b"HTTP/1.1", pieces)
        assert head is not None
        assert used == len(data)
        assert (head.status, head.framing, head.keep_alive) == (status, framing, keep_alive)
        assert (head.status, head.reason) == (reference.status, reference.reason)
    assert parse(data[:-1])[0] is None
    length = UNTIL_CLOSE if reference.length is None else reference.length
    assert (CHUNKED if reference.chunked else length, not reference.will_close) == (framing, keep_alive)


def test_field_is_found_whatever_its_case_and_folding() -> None:
    head, _ = parse(OK + b"X-A: 1\r\nx-b:\t2 \r\n 3\r\nx-A: 4\r\n\r\n")
    assert head is not None
    assert (head.get("x-a"), head.get("x-b").split(), head.get("x-c")) == ("1", ["2", "3"], "")


REFUSED: dict[str, bytes] = {
    "two lengths": OK + LENGTH * 2,  # RFC 9112, section 6.3, allows to refuse even equal ones
    "a list of lengths": OK + b"Content-Length: 5, 5\r\n",
    "a sign": OK + b"Content-Length: +5\r\n",
    "a negative length": OK + b"Content-Length: -5\r\n",
    "an empty length": OK + b"Content-Length:\r\n",
    "compression of the transfer": OK + b"Transfer-Encoding: gzip, chunked\r\n",
    "chunks before compression": OK + b"Transfer-Encoding: chunked, gzip\r\n",
    "a space after a name": OK + b"X : y\r\n" + LENGTH,
    "a line without a colon": OK + b"no colon\r\n" + LENGTH,
    "an empty name": OK + b": y\r\n" + LENGTH,
    "a name that is no token": OK + b'X"y: z\r\n' + LENGTH,
    "a carriage return in a value": OK + b"X: y\rz\r\n" + LENGTH,
    "a carriage return in the reason": b"HTTP/1.1 200 O\rK\r\n" + LENGTH,
    "two spaces before the status": b"HTTP/1.1  200 OK\r\n" + LENGTH,
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n" + LENGTH,
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n" + LENGTH,
}
"""Malformed heads that http.client parses, at the cost of ignoring a line or everything after it."""


@pytest.mark.parametrize("name", REFUSED)
def test_malformed_head_that_http_client_accepts_is_refused(name: str) -> None:
    by_http_client(REFUSED[name] + b"\r\n")
    with pytest.raises(ProtocolError):
        parse(REFUSED[name] + b"\r\n")


ACCEPTED: dict[str, bytes] = {
    "a blank line before": b"\r\n" + OK + LENGTH,
    "after 103": b"HTTP/1.1 103 Hints\r\nContent-Length: 9\r\nConnection: close\r\n\r\n" + OK + LENGTH,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_valid_head_that_http_client_does_not_read_is_parsed(name: str) -> None:
    data = ACCEPTED[name] + b"\r\n"
    head, used = parse(data + b"x")
    assert head is not None
    assert (head.status, head.framing, used) == (200, 5, len(data))
    with contextlib.suppress(HTTPException):
        assert by_http_client(data).status != 200


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/2.0 200 OK\r\n",
        b"http/1.1 200 OK\r\n",
        b"ICY 200 OK\r\n",
        b"HTTP/1.1 000 Zero\r\n",
        b"HTTP/1.1 99 Low\r\n",
        b"HTTP/1.1 1000 High\r\n",
        b"<html>\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46\n",
    ],
)
def test_other_protocols_are_refused_by_both_parsers(start: bytes) -> None:
    with pytest.raises(HTTPException):
        by_http_client(start + LENGTH + b"\r\n")
    with pytest.raises(ProtocolError):
        parse(start + LENGTH + b"\r\n")


def test_408_closes_the_connection_even_without_a_connection_field() -> None:
    head, _ = parse(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    assert head is not None
    assert not head.keep_alive


def test_number_of_lines_is_limited() -> None:
    most = OK + b"X: y\r\n" * (MAX_HEAD_LINES - 2)
    head, _ = parse(most + b"\r\n")
    assert head is not None
    for excessive in (
        most + b"X: y\r\n\r\n",
        b"\r\n" * MAX_HEAD_LINES + OK,
        OK + b"X: y\r\n" + b" z\r\n" * MAX_HEAD_LINES,
    ):
        with pytest.raises(ProtocolError, match="lines"):
            parse(excessive)
