"""Parse the heads of responses: with http.client, with bounds; and quickly, the simple heads of streams."""

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
    """Read the head of the response to a POST; `plain`: always with http.client. Raises Failure and HTTPException."""
    known = None if plain else stream_head(file.peek())
    if known is not None:
        file.skip(known[1])
        return known[0]
    head = FinalHead(file, method="POST")  # type: ignore[arg-type]
    head.begin()
    return head


class FinalHead(Head):
    """The head of the final response. Interim responses (1xx, except 101) are skipped, as RFC 9110, section 15.2,
    requires."""

    _heads = 0

    def begin(self) -> None:
        file, bounded = self.fp, _BoundedLines(self.fp)
        self.fp: Any = bounded
        try:
            super().begin()
            while self.status // 100 == 1 and self.status != HTTPStatus.SWITCHING_PROTOCOLS:
                self.headers: Any = None  # so that http.client begins again
                super().begin()
        finally:
            if self.fp is bounded:  # otherwise there is no body left to read
                self.fp = file
        if len(self.headers.get("content-length", "").strip()) > MAX_LENGTH_DIGITS:
            raise HTTPException(f"a content-length of more than {MAX_LENGTH_DIGITS} digits")
        if self.status == HTTPStatus.REQUEST_TIMEOUT:
            self.will_close = True  # even without a Connection header: RFC 9110, section 15.5.9

    def _read_status(self) -> tuple[str, int, str]:
        self._heads += 1  # http.client itself skips any number of 100s
        if self._heads > MAX_INTERIM + 1:
            raise HTTPException(f"more than {MAX_INTERIM} interim responses")
        found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
        return found

    def _read_next_chunk_size(self) -> int:
        """Check what http.client does not: it accepts sizes of any length, and takes a malformed size for the end."""
        line = self.fp.readline(MAX_LINE + 1)
        digits = line.partition(b";")[0].strip(b" \t\r\n")
        if not line.endswith(b"\n") and len(line) <= MAX_LINE:
            raise IncompleteRead(b"")
        if not line.endswith(b"\n") or not 0 < len(digits) <= MAX_LENGTH_DIGITS or digits.strip(HEX_DIGITS):
            raise HTTPException("the body has malformed chunks")
        return int(digits, 16)

    def _read_and_discard_trailer(self) -> None:
        file, self.fp = self.fp, _BoundedLines(self.fp)
        try:
            super()._read_and_discard_trailer()  # type: ignore[misc]
        finally:
            self.fp = file


class _BoundedLines:
    """A file whose lines have at most MAX_HEAD_BYTES in total: http.client limits only each line."""

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
    """The head of a streamed response, with the attributes that http.client's has."""

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
    """Parse the simple head of a stream at the beginning of `data`. Returns the head and its length in bytes; None if
    it is incomplete or not simple. http.client parses all others, which takes 0.1 ms."""
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
