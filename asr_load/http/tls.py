"""TLS without a socket: encrypt data before sending it, and decrypt data after a reader has stamped it."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

from gevent import socket
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from asr_load.http.loop import TimeSlice

RECORD_BYTES = 16384
"""Maximum plaintext of a TLS record (RFC 8446, section 5.1)."""

PIECE_BYTES = 8 * RECORD_BYTES
"""Bytes to encrypt at once."""

RECEIVE_BYTES = 65536


@functools.cache
def ssl_context(verify: bool | str, cert: str | tuple[str, str] | None) -> ssl.SSLContext:
    """The SSL context for these settings of Transport, shared by connections. Raises OSError for an unreadable file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    if verify is False:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        trusted = DEFAULT_CA_BUNDLE_PATH if verify is True else verify
        context.load_verify_locations(**{"capath" if Path(trusted).is_dir() else "cafile": trusted})
    if cert:
        context.load_cert_chain(*((cert,) if isinstance(cert, str) else cert))
    return context


class Tls:
    """The TLS state of one connection."""

    def __init__(self, context: ssl.SSLContext, host: str, session: ssl.SSLSession | None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host, session=session)
        self.ended = False
        """Whether the server has closed TLS."""
        self.error: ssl.SSLError | None = None
        self.answered = False
        """Whether data arrived after the handshake. In TLS 1.3, the client finishes it before the server has verified
        the client."""

    def shake_hands(self, sock: socket.socket) -> None:
        """Do the handshake over a blocking socket. The caller limits the time. Raises OSError, including
        ssl.SSLError."""
        time_slice = TimeSlice()
        while True:
            time_slice.give()  # a server may send empty records forever
            try:
                self._object.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush(sock)
                self._incoming.write(data) if (data := sock.recv(RECEIVE_BYTES)) else self._incoming.write_eof()
            except ssl.SSLError:
                self._flush(sock)  # send the alert, which tells the server the reason
                raise
        self._flush(sock)

    def _flush(self, sock: socket.socket) -> None:
        if self._outgoing.pending:
            sock.sendall(self._outgoing.read())

    @property
    def session(self) -> ssl.SSLSession | None:
        """The session that the user's next connection can resume instead of a full handshake."""
        return self._object.session

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Encrypt data for sending."""
        self._object.write(data)
        return self._outgoing.read()

    def decrypt(self, data: bytes) -> list[bytes]:
        """Decrypt received data. Returns the plaintext of each complete record. Sets `error` or `ended` at the end."""
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
            pass  # the record is incomplete, or contained no data
        except ssl.SSLError as error:
            self.error = error
        return plain
