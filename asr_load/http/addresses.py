"""Resolve names and connect to their addresses in turn, so that all servers behind a name get requests."""

from __future__ import annotations

import logging
import time
from typing import Any

from gevent import socket

logger = logging.getLogger(__name__)

FRESH_S = 10.0
"""Seconds until a name is resolved again, because servers behind a name come and go."""

Address = tuple[socket.AddressFamily, Any]
"""An address family, and an address as sockets of this family represent it."""

Upstream = tuple[tuple[str, int], ...]
"""Pairs of a name or address and a port."""


class Addresses:
    """The addresses that a process has resolved, taken in turn from number `first` on. Workers start at different
    addresses, so that even a few users are spread evenly."""

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._known: dict[Upstream, tuple[float, list[Address]]] = {}
        self._turns: dict[Upstream, int] = {}
        self._silent: dict[Address, float] = {}
        """Unreachable addresses, and when they failed; the others take their share for a while."""

    def connect(self, upstream: Upstream, until: float) -> tuple[socket.socket, str]:
        """Connect to the next address that accepts, at the latest at `until` (perf_counter). Returns the socket and the
        address. The caller limits the time for name resolution. Raises OSError."""
        addresses = self._resolve(upstream)
        turn = self._turns.get(upstream, self._first)
        self._turns[upstream] = turn + 1
        since = time.monotonic() - FRESH_S
        silent = [address for address in addresses if self._silent.get(address, since) > since]
        good = [address for address in addresses if address not in silent]
        first = turn % len(good) if good else 0
        trouble: OSError | None = None
        left = [*good[first:], *good[:first], *silent]
        while left:
            # Divide the time, so that an unresponsive address leaves some for the others.
            limit = (until - time.perf_counter()) / len(left)
            address = left.pop(0)
            try:
                return _connect(address, max(limit, 0.001))
            except OSError as error:
                trouble = trouble or error
                if any(other[0] == address[0] for other in good if other != address):
                    logger.warning("%s cannot be reached: %s", _name(address), error.strerror or error)
                self._silent[address] = time.monotonic()
        assert trouble is not None
        raise trouble

    def _resolve(self, upstream: Upstream) -> list[Address]:
        told, addresses = self._known.get(upstream, (float("-inf"), []))
        if time.monotonic() - told > FRESH_S:
            found = [socket.getaddrinfo(host, port, type=socket.SOCK_STREAM) for host, port in upstream]
            addresses = list(dict.fromkeys((family, address) for each in found for family, _, _, _, address in each))
            # Sort them, because each DNS response has a different order.
            addresses.sort(key=lambda address: address[1])
            self._known[upstream] = time.monotonic(), addresses
        return addresses


def _connect(address: Address, limit_s: float) -> tuple[socket.socket, str]:
    family, place = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(limit_s)
        sock.connect(place)
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock, _name(address)


def _name(address: Address) -> str:
    family, (host, port, *_) = address
    return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
