"""The file that http.client reads an answer from, whatever reads the socket."""

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
"""That are looked at together: a line of a head, or as much as a plain body's read takes at once."""


Reads = Callable[[Event], tuple[SocketReader, Callable[[], None]]]
"""Makes a reader, with the event that it sets, and what closes it."""


def closable(reader: SocketReader) -> tuple[SocketReader, Callable[[], None]]:
    return reader, reader.close


class HeadFile(io.RawIOBase):
    """An answer's head, and any body that is not collected.

    Raises Failure when nothing comes for `stall` seconds, and where the connection breaks.
    """

    def __init__(self, reads: Reads, stall: float) -> None:
        self._come = Event()
        self.reader, self._close = reads(self._come)
        self._position = 0
        self._in_body = False
        self._ahead, self._ahead_at = b"", 0
        """What was last taken from the reader, and where in the answer it begins: each byte is taken once."""
        self._stall = stall
        self._began = time.perf_counter_ns()

    def makefile(self, _: str) -> HeadFile:
        """Itself: http.client asks a socket for its file."""
        return self

    def readable(self) -> bool:
        return True

    def peek(self, _: int = 0) -> bytes:
        """What is there from here on, PEEK_BYTES at most; waits until there is something, or the end."""
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
        """Whether anything is there to be read, or the end."""
        with contextlib.suppress(Failure):
            return self.reader.want(self._position)
        return False

    def read1(self, size: int = -1) -> bytes:
        """As much as is there, `size` bytes at most."""
        return super().read(READ_BYTES if size < 0 else size) or b""

    def read(self, size: int = -1) -> bytes:
        """`size` bytes, fewer only at the end. http.client takes fewer for the end, though they may come in two
        packets, as the line end behind a chunk may."""
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
        """Take so many bytes that were seen."""
        self._position += size

    @property
    def read_at(self) -> int:
        """The stamp of the read that brought the last byte that was taken."""
        return self.reader.stamp(self._position)

    @property
    def surplus(self) -> bool:
        """Whether more came than was taken, or than the body."""
        return self.reader.surplus or (not self._in_body and bool(self.reader.head(self._position)))

    def begin_body(self, framing: int) -> None:
        """Collect what follows as a body."""
        self._in_body = True
        self.reader.begin_body(self._position, framing)

    def wait_for_end(self, at_most: float) -> bool:
        """Wait for the end of the body, so many seconds at most, and return whether it has come. Raises Failure where
        the body ends otherwise or stalls."""
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
                raise Failure("protocol", "the body is not chunked as HTTP is")
            case "too long":
                too_long = f"an answer of more than {MAX_BYTES} bytes, or in more than {MAX_READS} reads"
                raise Failure("protocol", too_long)
            case "failed":
                raise failure(reader.failure)
        return reader.status == "complete"

    def close(self) -> None:
        if not self.closed:
            self._close()
        super().close()
