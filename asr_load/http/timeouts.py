"""Timeouts of a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timeouts:
    """Limits in seconds: to connect (including name, proxy and handshakes), without data of the response, and in
    total."""

    connect: float
    stall: float
    total: float
