"""The cause of a failure, in addition to its outcome: by status codes, types of errors, or the server's message."""

from __future__ import annotations

import re
from enum import StrEnum
from http import HTTPStatus


class Cause(StrEnum):
    """Values of a record's `cause`."""

    REFUSED = "refused"
    """Nothing listens at the address."""
    UNREACHABLE = "unreachable"
    """The address does not respond, or there is no route to it."""
    NAME = "name"
    """The host's name has no address."""
    TLS = "tls"
    """The TLS handshake failed, or a certificate was rejected."""
    PLAIN = "plain"
    """The server expects TLS, but the request was plain HTTP."""
    PROXY = "proxy"
    """The proxy refused the connection, or cannot be reached."""
    BUSY = "busy"
    """The server had no room for the request: 429, 503, or a full queue."""
    CONTEXT = "context"
    """The request does not fit into the model's context."""


BUSY_CODES = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)

_WORDS = {
    Cause.CONTEXT: re.compile(
        r"context.?(length|window|size|limit)|max_model_len|longer than the (maximum )?model|decoder prompt .* too long"
        r"|maximum (input|sequence) length|too many (input )?tokens",
        re.IGNORECASE,
    ),
    Cause.PLAIN: re.compile(r"https (port|server|scheme)|plain http .*(tls|ssl)", re.IGNORECASE),
    Cause.BUSY: re.compile(
        r"queue is full|queue_full|(server|engine|service|model) is (too )?(busy|overloaded)|too many requests"
        r"|\brate.?limit",
        re.IGNORECASE,
    ),
}
"""Messages of servers that send no code for the cause."""


def cause_of(status: int | None, code: int | None, message: str) -> str:
    """The cause of a failure, by the response's status, its error's code, and its message; empty if unknown."""
    if status in BUSY_CODES or code in BUSY_CODES:
        return Cause.BUSY
    return next((cause for cause, pattern in _WORDS.items() if pattern.search(message)), "")
