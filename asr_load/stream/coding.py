"""Decompress a body that a server compressed without being asked to. No I/O."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from asr_load.stream.limits import MAX_BYTES
from asr_load.stream.reader import ProtocolError

MAX_MEMBERS = 100
"""Maximum number of compressed members in a body: each copies all data after it."""

_GZIP_OR_ZLIB, _RAW = zlib.MAX_WBITS | 32, -zlib.MAX_WBITS
_ZLIB_METHOD = 8


class Decoder:
    """Decompresses a gzip or deflate body that arrives in arbitrary pieces."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._begun = False
        self._members = 0
        self._taken = 0
        """Number of decoded reads of a collected body."""
        self._body = bytearray()
        self._ends: list[int] = []
        self._size = 0

    @classmethod
    def for_coding(cls, coding: str | None) -> Decoder | None:
        """The decoder of a Content-Encoding; None for identity. Raises ProtocolError for an unsupported one."""
        name = (coding or "identity").strip().lower()
        if name not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise ProtocolError(f"unsupported content-encoding: {coding}")
        return None if name in ("identity", "") else cls(name)

    def piece(self, data: bytes) -> bytes:
        """The bytes that a piece completes. Raises ProtocolError."""
        if data and not self._begun:
            self._begun = True
            # Some servers send deflate without the zlib header that RFC 9110, 8.4.1.2, requires.
            if self._coding == "deflate" and data[0] & 15 != _ZLIB_METHOD:
                self._inflate = zlib.decompressobj(_RAW)
        plain = b""
        try:
            while data:
                plain += self._inflate.decompress(data, MAX_BYTES - self._size - len(plain) + 1)
                if self._size + len(plain) > MAX_BYTES:
                    raise ProtocolError(f"a response of more than {MAX_BYTES} bytes")
                # A body may consist of several members.
                data = self._inflate.unused_data
                if data:
                    self._members += 1
                    if self._members > MAX_MEMBERS:
                        raise ProtocolError(f"compressed in more than {MAX_MEMBERS} parts")
                    self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        except zlib.error as error:
            raise ProtocolError(f"the body is not {self._coding}, although its content-encoding is: {error}") from error
        self._size += len(plain)
        return plain

    def take(
        self, body: bytes, stamps: Sequence[int], ends: Sequence[int]
    ) -> tuple[bytes, Sequence[int], Sequence[int]]:
        """Decode a collected body, and compute the ends of its reads in the decoded body. Call it again with more."""
        for number in range(self._taken, len(ends)):
            self._body += self.piece(body[ends[number - 1] if number else 0 : ends[number]])
            self._ends.append(len(self._body))
        self._taken = len(ends)
        return bytes(self._body), stamps, self._ends
