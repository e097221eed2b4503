"""The file from which http.client reads: sized reads, stalls and resets."""

from __future__ import annotations

import socket
import struct
import time

import gevent
import pytest

from asr_load.http.collector import CHUNKED
from asr_load.http.failure import Failure
from harness.patience import PATIENCE_S
from harness.socket_readers import MAKERS, head_file, pair, settle

STALL_S = 0.05


@pytest.mark.parametrize("maker", MAKERS)
def test_reset_and_stall_are_distinguished(maker: str) -> None:
    here, there = pair()
    with here:
        file = head_file(maker, here, STALL_S)
        with pytest.raises(Failure, match="no data within the stall timeout"):
            file.peek()
        there.sendall(b"x")
        settle(lambda: file.has_come)
        assert file.read(1) == b"x"
        file.begin_body(CHUNKED)
        began = time.perf_counter()
        with pytest.raises(Failure, match="no data within the stall timeout"):
            while not file.wait_for_end(0.01):
                pass
        assert time.perf_counter() * 1e9 - file.reader.last >= STALL_S * 1e9
        assert time.perf_counter() - began < PATIENCE_S
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        there.close()
        settle(lambda: file.reader.status == "failed")
        with pytest.raises(Failure, match="Connection reset by peer") as told:
            file.wait_for_end(1)
        assert told.value.outcome == "cut"
        file.close()


@pytest.mark.parametrize("maker", MAKERS)
def test_sized_read_waits_for_all_of_its_bytes(maker: str) -> None:
    """http.client takes fewer bytes for the end of the response, but a line end may come in two packets."""
    here, there = pair()
    with here, there:
        file = head_file(maker, here, 10)
        there.sendall(b"\r")
        settle(lambda: file.reader.head(0) == b"\r")
        reading = gevent.spawn(file.read, 2)
        gevent.sleep(0)
        assert not reading.ready()
        there.sendall(b"\nrest")
        assert reading.get(timeout=PATIENCE_S) == b"\r\n"
        assert file.read1(100) == b"rest"
        there.close()
        assert file.read(2) == b""
        file.close()
