"""Ports for programs that must know their port before they start."""

import itertools
import os
import re
import socket

# These ports are below the ephemeral ports of all systems (from 32768 on Linux, from 49152 on macOS). The system could
# give an ephemeral port to another test's server before it is used.
_FIRST, _PER_WORKER = 12_000, 2_500
_LAST_WORKER = 7
_worker = int("".join(re.findall(r"\d+", os.environ.get("PYTEST_XDIST_WORKER", ""))) or _LAST_WORKER)
_offsets = itertools.cycle(range(_PER_WORKER))
# Two test runs on one machine start at different ports.
for _ in range(os.getpid() % _PER_WORKER):
    next(_offsets)


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens, and which no other pytest worker gets."""
    for offset in itertools.islice(_offsets, _PER_WORKER):
        port = _FIRST + min(_worker, _LAST_WORKER) * _PER_WORKER + offset
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port of this worker's is free")
