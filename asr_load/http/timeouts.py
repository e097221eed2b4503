"""How long a request may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timeouts:
    """Of one request, in seconds: to connect, names, proxies and handshakes included; without a byte of the answer; and
    in all."""

    connect: float
    stall: float
    total: float
