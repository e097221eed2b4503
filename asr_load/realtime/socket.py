"""A WebSocket whose frames have the stamps of their reads: the protocol of `websockets` without its I/O."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

import gevent
from gevent.event import Event as Wake
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidMessage, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import WebSocketURI

from asr_load.http.connection import Connection
from asr_load.http.failure import LAST_LOOK_S, Failure, failure
from asr_load.http.loop import let_others_run
from asr_load.http.socket_reader import ReaderFactory
from asr_load.stream.cause import BUSY_CODES, Cause, cause_of
from asr_load.stream.limits import MAX_EVENT_BYTES, MAX_EVENTS, MAX_STREAM_BYTES
from asr_load.stream.reader import ProtocolError, http_error_message
from asr_load.text import SILENT

SLICE_BYTES = 512
"""Bytes to pass to the protocol at once: at most 256 empty frames."""

TURN_STEPS = 1024
"""Frames and slices after which a call of `listen` returns, which take a few milliseconds."""

CLOSE_S = 0.5
"""Seconds to wait for the server's close frame."""

NO_ROUTE = "the server has no realtime endpoint, or its model does not support it: the handshake returned"
NO_FRAME = 1006
"""The code of a close without a close frame (RFC 6455, 7.1.5)."""


class Socket:
    """A WebSocket connection, from its handshake to its end. `messages` holds complete texts with their stamps in
    perf_counter nanoseconds."""

    def __init__(self, connection: Connection, factory: ReaderFactory, url: str) -> None:
        parts = urlsplit(url)
        self.messages: deque[tuple[bytes, int]] = deque()
        self.close_code: int | None = None
        """The server's close code; None while open."""
        self.close_reason = ""
        self.retry_after = ""
        """The Retry-After header, if a busy server refused the handshake."""
        self._connection = connection
        uri = WebSocketURI(
            secure=parts.scheme == "wss",
            host=connection.place.host,
            port=connection.place.port,
            path=parts.path,
            query=parts.query,
            username=None,
            password=None,
        )
        self._protocol = ClientProtocol(uri, max_size=MAX_EVENT_BYTES, logger=SILENT)
        self._parts: list[bytes] = []
        self._frames = self._bytes = 0
        """Frames and bytes received for this utterance, including control frames and the handshake."""
        self._slices = self._received()
        self.has_more = False
        """Whether the last call of `listen` left data unparsed."""
        self._must_yield = False
        """Whether others must run before the next parsing."""
        self._wake = Wake()
        self._reader, self._close_reader = connection.reads(factory)(self._wake)
        self._pending: deque[bytes | memoryview] = deque()
        self._blocked_s = self._blocked_at = 0.0
        assert connection.sock is not None
        connection.sock.settimeout(0)
        self._sock = connection.sock
        self._writable = gevent.get_hub().loop.io(self._sock.fileno(), 2)
        self._is_closed = False

    def shake_hands(self, headers: Mapping[str, str], until: float) -> None:
        """Request the upgrade, and wait for it until a time in perf_counter seconds. Raises Failure, whose outcome is
        ws_403 or similar if the server refuses."""
        request = self._protocol.connect()
        for name, value in headers.items():
            request.headers[name] = value
        self._protocol.send_request(request)
        self._flush()
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            if self.close_code is not None:
                raise Failure("cut", "the connection ended before the handshake's response")
            if time.perf_counter() > until:
                raise Failure("connect", "the server did not respond to the WebSocket handshake", Cause.UNREACHABLE)
            self.listen(until)
        refused = self._protocol.handshake_exc
        if isinstance(refused, InvalidStatus):
            response = refused.response
            message = http_error_message(bytes(response.body or b"")) or response.reason_phrase
            status = response.status_code
            if status in BUSY_CODES:
                self.retry_after = ", ".join(response.headers.get_all("Retry-After"))
            if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
                message = f"{NO_ROUTE} {status} ({message})" if message else f"{NO_ROUTE} {status}"
            raise Failure(f"ws_{status}", message or "no message", cause_of(status, None, message))
        if isinstance(refused, InvalidMessage):
            raise Failure("protocol", "the handshake's response is not HTTP")
        if refused is not None:
            raise Failure("protocol", f"the handshake's response is not an upgrade: {refused}")

    def send(self, text: bytes) -> None:
        """Send a text as far as the socket accepts it now; `listen` sends the rest."""
        if self._protocol.state is State.OPEN:  # otherwise the end has not been read yet
            self._protocol.send_text(text)
            self._flush()

    @property
    def blocked_s(self) -> float:
        """Seconds in which the socket accepted no data, until now."""
        return self._blocked_s + (time.perf_counter() - self._blocked_at if self._blocked_at else 0.0)

    @property
    def is_open(self) -> bool:
        return self.close_code is None

    def wake(self) -> None:
        """Let `listen` return."""
        self._wake.set()

    def begin_utterance(self) -> None:
        """Reset the counts of frames and bytes, which are limited per utterance."""
        self._frames = self._bytes = 0

    def listen(self, until: float | None) -> None:
        """Parse the data that has arrived, or a part of it if there is much. Raises Failure and ProtocolError.

        Without data, waits for some, or for `wake`, until a time in perf_counter seconds. None: no limit; 0: neither
        wait nor let others run.
        """
        self._wake.clear()
        if self._must_yield and until != 0.0:
            let_others_run()  # a server that always has more data must not block the loop
        self._must_yield = self._parse_some()
        if self._must_yield or not self.is_open:
            return
        self._flush()
        wait = None if until is None else until - time.perf_counter()
        if (wait is None or wait > 0) and self._wake.wait(wait):
            self._parse_some()
            self._must_yield = self.has_more

    def wait_for_message(self, until: float) -> bool:
        """Wait for a message or the end, until a time in perf_counter seconds or a last look after it. Returns whether
        one of them has arrived. Raises Failure and ProtocolError."""
        return self._wait(until) or self._wait(time.perf_counter() + LAST_LOOK_S)

    def _wait(self, until: float) -> bool:
        while self.is_open and not self.messages and time.perf_counter() < until:
            self.listen(until)
        return not self.is_open or bool(self.messages)

    def _parse_some(self) -> bool:
        """Parse data that has arrived, at most TURN_STEPS. Returns whether there was any."""
        ended, steps = self._reader.status != "running", 0  # read it before the data: more may arrive before the end
        for data, at in self._slices:
            steps += 1 + self._receive(data, at)
            if steps >= TURN_STEPS:
                self.has_more = True
                return True
        self._slices, self.has_more = self._received(), False
        if ended and not steps and self.is_open:
            self._note_end()
        return steps > 0

    def _received(self) -> Iterator[tuple[bytes, int]]:
        """Yield the data that has arrived, in slices with the stamps of their reads."""
        while (read := self._reader.take())[0]:
            (data, stamps, ends), start = read, 0
            for at, end in zip(stamps, ends, strict=True):
                for first in range(start, end, SLICE_BYTES):
                    yield data[first : min(first + SLICE_BYTES, end)], at
                start = end

    def _receive(self, data: bytes, at: int) -> int:
        """Parse a slice. Returns the number of completed frames."""
        self._protocol.receive_data(data)
        events = self._protocol.events_received()
        for event in events:
            self._handle(event, at)
        self._flush()
        if self._protocol.parser_exc is not None and self.is_open:
            raise ProtocolError(f"malformed WebSocket frames: {self._protocol.parser_exc}")
        self._frames += len(events)
        self._bytes += len(data)
        if self._frames > MAX_EVENTS or self._bytes > MAX_STREAM_BYTES:
            raise ProtocolError(f"more than {MAX_EVENTS} frames or {MAX_STREAM_BYTES} bytes for one utterance")
        return len(events)

    def _handle(self, event: object, at: int) -> None:
        if isinstance(event, Frame):
            match event.opcode:
                case Opcode.TEXT | Opcode.CONT:
                    self._parts.append(bytes(event.data))
                    if event.fin:
                        self.messages.append((b"".join(self._parts), at))
                        self._parts.clear()
                case Opcode.BINARY:
                    raise ProtocolError("the server sent a binary frame, but events are text")
                case Opcode.CLOSE:
                    received = self._protocol.close_rcvd
                    self.close_code = int(received.code) if received is not None else NO_FRAME
                    self.close_reason = received.reason if received is not None else ""

    def _note_end(self) -> None:
        if self._reader.status == "failed":
            reason = failure(self._reader.failure)
            if reason.outcome == "client":
                raise reason
        if self._reader.status == "too long":
            raise ProtocolError("the server sent too much data for a session")
        self.close_code = NO_FRAME

    def _flush(self) -> None:
        """Send pending data as far as the socket accepts it now."""
        tls = self._connection.tls
        if data := b"".join(self._protocol.data_to_send()):
            self._pending.append(data if tls is None else tls.encrypt(data))
        try:
            while self._pending:
                piece = self._pending[0]
                count = self._sock.send(piece)
                if count < len(piece):
                    self._pending[0] = memoryview(piece)[count:]
                else:
                    self._pending.popleft()
        except BlockingIOError:
            if not self._blocked_at:
                self._blocked_at = time.perf_counter()
                self._writable.start(self._wake.set)
            return
        except OSError:
            self._pending.clear()  # the other side has closed; read what it sent before
        if self._blocked_at:
            self._blocked_s, self._blocked_at = self.blocked_s, 0.0
            self._writable.stop()

    def close(self) -> None:
        """Send a close frame, wait a moment for the server's, and close the connection. May be called more than
        once."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(Failure, ProtocolError):
            try:
                if self.is_open and self._protocol.state is State.OPEN:
                    self._protocol.send_close(1000)
                    self._flush()
                    until = time.perf_counter() + CLOSE_S
                    while self.is_open and time.perf_counter() < until:
                        self.listen(until)
            finally:
                self.drop()

    def drop(self) -> None:
        """Close the connection without a close frame."""
        self._is_closed = True
        self._slices = iter(())  # break the reference cycle, so that this object does not outlive its session
        self._writable.stop()
        self._writable.close()
        self._close_reader()
        self._connection.close()
