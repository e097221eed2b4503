"""Why a request failed, where more is known than its outcome says: by codes, kinds of errors, or a server's words."""

from __future__ import annotations

import re
from enum import StrEnum
from http import HTTPStatus


class Cause(StrEnum):
    """As records have it."""

    REFUSED = "refused"
    """Nothing listens at the address."""
    UNREACHABLE = "unreachable"
    """No answer from the address, or no way to it."""
    NAME = "name"
    """The host's name has no address."""
    TLS = "tls"
    """The handshake of TLS failed, or a certificate was not accepted."""
    PLAIN = "plain"
    """The server speaks TLS and was sent plain HTTP."""
    PROXY = "proxy"
    """The proxy refused, or cannot be reached."""
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
"""What servers write where they send no code for it."""


def cause_of(status: int | None, code: int | None, message: str) -> str:
    """The cause of a failure by the answer's status, the code of its error, and its words; empty where none is
    known."""
    if status in BUSY_CODES or code in BUSY_CODES:
        return Cause.BUSY
    return next((cause for cause, pattern in _WORDS.items() if pattern.search(message)), "")
