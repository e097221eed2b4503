"""Read TLS connections: a reader stamps the ciphertext as usual, and gevent's loop decrypts it later."""

from __future__ import annotations

import errno
import os

from asr_load.http.collector import TAKE_BYTES, Owner, SocketReader
from asr_load.http.loop import call_in_next_round
from asr_load.http.socket_reader import ReaderFactory
from asr_load.http.tls import Tls


class Decryption:
    """Owns a reader of ciphertext and feeds a reader of plaintext. Plaintext gets the stamp of the read that completed
    its TLS record."""

    def __init__(self, source: ReaderFactory, descriptor: int, owner: Owner, tls: Tls) -> None:
        self.plaintext = source.collector(owner)
        self._tls = tls
        self._ciphertext: SocketReader | None = source(descriptor, self)
        self.set()

    def set(self) -> None:
        """Decrypt the data that has arrived, and wait for more."""
        if self._ciphertext is not None and self._take_some(self._ciphertext):
            call_in_next_round(self.set)

    def _take_some(self, source: SocketReader) -> bool:
        """Decrypt some of the data that has arrived. Returns whether there is more."""
        tls, plaintext = self._tls, self.plaintext
        status = source.status  # read it before the data: more data may arrive before the end
        data, stamps, ends = source.take()
        start = 0
        for at, end in zip(stamps, ends, strict=True):
            for plain in tls.decrypt(data[start:end]):
                plaintext.feed(plain, at)
            start = end
        if tls.error is not None:
            plaintext.fail(tls.error)
        elif tls.ended:
            plaintext.end()
        elif not data:
            match status:
                case "running":
                    pass
                case "failed":
                    plaintext.fail(source.failure)
                case "too long":
                    plaintext.fail(OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE)))
                case _:
                    plaintext.end()
        return len(data) >= TAKE_BYTES or (bool(data) and source.status != "running")

    def close(self) -> None:
        """Stop reading."""
        source, plaintext = self._ciphertext, self.plaintext
        if source is None:
            return
        self._ciphertext = None  # break the reference cycle
        source.close()
        # Decrypt everything that was read: on a kept connection, it would be missing from the next response.
        while plaintext.status == "complete" and not plaintext.surplus and self._take_some(source):
            pass
        plaintext.close()
