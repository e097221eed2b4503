"""What ends a request before its answer does: the outcome of its record, and a line that is the same for the same
cause."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from http.client import IncompleteRead

from asr_load.stream.cause import Cause

_WANTS = {
    errno.EMFILE: ": raise ulimit -n, or lower -u",
    errno.ENFILE: ": the whole machine has no more, lower -u",
    errno.ENOMEM: "",
    errno.ENOBUFS: "",
    errno.EADDRNOTAVAIL: ": no local port is left, lower -u or add workers on other machines",
}
"""What a machine may run out of, and what helps."""

STALLED = "no byte within the stall timeout"

LAST_LOOK_S = 0.25
"""How long to look again before an answer is called stalled: where this process was stopped, what has come meanwhile is
still to be read."""


class Failure(Exception):
    """A request came to an end by this."""

    def __init__(self, outcome: str, why: str, cause: str = "") -> None:
        super().__init__(why)
        self.outcome, self.cause = outcome, cause


def failure(error: Exception, *, while_sending: bool = False) -> Failure:
    """For what a socket, TLS or http.client raised on a connection that is open."""
    if want := client_want(error):
        return Failure("client", want)
    match error:
        case IncompleteRead():
            return Failure("cut", "the body ended early")
        case ConnectionError() | ssl.SSLError():
            return Failure("cut", words(error))
        case TimeoutError():
            return Failure("stalled", "the upload made no progress" if while_sending else STALLED)
    return Failure("protocol", words(error))


def connect_failure(error: OSError, *, proxy: bool = False) -> Failure:
    """For what was raised while a connection was opened, to the server or to a `proxy`."""
    if want := client_want(error):
        return Failure("client", want)
    cause = Cause.PROXY if proxy else _connect_cause(error)
    if isinstance(error, TimeoutError) and not isinstance(error, ssl.SSLError):
        return Failure("connect", "connecting took too long", cause)
    return Failure("connect", f"the proxy: {words(error)}" if proxy else words(error), cause)


def _connect_cause(error: OSError) -> str:
    match error:
        case ssl.SSLError():
            return Cause.TLS
        case ConnectionRefusedError():
            return Cause.REFUSED
        case socket.gaierror():
            return Cause.NAME
        case TimeoutError():
            return Cause.UNREACHABLE
    return Cause.UNREACHABLE if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH) else ""


def client_want(error: BaseException) -> str | None:
    """In words, what this machine did not have for a request; None where that was not the reason."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if not isinstance(error, OSError) or error.errno not in _WANTS:
        return None
    return f"{os.strerror(error.errno).lower()}{_WANTS[error.errno]}"


def words(error: Exception) -> str:
    """What an error says, the same for the same cause."""
    if isinstance(error, ssl.SSLError):
        return tls_words(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


NO_AUTHORITY = "the server's certificate is of no authority that is trusted here (--ca FILE names one)"
CERTIFICATES = {
    9: "the server's certificate is not valid yet",
    10: "the server's certificate has expired",
    **dict.fromkeys((18, 19, 20, 21), NO_AUTHORITY),
    **dict.fromkeys((62, 64), "the server's certificate is for another name than --host"),
}
"""By OpenSSL's number of what is wrong (x509_vfy.h)."""

REASONS = {
    **dict.fromkeys(
        ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"),
        "the server does not speak TLS on this port (http:// in place of https://?)",
    ),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server asks for a certificate of the client (--cert FILE)",
}
ENDED = "the server ended TLS: it may want a certificate of the client (--cert FILE)"
"""Where it closed before its alert was read, as TLS 1.3 lets it."""


def tls_words(error: ssl.SSLError) -> str:
    """What is wrong with TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = CERTIFICATES.get(error.verify_code)
        return said or f"the server's certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return ENDED
    reason = error.reason or "failed"
    return REASONS.get(reason, f"TLS: {reason.replace('_', ' ').lower()}")
