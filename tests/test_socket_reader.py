"""Both kinds of socket reader: the body they collect, its stamps, and how it ended."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from asr_load.http import socket_reader
from asr_load.http.collector import CHUNKED, UNTIL_CLOSE
from asr_load.http.failure import Failure
from conftest import CHECKOUT
from harness.patience import PATIENCE_S
from harness.serving import wait_until
from harness.socket_readers import COMPILED, MAKERS, collect, head_file, pair, settle, source


@pytest.mark.parametrize("maker", MAKERS)
def test_each_read_has_its_stamp(maker: str) -> None:
    before = time.perf_counter_ns()
    made = collect(maker, [b"3\r\nabc\r\n", b"4\r\n", b"de", b"fg\r\n0\r\n\r\n"], CHUNKED)
    body, stamps, ends = made.collected()
    assert (body, ends, made.status) == (b"abcdefg", [3, 5, 7], "complete")
    assert before < stamps[0] < stamps[1] < stamps[2] == made.last < time.perf_counter_ns()


@pytest.mark.parametrize("maker", MAKERS)
def test_body_may_start_in_the_read_of_the_head(maker: str) -> None:
    here, there = pair()
    with here, there:
        made = source(maker)(here.fileno(), Event())
        for part in (b"head|one", b"two", b"three"):
            known = len(made.head(0))
            there.sendall(part)
            settle(lambda known=known: len(made.head(0)) > known)  # type: ignore[misc]
        first, second = made.stamp(1), made.stamp(11)
        made.begin_body(5, 11)
        assert made.collected() == (b"onetwothree", [first, second, made.last], [3, 6, 11])
        assert first < second < made.last
        assert made.status == "complete"
        made.close()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("framing", "close", "status", "surplus"),
    [
        (6, False, "complete", False),
        (4, False, "complete", True),
        (7, False, "running", False),
        (7, True, "cut", False),
        (UNTIL_CLOSE, False, "running", False),
        (UNTIL_CLOSE, True, "complete", False),
        (0, False, "complete", True),
    ],
)
def test_framing_determines_the_end_of_the_body(
    maker: str, framing: int, close: bool, status: str, surplus: bool
) -> None:
    here, there = pair()
    with here, there:
        made = source(maker)(here.fileno(), Event())
        there.sendall(b"abcdef")
        if close:
            there.close()
            settle(lambda: made.status == "cut")
        else:
            settle(lambda: made.head(0) == b"abcdef")
        made.begin_body(0, framing)
        assert (made.status, made.surplus) == (status, surplus)
        assert made.collected()[0] == b"abcdef"[: framing if framing >= 0 else None]
        made.close()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("size", [1, socket_reader.READ_BYTES, socket_reader.READ_BYTES + 1])
@pytest.mark.parametrize("close", [False, True])
def test_data_and_end_that_came_before_the_first_look_are_read(maker: str, size: int, close: bool) -> None:
    # The kernel reports a socket once: unread data would stay unread forever.
    here, there = pair()
    with here, there:
        there.sendall(b"x" * size)
        if close:
            there.close()
        made = source(maker)(here.fileno(), Event())
        made.begin_body(0, UNTIL_CLOSE if close else size)
        settle(lambda: made.status != "running")
        body, stamps, ends = made.collected()
        assert (made.status, len(body), ends[-1]) == ("complete", size, size)
        assert len(stamps) == len(ends)
        made.close()


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
def test_reader_leaves_its_connection_usable_and_no_descriptor_open(maker: str) -> None:
    here, there = pair()
    with here, there:
        head_file(maker, here, PATIENCE_S).close()  # the first reader opens descriptors shared by the process
        before = {entry.name for entry in Path("/proc/self/fd").iterdir()}
        for _ in range(3):
            file = head_file(maker, here, PATIENCE_S)
            there.sendall(b"12")
            assert file.read(2) == b"12"
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
        made.append((here, head_file(maker, here, PATIENCE_S)))
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
        file.begin_body(UNTIL_CLOSE)
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
        file = head_file(maker, here, PATIENCE_S)
        sent: list[int] = []

        def send() -> None:
            for _ in range(20):
                time.sleep(0.01)
                sent.append(time.perf_counter_ns())
                there.sendall(b"x")

        file.begin_body(20 + 160)
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
        file = head_file(maker, here, PATIENCE_S)
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


CHOICES = """
from gevent import monkey; monkey.patch_all()
import logging
from asr_load.errors import InputError
from asr_load.http import self_check, socket_reader
logging.basicConfig(format="%(levelname)s %(message)s")

