"""The file from which http.client reads a response, for every kind of socket reader."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

from gevent.event import Event

from asr_load.http.collector import SocketReader
from asr_load.http.failure import LAST_LOOK_S, STALLED, Failure, failure
from asr_load.stream.limits import MAX_BYTES, MAX_READS

READ_BYTES = 65536

PEEK_BYTES = 8192
"""Maximum length of a peek: enough for a line of a head, or for one read of a body."""


Reads = Callable[[Event], tuple[SocketReader, Callable[[], None]]]
"""Makes a reader that sets the event, and the function that closes it."""


def closable(reader: SocketReader) -> tuple[SocketReader, Callable[[], None]]:
    return reader, reader.close


class HeadFile(io.RawIOBase):
    """The head of a response, and its body unless a reader collects it.

    Raises Failure if no data arrives for `stall` seconds or the connection breaks.
    """

    def __init__(self, reads: Reads, stall: float) -> None:
        self._come = Event()
        self.reader, self._close = reads(self._come)
        self._position = 0
        self._in_body = False
        self._ahead, self._ahead_at = b"", 0
        """The bytes last taken from the reader, and their position in the response, so that each is taken once."""
        self._stall = stall
        self._began = time.perf_counter_ns()

    def makefile(self, _: str) -> HeadFile:
        """Return itself: http.client calls this on a socket."""
        return self

    def readable(self) -> bool:
        return True

    def peek(self, _: int = 0) -> bytes:
        """The next bytes, at most PEEK_BYTES, without consuming them; waits for data or the end."""
        at = self._position - self._ahead_at
        if at < len(self._ahead):
            return self._ahead[at : at + PEEK_BYTES]
        data = self._take_ahead()
        if data:
            return data
        self._come.clear()
        if not self.reader.want(self._position) and not (self._come.wait(self._stall) or self._come.wait(LAST_LOOK_S)):
            raise Failure("stalled", STALLED)
        data = self._take_ahead()
        if not data and self.reader.status == "failed":
            raise failure(self.reader.failure)
        return data

    def _take_ahead(self) -> bytes:
        self._ahead, self._ahead_at = self.reader.head(self._position), self._position
        return self._ahead[:PEEK_BYTES]

    @property
    def has_come(self) -> bool:
        """Whether data or the end has arrived."""
        with contextlib.suppress(Failure):
            return self.reader.want(self._position)
        return False

    def read1(self, size: int = -1) -> bytes:
        """Read the bytes that have arrived, at most `size`."""
        return super().read(READ_BYTES if size < 0 else size) or b""

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, fewer only at the end. http.client takes a short read for the end, but even the line end
        after a chunk may arrive in two packets."""
        if size < 0:
            return self.readall()
        pieces = []
        while size and (data := self.read1(size)):
            pieces.append(data)
            size -= len(data)
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        data = self.peek()[: len(buffer)] if len(buffer) else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def skip(self, size: int) -> None:
        """Consume `size` bytes that were peeked."""
        self._position += size

    @property
    def read_at(self) -> int:
        """The stamp of the read that brought the last consumed byte."""
        return self.reader.stamp(self._position)

    @property
    def surplus(self) -> bool:
        """Whether more bytes arrived than were consumed, or than the body has."""
        return self.reader.surplus or (not self._in_body and bool(self.reader.head(self._position)))

    def begin_body(self, framing: int) -> None:
        """Let the reader collect the following bytes as the body."""
        self._in_body = True
        self.reader.begin_body(self._position, framing)

    def wait_for_end(self, at_most: float) -> bool:
        """Wait up to `at_most` seconds for the end of the body. Returns whether it was reached. Raises Failure if the
        body is cut off, malformed, too long or stalled."""
        reader = self.reader
        self._come.clear()
        if not reader.want(-1):
            last = reader.last
            idle = (time.perf_counter_ns() - (last or self._began)) / 1e9
            if idle < self._stall:
                self._come.wait(min(at_most, self._stall - idle))
            elif not self._come.wait(LAST_LOOK_S) and reader.last == last:
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

    def close(self) -> None:
        if not self.closed:
            self._close()
        super().close()
