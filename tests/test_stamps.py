"""Stamps are the times when bytes became readable, not when they were read, and not when a packet arrived early."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from gevent.event import Event

from conftest import CHECKOUT
from harness.netns import network
from harness.patience import PATIENCE_S
from harness.socket_readers import STAMPED, pair, settle, source

DELAY_S = 0.04
EARLY_S = 0.1 * DELAY_S
"""More than two clocks differ, and far less than the retransmission of a lost packet takes."""

SEND = """
import socket, sys, time
with socket.create_server(("0.0.0.0", 7000)) as server:
    print("listening", flush=True)
    there, _ = server.accept()
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for number in range(400):
        time.sleep(0.005)
        there.sendall(b"x")
    there.shutdown(socket.SHUT_WR)
    there.recv(1)
"""

RECEIVE = """
from gevent import monkey; monkey.patch_all()
import fcntl, json, socket, sys, termios, time
import gevent
from gevent.event import Event
from asr_load.http.collector import UNTIL_CLOSE
from harness.socket_readers import source
here = socket.create_connection((sys.argv[2], 7000))
reader = source(sys.argv[1])(here.fileno(), Event())
reader.begin_body(0, UNTIL_CLOSE)
unread = [0] * 400  # for each byte, when it could not be read yet
while reader.status == "running":
    # Bytes that wait in the kernel could be read. Ask it first, so that a byte read meanwhile counts twice, not never.
    now = time.perf_counter_ns()
    waits = int.from_bytes(fcntl.ioctl(here, termios.FIONREAD, bytes(4)), sys.byteorder)
    for byte in range(len(reader.collected()[0]) + waits, 400):
        unread[byte] = now
    gevent.sleep(0.001)
body, stamps, ends = reader.collected()
print(json.dumps({"bytes": len(body), "unread": unread, "stamps": stamps, "ends": ends}))
"""


@pytest.mark.parametrize("maker", STAMPED)
def test_bytes_that_came_while_python_was_busy_keep_their_time(maker: str) -> None:
    here, there = pair()
    with here, there:
        made = source(maker)(here.fileno(), Event())
        there.sendall(b"a")  # the kernel starts to stamp with the first socket that requests it, with a short delay
        settle(lambda: made.head(0) == b"a")
        sent = time.perf_counter_ns()
        there.sendall(b"b")
        after = time.perf_counter_ns()
        until = time.perf_counter() + 0.2
        while time.perf_counter() < until:  # blocks gevent meanwhile
            pass
        settle(lambda: made.head(0) == b"ab")
        made.close()
    assert sent <= made.last <= after


@pytest.mark.parametrize("maker", STAMPED)
def test_stamps_on_a_lossy_network_are_not_before_bytes_are_readable(maker: str) -> None:
    # A packet after a lost one arrives earlier and waits in the kernel: its own stamp is too early.
    with network("server", "client", delay_ms=DELAY_S * 1e3, loss=0.05) as net:
        server = subprocess.Popen(
            [*net.on("server"), sys.executable, "-c", SEND], stdout=subprocess.PIPE, text=True, cwd=CHECKOUT / "tests"
        )
        try:
            assert server.stdout is not None
            with server.stdout as output:
                assert output.readline() == "listening\n"
            words = [sys.executable, "-c", RECEIVE, maker, net.addresses["server"]]
            receive = [*net.on("client"), *words]
            done = subprocess.run(
                receive, capture_output=True, text=True, cwd=CHECKOUT / "tests", timeout=PATIENCE_S, check=False
            )
        finally:
            server.kill()
            server.wait()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    stamps, ends = seen["stamps"], seen["ends"]
    assert seen["bytes"] == ends[-1] == 400
    assert stamps == sorted(stamps)
    waits = [later - earlier for earlier, later in pairwise(stamps)]
    assert sum(wait > DELAY_S * 1e9 for wait in waits) >= 3  # packets were lost
    # No read has a stamp from before its last byte became readable.
    early = [end for stamp, end in zip(stamps, ends, strict=True) if seen["unread"][end - 1] - stamp > EARLY_S * 1e9]
    assert early == []