class Deaf(socket_reader.PythonReader):
    def collected(self):
        body, stamps, ends = super().collected()
        return body[: ends[1]], stamps[:2], ends[:2]

class Late(socket_reader.PythonReader):
    def collected(self):
        body, stamps, ends = super().collected()
        return body, [stamps[-1]] * len(stamps), ends

class Wrong(socket_reader.PythonReader):
    def collected(self):
        body, stamps, ends = super().collected()
        return body.replace(b"two", b"owt"), stamps, ends

attempts = 0
mistake = self_check._mistake
def counted(factory):
    global attempts
    attempts += 1
    return mistake(factory)
self_check._mistake = counted

def chosen(reader):
    try:
        return self_check.choose(reader)[0]
    except InputError as error:
        return f"none: {error}"
print(chosen("auto"), chosen("compiled"), chosen("python"))
socket_reader.compiled = None
print(chosen("auto"), chosen("compiled"))
socket_reader.PythonReader = Deaf
print(chosen("auto"))
socket_reader.PythonReader = Late
print(chosen("python"))
attempts = 0
socket_reader.PythonReader = Wrong
print(chosen("python"))
print(attempts)
"""


@pytest.mark.skipif(socket_reader.compiled is None, reason="no compiled reader here: no C compiler at setup")
def test_best_reader_is_chosen_and_one_that_fails_its_check_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", CHOICES], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    chosen = done.stdout.splitlines()
    assert chosen[:2] == ["compiled compiled python", "python python"]
    assert all(line.startswith("none: reader python: its check failed") for line in chosen[2:5])
    assert all(line.endswith("; no reader works on this machine, so nothing can be measured") for line in chosen[2:5])
    assert chosen[5] == "1"
    first, second, third, fourth = done.stderr.splitlines()
    assert first == "WARNING reader compiled: not compiled on this machine"
    assert second.startswith("WARNING reader python: its check failed 5 times: outcome 'cut' (")
    assert re.match(r"WARNING reader python: its check failed 5 times: event 1 is stamped .* after it was read", third)
    assert fourth == "WARNING reader python: its check failed: text 'Grüße owt!' instead of 'Grüße two!'"


DISTURBED = """
import sys
from gevent import monkey; monkey.patch_all()
import gevent
from asr_load.errors import InputError
from asr_load.http import self_check, socket_reader
from asr_load.http.timeouts import Timeouts

how, disturbed = sys.argv[1], int(sys.argv[2])
mistake, serve, attempts = self_check._mistake, self_check._serve, 0

def attempt(factory):
    global attempts
    attempts += 1
    self_check._LIMITS = Timeouts(60, 0.1 if how == "late" and attempts <= disturbed else 60, 60)
    return mistake(factory)

def disturb(user_connection, sent, connection, address):
    if attempts > disturbed:
        return serve(user_connection, sent, connection, address)
    connection.recv(1 << 20)
    if how == "dropped":
        return connection.close()
    gevent.sleep(60)

self_check._mistake, self_check._serve = attempt, disturb
try:
    print(self_check.choose("python")[0])
except InputError as error:
    print(f"error: {error}")
"""


@pytest.mark.parametrize("how", ["late", "dropped"])
@pytest.mark.parametrize(
    ("attempts", "said"), [(1, "python"), (4, "python"), (5, "error: reader python: its check was inconclusive in 5")]
)
def test_reader_check_disturbed_by_the_machine_is_repeated(how: str, attempts: int, said: str) -> None:
    command = [sys.executable, "-c", DISTURBED, how, str(attempts)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(said), done
    assert done.stderr == ""
