"""Decode HTTP's chunked framing (RFC 9112, section 7.1) incrementally, without I/O, as _socket_reader.c does.

llhttp, which parses heads, cannot do this with the same limits: it accepts sizes of any number of digits, reports no
positions, so that lines cannot be limited, and skips blank lines after the end, which would hide surplus bytes.
"""

from __future__ import annotations

import re

from asr_load.stream.limits import MAX_HEAD_BYTES, MAX_LENGTH_DIGITS

MAX_LINE = 4096
"""Maximum bytes of a line with a chunk's size, or of a trailer."""

_END = b"\r\n"
_size_line = re.compile(rb"([0-9a-fA-F]{1,%d})\r\n" % MAX_LENGTH_DIGITS).match
_size = re.compile(rb"[ \t]*([0-9a-fA-F]{1,%d})[ \t]*(?:\r*|;.*)" % MAX_LENGTH_DIGITS, re.DOTALL).fullmatch


class Chunked:
    """Decodes a chunked body that arrives in arbitrary pieces."""

    def __init__(self) -> None:
        self.ended = False
        self.broken = False
        """Whether the framing is malformed."""
        self.surplus = False
        """Whether bytes arrived after the end."""
        self._rest = b""
        """The incomplete line at the end of the last piece."""
        self._left = 0
        """Missing bytes of the chunk, including its line end."""
        self._trailers: int | None = None
        """Bytes of the trailer lines; None before the last chunk."""

    def take(self, data: bytes) -> bytes:
        """The payload in a piece of the body."""
        if not (self._rest or self._left or self._trailers is not None) and (start := _size_line(data)):
            # Usually a piece is one chunk: this takes half of the time.
            begin, end = start.end(), start.end() + int(start[1], 16)
            if begin < end == len(data) - len(_END) and data.endswith(_END):
                return data[begin:end]
        data, self._rest = self._rest + data, b""
        payload, at = [], 0
        while at < len(data) and not (self.broken or self.ended):
            if self._left > len(_END):
                part = data[at : at + self._left - len(_END)]
                payload.append(part)
                at += len(part)
                self._left -= len(part)
            elif self._left:
                part = data[at : at + self._left]
                self.broken = not _END[-self._left :].startswith(part)
                at += len(part)
                self._left -= len(part)
            else:
                end = data.find(b"\n", at)
                self._take_line(data[at:] if end < 0 else data[at:end], complete=end >= 0)
                at = end + 1 or len(data)
        self.surplus = self.ended and at < len(data)
        return b"".join(payload)

    def _take_line(self, line: bytes, *, complete: bool) -> None:
        if len(line) > MAX_LINE:
            self.broken = True
        elif not complete:
            self._rest = line
        elif self._trailers is not None:
            self.ended = not line.rstrip(b"\r")
            self._trailers += len(line)
            self.broken = self._trailers > MAX_HEAD_BYTES
        elif size := _size(line):
            length = int(size[1], 16)
            self._left = length and length + len(_END)
            self._trailers = None if length else 0
        else:
            self.broken = True
