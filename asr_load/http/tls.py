"""TLS apart from its socket: what is sent is encrypted before, what was read is decrypted after it was stamped."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

from gevent import socket
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from asr_load.http.turn import Turn

RECORD_BYTES = 16384
"""Of plaintext, the most that one record of TLS holds (RFC 8446, section 5.1)."""

PIECE_BYTES = 8 * RECORD_BYTES
"""That are encrypted before they are sent."""

READ_BYTES = 65536


@functools.cache
def context(verify: bool | str, cert: str | tuple[str, str] | None) -> ssl.SSLContext:
    """What connections of one kind share, as Transport has it. Raises OSError for a file that cannot be read."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.set_alpn_protocols(["http/1.1"])
    if verify is False:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    else:
        trusted = DEFAULT_CA_BUNDLE_PATH if verify is True else verify
        made.load_verify_locations(**{"capath" if Path(trusted).is_dir() else "cafile": trusted})
    if cert:
        made.load_cert_chain(*((cert,) if isinstance(cert, str) else cert))
    return made


class Tls:
    """One connection's side of TLS."""

    def __init__(self, made: ssl.SSLContext, host: str, session: ssl.SSLSession | None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = made.wrap_bio(self._incoming, self._outgoing, server_hostname=host, session=session)
        self.ended = False
        """Whether the server has said that nothing more will come."""
        self.error: ssl.SSLError | None = None
        self.answered = False
        """Whether anything came after the handshake: in TLS 1.3 the client's is over before the server has seen it."""

    def shake_hands(self, sock: socket.socket) -> None:
        """Agree on keys, over a socket that waits. The caller limits the time. Raises OSError, also as ssl.SSLError."""
        turn = Turn()
        while True:
            turn.give()  # a server may send records that say nothing for ever
            try:
                self._object.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush(sock)
                self._incoming.write(data) if (data := sock.recv(READ_BYTES)) else self._incoming.write_eof()
            except ssl.SSLError:
                self._flush(sock)  # the alert, which tells the server why
                raise
        self._flush(sock)

    def _flush(self, sock: socket.socket) -> None:
        if self._outgoing.pending:
            sock.sendall(self._outgoing.read())

    @property
    def session(self) -> ssl.SSLSession | None:
        """What the next connection of this user may begin with, in place of a whole handshake."""
        return self._object.session

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Data as it is sent."""
        self._object.write(data)
        return self._outgoing.read()

    def decrypt(self, data: bytes) -> list[bytes]:
        """What is complete with the data that came, record by record; `error` or `ended` say why there will be no
        more."""
        self.answered = True
        incoming, read = self._incoming, self._object.read
        incoming.write(data)
        plain = []
        try:
            while incoming.pending:
                if part := read(RECORD_BYTES):
                    plain.append(part)
                else:
                    self.ended = True
                    break
        except ssl.SSLWantReadError:
            pass  # the rest of a record is still to come, or it was none of data
        except ssl.SSLError as error:
            self.error = error
        return plain
