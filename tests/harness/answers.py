"""Parts of HTTP responses as bytes, and the parametrization over all readers."""

from __future__ import annotations

import pytest

from harness.peer import WAYS

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


each_reader = pytest.mark.parametrize("reader", WAYS)


def sized(body: bytes, head: bytes = EVENTS) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
