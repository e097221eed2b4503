"""Both kinds of socket reader: the body they collect, its stamps, and how it ended."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from itertools import pairwise
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from asr_load.http import socket_reader
from asr_load.http.collector import CHUNKED, TAKE_BYTES, UNTIL_CLOSE
from asr_load.http.failure import Failure
from asr_load.stream import limits
from asr_load.stream.chunked import MAX_LINE
from conftest import CHECKOUT
from harness.patience import PATIENCE_S
from harness.serving import wait_until
from harness.socket_readers import CHUNKED_HEAD, COMPILED, MAKERS, collect, pair, response, settle, source


@pytest.mark.parametrize("maker", MAKERS)
def test_each_read_has_its_stamp(maker: str) -> None:
    before = time.perf_counter_ns()
    made = collect(maker, [b"3\r\nabc\r\n", b"4\r\n", b"de", b"fg\r\n0\r\n\r\n"], CHUNKED)
    body, stamps, ends = made.collected()
    assert (body, ends, made.status) == (b"abcdefg", [3, 5, 7], "complete")
    assert before < stamps[0] < stamps[1] < stamps[2] == made.last < time.perf_counter_ns()


@pytest.mark.parametrize("maker", MAKERS)
def test_urgent_data_hides_nothing(maker: str) -> None:
    here, there = pair()  # a read stops just before urgent data
    with here, there:
        there.sendall(b"ab")
        there.send(b"X", socket.MSG_OOB)
        there.sendall(b"cd")
        made = source(maker)(here.fileno(), Event())
        made.begin_body(0, 4)
        settle(lambda: made.status != "running")
        assert made.collected()[0] == b"abcd"
        made.close()


@pytest.mark.parametrize("maker", MAKERS)
def test_reader_leaves_its_connection_usable_and_no_descriptor_open(maker: str) -> None:
    here, there = pair()
    with here, there:
        response(maker, here, PATIENCE_S).close()  # the first reader opens descriptors shared by the process
        before = {entry.name for entry in Path("/proc/self/fd").iterdir()}
        for _ in range(3):
            file = response(maker, here, PATIENCE_S)
            there.sendall(CHUNKED_HEAD)
            file.read_head()
            file.close()
            file.close()
        there.sendall(b"rest")
        assert here.recv(9) == b"rest"
        assert {entry.name for entry in Path("/proc/self/fd").iterdir()} == before


@pytest.mark.parametrize("maker", MAKERS)
def test_100_concurrent_streams_are_read_completely(maker: str) -> None:
    made, others = [], []
    for _ in range(100):
        here, there = pair()
        made.append((here, response(maker, here, PATIENCE_S)))
        others.append(there)

    def send() -> None:
        for round_ in range(20):
            for there in others:
                there.sendall(b"%d|" % (round_ % 10))
            time.sleep(0.005)
        for there in others:
            there.close()

    thread = threading.Thread(target=send)
    thread.start()
    for _, file in made:
        file.head.framing = UNTIL_CLOSE
        file.begin_body()
    for here, file in made:
        while not file.wait_for_end(1):
            pass
        body, stamps, ends = file.reader.collected()
        assert body == b"".join(b"%d|" % (n % 10) for n in range(20))
        assert len(stamps) == len(ends)
        assert all(earlier < later for earlier, later in pairwise(stamps))
        file.close()
        here.close()
    thread.join()


@pytest.mark.parametrize("maker", [COMPILED])
def test_compiled_reader_stamps_while_python_is_busy(maker: str) -> None:
    here, there = pair()
    with here, there:
        file = response(maker, here, PATIENCE_S)
        sent: list[int] = []

        def send() -> None:
            for _ in range(20):
                time.sleep(0.01)
                sent.append(time.perf_counter_ns())
                there.sendall(b"x")

        file.head.framing = 20 + 160
        file.begin_body()
        child = os.fork()
        if child == 0:  # a process, as a thread would wait for the interpreter too
            send()
            os.write(there.fileno(), b"".join(stamp.to_bytes(8, "little") for stamp in sent))
            os._exit(0)
        until = time.perf_counter() + PATIENCE_S
        while file.reader.status == "running" and time.perf_counter() < until:  # blocks gevent meanwhile
            pass
        os.waitpid(child, 0)
        assert file.reader.status == "complete"
        body, stamps, ends = file.reader.collected()
        sent = [int.from_bytes(body[at : at + 8], "little") for at in range(20, 180, 8)]
        # A reader that waited for Python would need one read. On a busy machine, the thread may read two bytes at once.
        assert len(stamps) >= 5
        for stamp, end in zip(stamps, ends, strict=True):
            assert end > 20 or sent[end - 1] <= stamp < (sent[end] if end < 20 else stamps[-1] + 1)
        file.close()


TICK_S = 0.02


@pytest.mark.parametrize("maker", [COMPILED])
def test_lag_of_the_reading_thread_is_measured(maker: str) -> None:
    here, there = pair()
    with here, there:
        file = response(maker, here, PATIENCE_S)
        readers = socket_reader.compiled
        assert readers is not None
        began = time.perf_counter()
        readers.lags()
        wait_until(readers.lags, "a tick of the thread")  # this takes all that were due before it
        lags: list[float] = []

        def ten() -> bool:
            lags.extend(readers.lags())
            return len(lags) >= 10

        wait_until(ten, "ten ticks of the thread")
        took = time.perf_counter() - began
        file.close()
    # One tick every 20 ms, including late ones.
    assert TICK_S * (len(lags) - 1) <= took
    assert all(0 <= lag <= took for lag in lags)


@pytest.mark.parametrize("maker", MAKERS)
def test_head_that_arrives_in_pieces_is_awaited(maker: str) -> None:
    here, there = pair()
    with here, there:
        file = response(maker, here, 10)
        there.sendall(CHUNKED_HEAD[:-1])
        settle(lambda: file.reader.head(0) == CHUNKED_HEAD[:-1])
        reading = gevent.spawn(file.read_head)
        gevent.sleep(0)
        assert not reading.ready()
        there.sendall(CHUNKED_HEAD[-1:] + b"0\r\n\r\n")
        reading.get(timeout=PATIENCE_S)
        assert (file.head.status, file.head.framing) == (200, CHUNKED)
        file.begin_body()
        assert file.wait_for_end(PATIENCE_S)
        assert not file.is_last
        file.close()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("sent", "outcome"), [(b"", "cut"), (CHUNKED_HEAD[:-1], "protocol")])
def test_end_before_the_head_is_a_cut_and_within_it_a_protocol_error(maker: str, sent: bytes, outcome: str) -> None:
    here, there = pair()
    with here, there:
        file = response(maker, here, 10)
        there.sendall(sent)
        there.close()
        with pytest.raises(Failure) as error:
            file.read_head()
        assert error.value.outcome == outcome
        file.close()


def test_compiled_reader_repeats_the_limits_of_python() -> None:
    source = (CHECKOUT / "asr_load/http/_socket_reader.c").read_text()
    defined = re.findall(r"#define (\w+) (?:\(\(size_t\))?(\d+)(?: << (\d+))?", source)
    in_c = {name: int(number) << int(shift or 0) for name, number, shift in defined}
    for name in ("MAX_BYTES", "MAX_WIRE_BYTES", "MAX_READS", "MAX_HEAD_BYTES"):
        assert in_c[name] == getattr(limits, name), name
    assert in_c["MAX_SIZE_LINE"] == MAX_LINE
    assert in_c["READ_BYTES"] == TAKE_BYTES
    assert in_c["REST_NS"] == socket_reader.REST_S * 1e9
