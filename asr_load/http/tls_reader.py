"""Reading what is encrypted: ciphertext is read and stamped as ever, and decrypted when gevent's loop comes to it."""

from __future__ import annotations

import gevent

from asr_load.http.collector import Collector, Owner
from asr_load.http.socket_reader import ReaderFactory
from asr_load.http.tls import Tls

TAKE_BYTES = 65536
"""That a reader gives at once, if there are as many: as in _socket_reader.c."""


class TlsReader(Collector):
    """A reader over one of ciphertext, whose owner it is. Plaintext has the stamp of the read that completed its record
    of TLS."""

    def __init__(self, source: ReaderFactory, descriptor: int, owner: Owner, tls: Tls) -> None:
        super().__init__(owner)
        self._tls = tls
        self._ciphertext = source(descriptor, self)
        self.set()

    def set(self) -> None:
        """Take what has come, and wait for more."""
        if self._take_some():
            gevent.get_hub().loop.run_callback(self.set)  # others have their turn first

    def _take_some(self) -> bool:
        """Decrypt what has come, or a part of it. Returns whether there is more."""
        source, tls = self._ciphertext, self._tls
        data, stamps, ends = source.take()
        start = 0
        for at, end in zip(stamps, ends, strict=True):
            if plain := tls.decrypt(data[start:end]):
                self.feed(plain, at)
            start = end
        if tls.error is not None:
            self.fail(tls.error)
        elif tls.ended:
            self.end()
        elif not data:
            match source.status:
                case "running":
                    pass
                case "failed":
                    self.fail(source.failure)
                case _:
                    self.end()
        return len(data) >= TAKE_BYTES or (bool(data) and source.status != "running")

    def close(self) -> None:
        self._ciphertext.close()
        # What was read of a connection that is kept would be missing when the next answer comes.
        while self.status == "complete" and not self.surplus and self._take_some():
            pass
