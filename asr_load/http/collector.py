"""The interface of socket readers, and the collector of one response in Python."""

from __future__ import annotations

from typing import Protocol

from asr_load.stream.chunked import Chunked
from asr_load.stream.limits import MAX_BYTES, MAX_READS, MAX_WIRE_BYTES

TAKE_BYTES = 65536
"""Bytes after which `take` returns, with the rest of the last read: as in _socket_reader.c."""

CHUNKED, UNTIL_CLOSE = -1, -2
"""Framings of a body; any other is its length in bytes."""


class Owner(Protocol):
    """The object that waits for a reader, such as an Event."""

    def set(self) -> None:
        """Called when the awaited data has arrived."""


class SocketReader(Protocol):
    """Reads one response from a socket. Stamps are `time.perf_counter_ns()`.

    All bytes belong to the head until `begin_body` defines where the body begins and how it is framed. The status is
    running until the end: complete (the body ended), cut (closed before that), broken (malformed chunks), too long, or
    failed (see `failure`).
    """

    @property
    def status(self) -> str: ...

    @property
    def failure(self) -> OSError:
        """The error, if the status is failed."""

    @property
    def last(self) -> int:
        """The stamp of the last read; 0 before the first."""

    @property
    def surplus(self) -> bool:
        """Whether bytes arrived after the end, so that the connection cannot be reused."""

    def want(self, beyond: int) -> bool:
        """Set the owner when the head has more than `beyond` bytes (-1: when the response has ended). Returns True,
        without setting the owner later, if that is already the case."""

    def head(self, start: int) -> bytes:
        """The bytes from `start` on, before `begin_body`."""

    def stamp(self, position: int) -> int:
        """The stamp of the read that completed the head up to `position`."""

    def begin_body(self, start: int, framing: int) -> None:
        """Set where the body begins and how it is framed."""

    def collected(self) -> tuple[bytes, list[int], list[int]]:
        """The body so far without its framing, and the stamp and the end position in the body of each read."""

    def take(self) -> tuple[bytes, list[int], list[int]]:
        """For streams other than HTTP, instead of the other methods: the bytes that arrived since the last call, up to
        a limit. Sets the owner when more arrive."""

    def close(self) -> None:
        """Stop reading. The connection stays open."""

    def feed(self, data: bytes, at: int) -> None:
        """For a reader without a socket: add bytes that were read at the time `at`."""

    def end(self) -> None:
        """Note that the other side has closed."""

    def fail(self, error: OSError) -> None:
        """Note the error that ended the stream."""


class Collector:
    """A SocketReader in Python, without a socket."""

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
        """Stop reading, because the end was reached. May be called more than once."""

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
