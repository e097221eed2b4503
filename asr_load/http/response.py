"""The response to one request, as it arrives: its head, and its body, which a socket reader collects."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from gevent.event import Event

from asr_load.http.collector import Owner, SocketReader
from asr_load.http.failure import LAST_LOOK_S, STALLED, Failure, failure
from asr_load.http.head import Head, HeadParser
from asr_load.stream.coding import Decoder
from asr_load.stream.limits import MAX_BYTES, MAX_READS

CLOSED = "Remote end closed connection without response"

LOOK_S = 0.1
"""Seconds between looks at the length of a body that has a limit."""

Reads = Callable[[Owner], tuple[SocketReader, Callable[[], None]]]
"""Makes a reader that sets its owner, and the function that closes it."""


class Response:
    """Reads a response. Raises Failure if no data arrives for `stall` seconds or the connection breaks."""

    def __init__(self, reads: Reads, stall: float) -> None:
        self._arrival = Event()
        self.reader, self._close = reads(self._arrival)
        self.head = Head()
        """Empty until `read_head` returns."""
        self._position = 0
        """Number of bytes that were parsed."""
        self._in_body = False
        self._stall = stall
        self._began = time.perf_counter_ns()

    def read_head(self) -> None:
        """Wait for the head and parse it. Raises Failure and ProtocolError."""
        parser = HeadParser()
        while parser.head is None:
            self._arrival.clear()
            if not (
                self.reader.want(self._position) or self._arrival.wait(self._stall) or self._arrival.wait(LAST_LOOK_S)
            ):
                raise Failure("stalled", STALLED)
            data = self.reader.head(self._position)
            if not data:
                raise self._head_failure()
            self._position += parser.feed(data)
        self.head = parser.head

    def _head_failure(self) -> Failure:
        if self.reader.status == "failed":
            return failure(self.reader.failure)
        return Failure("protocol", "the response ended within its head") if self._position else Failure("cut", CLOSED)

    @property
    def has_refused(self) -> bool:
        """Whether a response has arrived that refuses the request before it was read completely."""
        status = re.match(rb"HTTP/1\.\d (\d)", self.reader.head(0)) if self.reader.want(0) else None
        return status is not None and status[1] >= b"3"

    @property
    def read_at(self) -> int:
        """The stamp of the read that brought the last byte of the head."""
        return self.reader.stamp(self._position)

    @property
    def surplus(self) -> bool:
        """Whether more bytes arrived than belong to the response."""
        return self.reader.surplus or (not self._in_body and bool(self.reader.head(self._position)))

    @property
    def is_last(self) -> bool:
        """Whether the connection cannot carry another response: this one is incomplete, or the server will close."""
        complete = self._in_body and self.reader.status == "complete"
        return not complete or not self.head.keep_alive

    def begin_body(self) -> None:
        """Let the reader collect the bytes after the head as the body. May be called more than once."""
        if not self._in_body:
            self._in_body = True
            self.reader.begin_body(self._position, self.head.framing)

    def wait_for_end(self, at_most: float) -> bool:
        """Wait up to `at_most` seconds for the end of the body. Returns whether it was reached. Raises Failure if the
        body is cut off, malformed, too long or stalled."""
        reader = self.reader
        self._arrival.clear()
        if not reader.want(-1):
            last = reader.last
            idle = (time.perf_counter_ns() - (last or self._began)) / 1e9
            if idle < self._stall:
                self._arrival.wait(min(at_most, self._stall - idle))
            elif not self._arrival.wait(LAST_LOOK_S) and reader.last == last:
                raise Failure("stalled", STALLED)
        match reader.status:
            case "cut":
                raise Failure("cut", "the body ended early")
            case "broken":
                raise Failure("protocol", "the body has malformed chunks")
            case "too long":
                too_long = f"a response of more than {MAX_BYTES} bytes, or in more than {MAX_READS} reads"
                raise Failure("protocol", too_long)
            case "failed":
                raise failure(reader.failure)
        return reader.status == "complete"

    def wait_for_body(self, at_most: int) -> None:
        """Wait for the end of the body, or for more than `at_most` bytes of it. Raises Failure."""
        self.begin_body()
        while not self.wait_for_end(LOOK_S) and len(self.reader.collected()[0]) <= at_most:
            pass

    def body(self) -> bytes:
        """The body as far as it arrived, decompressed. Raises ProtocolError."""
        coding = self.coding()
        collected = self.reader.collected()
        return (collected if coding is None else coding.take(*collected))[0]

    def coding(self) -> Decoder | None:
        """The decoder of the body's compression; None without one. Raises ProtocolError for an unsupported one."""
        return Decoder.for_coding(self.head.get("content-encoding"))

    def close(self) -> None:
        """Stop reading. May be called more than once."""
        self._close()
