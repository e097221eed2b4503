"""Failures of connections: their outcomes and causes."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from asr_load.http.failure import connect_failure
from asr_load.results.verdict import what_failed
from asr_load.stream.cause import Cause


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), Cause.REFUSED),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), Cause.NAME),
        (TimeoutError("timed out"), Cause.UNREACHABLE),
        (OSError(errno.EHOSTUNREACH, "No route to host"), Cause.UNREACHABLE),
        (ssl.SSLEOFError(8, "EOF occurred"), Cause.TLS),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), ""),
    ],
)
def test_connection_errors_determine_the_cause(error: OSError, cause: str) -> None:
    assert (connect_failure(error).outcome, connect_failure(error).cause) == ("connect", cause)
    assert connect_failure(error, proxy=True).cause == Cause.PROXY


def test_server_without_tls_is_not_reported_as_down() -> None:
    incoming = ssl.MemoryBIO()
    incoming.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ssl.SSLError) as caught:
        ssl.create_default_context().wrap_bio(incoming, ssl.MemoryBIO(), server_hostname="h").do_handshake()
    found = connect_failure(caught.value)
    line = what_failed(found.outcome, str(found), "https://h", found.cause)
    assert found.cause == Cause.TLS
    assert "does not speak TLS on this port" in line
    assert "is the server running" not in line
