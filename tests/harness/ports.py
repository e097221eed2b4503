"""Ports for programs that must be told theirs before they start."""

import itertools
import os
import re
import socket

# Below every system's ephemeral ports (from 32768 on Linux, from 49152 on macOS): a port that the system hands out
# may be handed out again, to another test's server, between the look and the use.
_FIRST, _PER_WORKER = 12_000, 2_500
_LAST_WORKER = 7
_worker = int("".join(re.findall(r"\d+", os.environ.get("PYTEST_XDIST_WORKER", ""))) or _LAST_WORKER)
_offsets = itertools.cycle(range(_PER_WORKER))
# Where two runs of the suite share a machine, they begin at ports of their own.
for _ in range(os.getpid() % _PER_WORKER):
    next(_offsets)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on, and that no other pytest worker is given."""
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
