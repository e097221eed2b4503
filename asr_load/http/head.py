"""Heads of answers: http.client's, with bounds; and the plain one that streams have, which a look is enough for."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, IncompleteRead
from http.client import HTTPResponse as Head
from typing import Any

from asr_load.http.head_file import HeadFile
from asr_load.stream.chunked import HEX_DIGITS, MAX_LINE
from asr_load.stream.limits import MAX_HEAD_BYTES, MAX_INTERIM, MAX_LENGTH_DIGITS


def read_head(file: HeadFile, *, plain: bool) -> FinalHead | StreamHead:
    """The head of the answer to a POST; `plain`: http.client's in any case. Raises Failure and HTTPException."""
    known = None if plain else stream_head(file.peek())
    if known is not None:
        file.skip(known[1])
        return known[0]
    head = FinalHead(file, method="POST")  # type: ignore[arg-type]
    head.begin()
    return head


class FinalHead(Head):
    """The head of the answer itself: what comes before it (1xx) is passed over, as RFC 9110, section 15.2, asks. Only
    101 is none that another follows."""

    _heads = 0

    def begin(self) -> None:
        file, bounded = self.fp, _BoundedLines(self.fp)
        self.fp: Any = bounded
        try:
            super().begin()
            while self.status // 100 == 1 and self.status != HTTPStatus.SWITCHING_PROTOCOLS:
                self.headers: Any = None  # it has not begun
                super().begin()
        finally:
            if self.fp is bounded:  # no body is left to be read, else
                self.fp = file
        if len(self.headers.get("content-length", "").strip()) > MAX_LENGTH_DIGITS:
            raise HTTPException(f"a content-length of more than {MAX_LENGTH_DIGITS} digits")
        if self.status == HTTPStatus.REQUEST_TIMEOUT:
            self.will_close = True  # whether it says so or not: RFC 9110, section 15.5.9

    def _read_status(self) -> tuple[str, int, str]:
        self._heads += 1  # http.client passes over any number of 100 by itself
        if self._heads > MAX_INTERIM + 1:
            raise HTTPException(f"more than {MAX_INTERIM} interim answers")
        found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
        return found

    def _read_next_chunk_size(self) -> int:
        """http.client takes a size of any length, and what is none for the end."""
        line = self.fp.readline(MAX_LINE + 1)
        digits = line.partition(b";")[0].strip(b" \t\r\n")
        if not line.endswith(b"\n") and len(line) <= MAX_LINE:
            raise IncompleteRead(b"")
        if not line.endswith(b"\n") or not 0 < len(digits) <= MAX_LENGTH_DIGITS or digits.strip(HEX_DIGITS):
            raise HTTPException("the body is not chunked as HTTP is")
        return int(digits, 16)

    def _read_and_discard_trailer(self) -> None:
        file, self.fp = self.fp, _BoundedLines(self.fp)
        try:
            super()._read_and_discard_trailer()  # type: ignore[misc]
        finally:
            self.fp = file


class _BoundedLines:
    """A file whose lines are MAX_HEAD_BYTES together, at most: http.client bounds each line alone."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, MAX_HEAD_BYTES

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._file.readline(limit)
        self._left -= len(line)
        if self._left < 0:
            raise HTTPException(f"a head of more than {MAX_HEAD_BYTES} bytes")
        return line


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
