"""Compression taken off a body that came with it though nobody asked. Nothing here does I/O."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence

from asr_load.stream.limits import MAX_BYTES
from asr_load.stream.reader import ProtocolError

MAX_MEMBERS = 100
"""Of a body that is compressed in several parts: each is looked for in all that follows it."""

_GZIP_OR_ZLIB, _RAW = zlib.MAX_WBITS | 32, -zlib.MAX_WBITS
_ZLIB_METHOD = 8


class Decoded:
    """Takes gzip or deflate off a body in any pieces; each piece gives all that it completes."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._begun = False
        self._members = 0
        self._taken = 0
        """Reads of a collected body that were taken."""
        self._body = bytearray()
        self._ends: list[int] = []
        self._size = 0

    @classmethod
    def of(cls, coding: str | None) -> Decoded | None:
        """What takes off a Content-Encoding; None where there is none. Raises ProtocolError for another one."""
        name = (coding or "identity").strip().lower()
        if name not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise ProtocolError(f"content-encoding {coding}, which nobody asked for")
        return None if name in ("identity", "") else cls(name)

    def piece(self, data: bytes) -> bytes:
        """The bytes that a piece completes. Raises ProtocolError."""
        if data and not self._begun:
            self._begun = True
            # Some servers send deflate without zlib's head, which RFC 9110, 8.4.1.2, asks for.
            if self._coding == "deflate" and data[0] & 15 != _ZLIB_METHOD:
                self._inflate = zlib.decompressobj(_RAW)
        plain = b""
        try:
            while data:
                plain += self._inflate.decompress(data, MAX_BYTES - self._size - len(plain) + 1)
                if self._size + len(plain) > MAX_BYTES:
                    raise ProtocolError(f"an answer of more than {MAX_BYTES} bytes")
                # A body may be several members, one behind the other.
                data = self._inflate.unused_data
                if data:
                    self._members += 1
                    if self._members > MAX_MEMBERS:
                        raise ProtocolError(f"compressed in more than {MAX_MEMBERS} parts")
                    self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        except zlib.error as error:
            raise ProtocolError(f"not {self._coding}, though the content-encoding says so: {error}") from error
        self._size += len(plain)
        return plain

    def take(
        self, body: bytes, stamps: Sequence[int], ends: Sequence[int]
    ) -> tuple[bytes, Sequence[int], Sequence[int]]:
        """A body as it was collected, decoded, with the ends of its reads; call it again with more of it."""
        for number in range(self._taken, len(ends)):
            self._body += self.piece(body[ends[number - 1] if number else 0 : ends[number]])
            self._ends.append(len(self._body))
        self._taken = len(ends)
        return bytes(self._body), stamps, self._ends


def decoded(reads: Iterable[bytes], coding: str | None) -> Iterator[bytes]:
    """A body's reads without their compression."""
    decoder = Decoded.of(coding)
    return iter(reads) if decoder is None else filter(None, map(decoder.piece, reads))
