"""Failures that end a request: the outcome of its record, and a message that is the same for the same cause."""

from __future__ import annotations

import errno
import os
import socket
import ssl

from asr_load.stream.cause import Cause

_WANTS = {
    errno.EMFILE: ": raise ulimit -n, or lower -u",
    errno.ENFILE: ": this is the limit of the whole machine, so lower -u",
    errno.ENOMEM: "",
    errno.ENOBUFS: "",
    errno.EADDRNOTAVAIL: ": no local port is left; lower -u, or add workers on other machines",
}
"""Resources of this machine that may run out, with the cure."""

STALLED = "no data within the stall timeout"

LAST_LOOK_S = 0.25
"""Extra seconds to wait for data before a response counts as stalled: if this process was stopped, data that arrived
meanwhile has not been read yet."""


class Failure(Exception):
    """An error that ended a request, with the outcome of its record."""

    def __init__(self, outcome: str, why: str, cause: str = "") -> None:
        super().__init__(why)
        self.outcome, self.cause = outcome, cause


def failure(error: Exception, *, while_sending: bool = False) -> Failure:
    """Convert an error of a socket or of TLS on an open connection."""
    if want := client_want(error):
        return Failure("client", want)
    match error:
        case ConnectionError() | ssl.SSLError():
            return Failure("cut", words(error))
        case TimeoutError():
            return Failure("stalled", "the upload made no progress" if while_sending else STALLED)
    return Failure("protocol", words(error))


def connect_failure(error: OSError, *, proxy: bool = False) -> Failure:
    """Convert an error raised while opening a connection to the server or to a `proxy`."""
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
    """The resource of this machine that ran out, in words; None if the error has another reason."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if not isinstance(error, OSError) or error.errno not in _WANTS:
        return None
    return f"{os.strerror(error.errno).lower()}{_WANTS[error.errno]}"


def words(error: Exception) -> str:
    """The message of an error, the same for the same cause."""
    if isinstance(error, ssl.SSLError):
        return tls_words(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


NO_AUTHORITY = "the server's certificate is from an authority that is not trusted here (trust it with --ca FILE)"
CERTIFICATES = {
    9: "the server's certificate is not valid yet",
    10: "the server's certificate has expired",
    **dict.fromkeys((18, 19, 20, 21), NO_AUTHORITY),
    **dict.fromkeys((62, 64), "the server's certificate is for another name than --host"),
}
"""Messages by OpenSSL's error number (x509_vfy.h)."""

REASONS = {
    **dict.fromkeys(
        ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"),
        "the server does not speak TLS on this port (use http:// instead of https://?)",
    ),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server requires a client certificate (--cert FILE)",
}
ENDED = "the server ended TLS: it may require a client certificate (--cert FILE)"
"""The message if the server closed before its alert was read, which TLS 1.3 allows."""


def tls_words(error: ssl.SSLError) -> str:
    """The message of an error of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        known = CERTIFICATES.get(error.verify_code)
        return known or f"the server's certificate was rejected: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return ENDED
    reason = error.reason or "failed"
    return REASONS.get(reason, f"TLS: {reason.replace('_', ' ').lower()}")
