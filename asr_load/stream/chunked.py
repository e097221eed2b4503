"""Decode HTTP's chunked framing incrementally (RFC 9112, section 7.1), without I/O."""

from __future__ import annotations

import re

from asr_load.stream.limits import MAX_HEAD_BYTES, MAX_LENGTH_DIGITS

MAX_LINE = 4096
"""Maximum bytes of a line with a chunk's size, or of a trailer."""

HEX_DIGITS = b"0123456789abcdefABCDEF"
_END = b"\r\n"
_size_line = re.compile(rb"([0-9a-fA-F]{1,15})\r\n").match


class Chunked:
    """Decodes a chunked body that arrives in arbitrary pieces."""

    def __init__(self) -> None:
        self.ended = False
        self.broken = False
        """Whether the framing is malformed."""
        self.surplus = False
        """Whether bytes arrived after the end."""
        self._rest = b""
        self._left = 0
        """Missing bytes of the chunk, including its line end."""
        self._trailer = False
        self._trailers = 0
        """Bytes of the trailer lines."""
        self._within = False
        """Whether the next byte does not start a new chunk."""

    def take(self, data: bytes) -> bytes:
        """The payload in a piece of the body."""
        if not self._within and (whole := _size_line(data)):
            # Usually a piece is one chunk: this takes a third of the time.
            begin, end = whole.end(), whole.end() + int(whole[1], 16)
            if begin < end == len(data) - len(_END) and data.endswith(_END):
                return data[begin:end]
        payload = self._take_any(data)
        self._within = bool(self._rest or self._left or self._trailer or self.broken)
        return payload

    def _take_any(self, data: bytes) -> bytes:
        if self._rest:
            data, self._rest = self._rest + data, b""
        payload = []
        at, size = 0, len(data)
        while at < size and not self.broken:
            if self.ended:
                self.surplus = True
                break
            if self._left:
                text = self._left - len(_END)
                part = data[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                if text > 0:
                    payload.append(part[:text])
                skip = max(0, -text)
                self.broken = not _END[skip:].startswith(part[max(0, text) :])
                continue
            end = data.find(b"\n", at)
            if (size if end < 0 else end) - at > MAX_LINE:
                self.broken = True
            elif end < 0:
                self._rest = data[at:]
                break
            else:
                self._take_line(data[at:end].rstrip(b"\r"))
                at = end + 1
        return b"".join(payload)

    def _take_line(self, line: bytes) -> None:
        if self._trailer:
            self.ended = not line
            self._trailers += len(line)
            self.broken = self._trailers > MAX_HEAD_BYTES
            return
        digits = line.partition(b";")[0].strip(b" \t")
        if not digits or len(digits) > MAX_LENGTH_DIGITS or digits.strip(HEX_DIGITS):
            self.broken = True
            return
        length = int(digits, 16)
        self._trailer = length == 0
        self._left = length + len(_END) if length else 0
