"""Heads of responses, parsed like http.client or left to it."""

from __future__ import annotations

import io
from http.client import HTTPResponse

import pytest

from asr_load.http.head import stream_head

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
