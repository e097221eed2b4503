"""Responses whose rest does not come: stalls and resets."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from asr_load.http.failure import Failure
from harness.patience import PATIENCE_S
from harness.socket_readers import CHUNKED_HEAD, MAKERS, pair, response, settle

STALL_S = 0.05


@pytest.mark.parametrize("maker", MAKERS)
def test_reset_and_stall_are_distinguished(maker: str) -> None:
    here, there = pair()
    with here:
        file = response(maker, here, STALL_S)
        with pytest.raises(Failure, match="no data within the stall timeout"):
            file.read_head()
        there.sendall(CHUNKED_HEAD)
        file.read_head()
        file.begin_body()
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
