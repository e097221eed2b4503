"""Reading what is encrypted: ciphertext is read and stamped as ever, and decrypted when gevent's loop comes to it."""

from __future__ import annotations

import errno
import os

from asr_load.http.collector import TAKE_BYTES, Owner, SocketReader
from asr_load.http.socket_reader import ReaderFactory
from asr_load.http.tls import Tls
from asr_load.http.turn import call_in_next_round


class Decryption:
    """Between a reader of ciphertext, whose owner it is, and one of plaintext, which it feeds: with the stamps of those
    reads that completed its records of TLS."""

    def __init__(self, source: ReaderFactory, descriptor: int, owner: Owner, tls: Tls) -> None:
        self.plaintext = source.collector(owner)
        self._tls = tls
        self._ciphertext: SocketReader | None = source(descriptor, self)
        self.set()

    def set(self) -> None:
        """Take what has come, and wait for more."""
        if self._ciphertext is not None and self._take_some(self._ciphertext):
            call_in_next_round(self.set)

    def _take_some(self, source: SocketReader) -> bool:
        """Decrypt what has come, or a part of it. Returns whether there is more."""
        tls, plaintext = self._tls, self.plaintext
        status = source.status  # before what has come: more may come before the end
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
        """Read no more."""
        source, plaintext = self._ciphertext, self.plaintext
        if source is None:
            return
        self._ciphertext = None  # each holds the other
        source.close()
        # What was read of a connection that is kept would be missing when the next answer comes.
        while plaintext.status == "complete" and not plaintext.surplus and self._take_some(source):
            pass
        plaintext.close()
