"""What a reader of sockets collects of one answer, and what whoever waits for it asks of it."""

from __future__ import annotations

from typing import Protocol

from asr_load.stream.chunked import Chunked
from asr_load.stream.limits import MAX_BYTES, MAX_READS, MAX_WIRE_BYTES

TAKE_BYTES = 65536
"""That `take` gives at once, if there are as many, and the rest of a read: as in _socket_reader.c."""

CHUNKED, UNTIL_CLOSE = -1, -2
"""Framings of a body; any other is its length in bytes."""


class Owner(Protocol):
    """Who waits, as an Event."""

    def set(self) -> None:
        """What was waited for has come."""


class SocketReader(Protocol):
    """What comes on one socket, from a moment on. Stamps are `time.perf_counter_ns()`.

    It reads a head, to which all belongs until `begin_body` says where the body begins and how it ends; then a body.
    It is running until an end has come, by its status: complete, with the end of the body; cut, closed before; broken:
    not HTTP's chunks; too long; failed: see `failure`.
    """

    @property
    def status(self) -> str: ...

    @property
    def failure(self) -> OSError:
        """Why, where the status is failed."""

    @property
    def last(self) -> int:
        """The stamp of the last read; 0 before the first."""

    @property
    def surplus(self) -> bool:
        """Whether bytes came after the end: the connection cannot be used again."""

    def want(self, beyond: int) -> bool:
        """Set the owner when the head has more than so many bytes (-1: when the answer has ended); True if that is so
        already, and nothing will be set."""

    def head(self, start: int) -> bytes:
        """The bytes from a position on, before `begin_body`."""

    def stamp(self, position: int) -> int:
        """The stamp of the read that brought the head up to a position."""

    def begin_body(self, start: int, framing: int) -> None:
        """Say where the body begins and how it is framed."""

    def collected(self) -> tuple[bytes, list[int], list[int]]:
        """The body so far without its framing, and for each read its stamp and where in the body it ended."""

    def take(self) -> tuple[bytes, list[int], list[int]]:
        """In place of all the others, for a stream that is no HTTP: what has come and was not taken, or the most that
        is taken at once. Sets the owner when more comes."""

    def close(self) -> None:
        """Read no more. The connection itself stays open."""


class FedReader(SocketReader, Protocol):
    """One that reads nothing by itself."""

    def feed(self, data: bytes, at: int) -> None:
        """Take bytes that were read at a time."""

    def end(self) -> None:
        """Take the other side's end."""

    def fail(self, error: OSError) -> None:
        """Take what ended it otherwise."""


class Collector:
    """A FedReader in Python."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._raw = bytearray()
        self._raw_marks: list[tuple[int, int]] = []
        self._taken = 0
        self._body: list[bytes] = []
        self._size = self._wire = 0
        self._stamps: list[int] = []
        self._ends: list[int] = []
        self._framing: int | Chunked | None = None
        self._waits: int | None = None
        self.status, self.last, self.surplus = "running", 0, False
        self.failure = OSError()

    def want(self, beyond: int) -> bool:
        come = self.status != "running" or 0 <= beyond < len(self._raw)
        self._waits = None if come else beyond
        return come

    def head(self, start: int) -> bytes:
        return bytes(self._raw[start:])

    def stamp(self, position: int) -> int:
        return next((at for at, end in self._raw_marks if position <= end), self.last)

    def begin_body(self, start: int, framing: int) -> None:
        self._framing = Chunked() if framing == CHUNKED else framing
        before, self.status = self.status, "running"
        if framing == 0:
            self.status = "complete"
        for at, end in self._raw_marks:
            if end > start:
                self._take_body(bytes(self._raw[start:end]), at)
                start = end
        if self.status == "running" and before != "running":
            self.status = "complete" if before == "cut" and framing == UNTIL_CLOSE else before
        if self.status != "running":
            self._stop()

    def collected(self) -> tuple[bytes, list[int], list[int]]:
        return b"".join(self._body), self._stamps, self._ends

    def take(self) -> tuple[bytes, list[int], list[int]]:
        before, stamps, ends = self._taken, [], []
        for at, end in self._raw_marks:
            stamps.append(at)
            ends.append(end - before)
            if ends[-1] >= TAKE_BYTES:
                break
        size = ends[-1] if ends else 0
        data = bytes(self._raw[:size])
        del self._raw[:size], self._raw_marks[: len(ends)]
        self._taken += size
        self.want(0)
        return data, stamps, ends

    def feed(self, data: bytes, at: int) -> None:
        self.last = at
        self._wire += len(data)
        if self._framing is not None:
            self._take_body(data, at)
        else:
            self._raw += data
            self._raw_marks.append((at, self._taken + len(self._raw)))
        if self.status == "running" and (self._wire > MAX_WIRE_BYTES or len(self._raw) > MAX_BYTES):
            self.status = "too long"
        self._tell()

    def end(self) -> None:
        if self.status == "running":
            self.status = "complete" if self._framing == UNTIL_CLOSE else "cut"
        self._tell()

    def fail(self, error: OSError) -> None:
        if self.status == "running":
            self.status, self.failure = "failed", error
        self._tell()

    def _tell(self) -> None:
        ended = self.status != "running"
        if ended:
            self._stop()
        if self._waits is not None and (ended or 0 <= self._waits < len(self._raw)):
            self._waits = None
            self._owner.set()

    def close(self) -> None:
        self._stop()

    def _stop(self) -> None:
        """Read no more: the end has come. May be called again."""

    def _take_body(self, data: bytes, at: int) -> None:
        if self.status != "running":
            self.surplus = True
            return
        framing = self._framing
        if isinstance(framing, Chunked):
            payload = framing.take(data)
            if framing.ended or framing.broken:
                self.status, self.surplus = "complete" if framing.ended else "broken", framing.surplus
        elif framing == UNTIL_CLOSE:
            payload = data
        else:
            assert framing is not None
            payload, self.surplus = data[:framing], len(data) > framing
            self._framing = framing = framing - len(payload)
            if not framing:
                self.status = "complete"
        if payload:
            self._body.append(payload)
            self._size += len(payload)
            self._stamps.append(at)
            self._ends.append(self._size)
            if self._size > MAX_BYTES or len(self._stamps) > MAX_READS:
                self.status = "too long"
