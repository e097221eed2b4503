"""A request on a connection that is kept: without the layers of requests and urllib3.

They are three quarters of what a request costs its client, and nothing that they decide changes from one of a user's
requests to the next: no proxy, no TLS, the same address. So the first request goes through them and leaves its
connection; the next ones are written to it as they are. What is not a stream goes back to requests to be read.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from http.client import HTTPException
from http.client import HTTPResponse as Head
from typing import Any

from requests import PreparedRequest, Response, Session
from requests.cookies import MockRequest, MockResponse
from urllib3 import HTTPResponse
from urllib3.exceptions import ProtocolError, ReadTimeoutError
from urllib3.util import parse_url

from asr_load.http.connection import Connection, FinalHead, UserConnection
from asr_load.http.socket_reader import HeadFile
from asr_load.stream.limits import MAX_LENGTH_DIGITS


def connection_for(client: Session, user_connection: UserConnection, prepared: PreparedRequest) -> Connection | None:
    """The connection that this request can be written to; None where requests must send it: the first one, one through
    a proxy, one whose answer a hook waits for, and all that TLS or a plain reader is used for."""
    kept = user_connection.connection
    if kept is None or kept.sock is None or kept.proxy is not None or user_connection.reader_factory is None:
        return None
    if client.cookies or client.hooks["response"] or prepared.hooks["response"]:
        return None
    # A user may speak to several hosts; and whatever came while nothing was asked is no answer to what is asked now.
    return kept if user_connection.address == (kept.host, kept.port) and kept.is_connected else None


def address_of(url: str) -> tuple[str, int] | None:
    """The host and port of a URL; None where a kept connection can be none to it, which is without TLS."""
    parts = parse_url(url)
    return (parts.host.strip("[]"), parts.port or 80) if parts.scheme == "http" and parts.host else None


def post(
    client: Session,
    connection: Connection,
    user_connection: UserConnection,
    prepared: PreparedRequest,
    own: dict[str, str],
) -> Head | StreamHead:
    """Send a request, with headers of its own, and read the head of its answer. Raises what urllib3 raises."""
    if not user_connection.head:
        user_connection.head = _head(connection, prepared, own)
    lines = [f"{name}: {value}\r\n" for name, value in own.items()]
    head = "".join([user_connection.head, *lines, "\r\n"])
    body: Any = prepared.body
    file = user_connection.begin(connection)
    assert file is not None
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who refuses a body may have said why
            _send_all(connection, [head.encode("latin-1"), *body])
        user_connection.uploaded = time.perf_counter_ns()
        reply = _head_of(file, user_connection)
    except (OSError, HTTPException) as error:
        raise ProtocolError("Connection aborted.", error) from error
    if isinstance(reply, Head) and "set-cookie" in reply.headers:
        # As requests does.
        cookies: Any = client.cookies
        cookies.extract_cookies(MockResponse(reply.headers), MockRequest(prepared))
    return reply


def _head(connection: Connection, prepared: PreparedRequest, own: dict[str, str]) -> str:
    """The part of a request's head that the next one has too."""
    others = {name.lower() for name in own}
    lines = [f"POST {prepared.path_url} HTTP/1.1", f"Host: {_address(connection)}"]
    lines += [f"{name}: {value}" for name, value in prepared.headers.items() if name.lower() not in others]  # type: ignore[str-bytes-safe]
    return "\r\n".join([*lines, ""])


@dataclass
class StreamHead:
    """The head of an answer that is a stream: what http.client's own says of it."""

    chunked: bool
    length: int | None
    will_close: bool
    status: int = 200
    closed: bool = False

    def close(self) -> None:
        self.closed = True

    def isclosed(self) -> bool:
        return self.closed


def stream_head(data: bytes) -> tuple[StreamHead, int] | None:
    """The head that these bytes begin with, and its length in bytes; None unless it is all there, and as plain as the
    head of a stream should be. http.client reads any other, in a tenth of a millisecond that few need."""
    end = data.find(b"\r\n\r\n")
    line, *fields = data[: max(end, 0)].split(b"\r\n")
    if not line.startswith(b"HTTP/1.1 200"):
        return None
    head = StreamHead(chunked=False, length=None, will_close=False)
    streamed = False
    for field in fields:
        name, colon, value = field.partition(b":")
        match name.lower(), value.strip().lower():
            case b"content-type", kind:
                streamed = kind.partition(b";")[0] == b"text/event-stream"
            case b"transfer-encoding", b"chunked" if head.length is None and not head.chunked:
                head.chunked = True
            case b"content-length", size if (
                size.isdigit() and len(size) <= MAX_LENGTH_DIGITS and head.length is None and not head.chunked
            ):
                head.length = int(size)
            case b"connection", words:
                head.will_close = b"close" in words
            case b"transfer-encoding" | b"content-length" | b"content-encoding" | b"set-cookie", _:
                return None
            case word, _ if not colon or not word or word[:1] in b" \t":
                return None
    head.will_close |= not head.chunked and head.length is None
    return (head, end + 4) if streamed else None


def _head_of(file: HeadFile, user_connection: UserConnection) -> Head | StreamHead:
    try:
        known = stream_head(file.peek())
    except TimeoutError as error:
        raise ReadTimeoutError(None, "", "nothing came") from error  # type: ignore[arg-type]
    if known is not None:
        file.skip(known[1])
        user_connection.headers = file.read_at
        return known[0]
    reply = FinalHead(file, method="POST")
    try:
        reply.begin()
    except TimeoutError as error:
        raise ReadTimeoutError(None, "", "nothing came") from error  # type: ignore[arg-type]
    user_connection.headers = file.read_at
    return reply


def as_response(client: Session, prepared: PreparedRequest, head: Head) -> Response:
    """An answer that is no stream, as requests would give it."""
    raw = HTTPResponse(
        head,
        headers=dict(head.headers),
        status=head.status,
        reason=head.reason,
        preload_content=False,
        decode_content=False,
        original_response=head,
        request_method="POST",
    )
    assert prepared.url is not None
    adapter: Any = client.get_adapter(prepared.url)
    response: Response = adapter.build_response(prepared, raw)
    return response


def _address(connection: Connection) -> str:
    host = f"[{connection.host}]" if ":" in connection.host else connection.host
    return host if connection.port == connection.default_port else f"{host}:{connection.port}"


def _send_all(connection: Connection, buffers: list[bytes | memoryview]) -> None:
    """All of it in one call where the kernel takes it, without a copy."""
    sock = connection.sock
    taken = sock.sendmsg(buffers)
    for buffer in buffers:
        if taken < len(buffer):
            sock.sendall(memoryview(buffer)[taken:])
        taken = max(0, taken - len(buffer))
