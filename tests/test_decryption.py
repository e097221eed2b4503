"""Reading over TLS with each ciphertext reader: plaintext, stamps and how it ends."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import gevent
import gevent.socket
import pytest
from gevent.event import Event

from asr_load.http.collector import CHUNKED, UNTIL_CLOSE, SocketReader
from asr_load.http.decryption import Decryption
from asr_load.http.tls import Tls, ssl_context
from harness.patience import PATIENCE_S
from harness.peer import ca_file, server_context
from harness.socket_readers import COMPILED, MAKERS, pair, settle, source

each_maker = pytest.mark.parametrize("maker", MAKERS)


class Peer:
    """A server's side of TLS. The test decides when to send its bytes."""

    def __init__(self, client: gevent.socket.socket, there: socket.socket) -> None:
        self.client, self.there = client, there
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._server = server_context().wrap_bio(self._in, self._out, server_side=True)
        self.tls = Tls(ssl_context(ca_file(), None), "127.0.0.1", None)
        shaking = gevent.spawn(self.tls.shake_hands, client)
        other = gevent.socket.socket(fileno=os.dup(there.fileno()))
        with other:
            while True:
                try:
                    self._server.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    other.sendall(self._out.read())
                    self._in.write(other.recv(65536))
        shaking.get()
        self.tickets = self._out.read()
        there.setblocking(True)

    def encrypted(self, data: bytes) -> bytes:
        """Encrypt data as one TLS record."""
        self._server.write(data)
        return self._out.read()

    def goodbye(self) -> bytes:
        """The record that announces the end (close_notify)."""
        with contextlib.suppress(ssl.SSLError):
            self._server.unwrap()
        return self._out.read()


@contextmanager
def reading(maker: str, *, late: bool = False) -> Iterator[tuple[Peer, SocketReader, Event, Decryption]]:
    """Yield the peer, the reader of its plaintext, the event that the reader sets, and the decryption. With `late`, the
    test itself sends the peer's tickets, which come before its data."""
    here, there = pair()
    with gevent.socket.socket(fileno=here.detach()) as client, there:
        peer = Peer(client, there)
        if not late:
            there.sendall(peer.tickets)
        come = Event()
        decryption = Decryption(source(maker), client.fileno(), come, peer.tls)
        yield peer, decryption.plaintext, come, decryption
        decryption.close()


@each_maker
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_tls_records_in_any_pieces_are_decrypted(maker: str, size: int) -> None:
    with reading(maker) as (peer, reader, _, _):
        data = b"".join(map(peer.encrypted, (b"5\r\nab", b"cde\r\n", b"0\r\n\r\n")))
        reader.begin_body(0, CHUNKED)
        for at in range(0, len(data), size):
            peer.there.sendall(data[at : at + size])
            gevent.sleep(0)
        settle(lambda: reader.status == "complete")
        assert reader.collected()[0] == b"abcde"


@each_maker
def test_plaintext_has_the_stamp_of_the_read_that_completed_its_record(maker: str) -> None:
    with reading(maker) as (peer, reader, _, _):
        reader.begin_body(0, 4)
        one, two = peer.encrypted(b"ab"), peer.encrypted(b"cd")
        times = []
        for piece in (one[:9], one[9:] + two[:9], two[9:]):
            times.append(time.perf_counter_ns())
            peer.there.sendall(piece)
            gevent.sleep(0.05)
        settle(lambda: reader.status == "complete")
        body, stamps, ends = reader.collected()
        assert (body, ends) == (b"abcd", [2, 4])
        assert times[1] < stamps[0] < times[2] < stamps[1]


@each_maker
def test_each_record_keeps_its_stamp_however_late_python_is(maker: str) -> None:
    """Records that Python takes together arrived separately."""
    if maker == "python without epoll":
        pytest.skip("it stamps a read as it returns")
    with reading(maker) as (peer, reader, _, _):
        reader.begin_body(0, UNTIL_CLOSE)
        gevent.sleep(0.1)
        sent = []
        for _ in range(20):
            sent.append(time.perf_counter_ns())
            peer.there.sendall(peer.encrypted(b"x" * 200))
            time.sleep(0.01)  # blocks gevent meanwhile
        sent.append(time.perf_counter_ns())
        settle(lambda: len(reader.collected()[0]) == 4000)
        _, stamps, ends = reader.collected()
        # Records read together have the stamp of the last one. (The Python reader reads all of them together.)
        last_ends = dict(zip(stamps, ends, strict=True))
        assert maker == "python" or len(last_ends) > 1
        for stamp, end in last_ends.items():
            assert sent[end // 200 - 1] < stamp < sent[end // 200]


@each_maker
def test_possible_end_is_decrypted_immediately_and_other_records_soon(maker: str) -> None:
    with reading(maker) as (peer, reader, come, _):
        peer.there.sendall(peer.encrypted(b"a" * 300))
        reader.begin_body(0, 605)
        for number in range(20):
            peer.there.sendall(peer.encrypted(b"b" * 15))
            gevent.sleep(0.002)
            assert number == 19 or reader.status == "running"
        settle(lambda: len(reader.collected()[0]) == 600)
        come.clear()
        assert not reader.want(-1)
        peer.there.sendall(peer.encrypted(b"end!!"))
        assert come.wait(PATIENCE_S)
        assert reader.status == "complete"


@pytest.mark.parametrize("maker", [COMPILED])
def test_short_record_is_decrypted_sooner_than_a_long_one(maker: str) -> None:
    """The thread wakes Python every 40 ms for records that cannot be the end. The readers in Python have no thread, so
    they decrypt both at once."""
    with reading(maker) as (peer, reader, _, _):
        reader.begin_body(0, UNTIL_CLOSE)
        waits: dict[int, list[float]] = {300: [], 15: []}
        size = 0
        for _ in range(20):
            for length, waited in waits.items():
                began, size = time.perf_counter(), size + length
                peer.there.sendall(peer.encrypted(b"a" * length))
                settle(lambda size=size: len(reader.collected()[0]) == size)  # type: ignore[misc]
                waited.append(time.perf_counter() - began)
        assert median(waits[15]) < median(waits[300])


@each_maker
@pytest.mark.parametrize("framing", [UNTIL_CLOSE, CHUNKED])
@pytest.mark.parametrize("how", ["goodbye", "closed"])
def test_end_of_the_peer_completes_or_cuts_the_body(maker: str, framing: int, how: str) -> None:
    with reading(maker) as (peer, reader, _, _):
        reader.begin_body(0, framing)
        peer.there.sendall(peer.encrypted(b"3\r\nabc\r\n"))
        if how == "goodbye":
            peer.there.sendall(peer.goodbye())
        else:
            peer.there.close()
        settle(lambda: reader.status != "running")
        assert reader.status == ("complete" if framing == UNTIL_CLOSE else "cut")
        assert reader.collected()[0] == (b"3\r\nabc\r\n" if framing == UNTIL_CLOSE else b"abc")


@each_maker
def test_tampered_record_fails_the_read(maker: str) -> None:
    with reading(maker) as (peer, reader, _, _):
        reader.begin_body(0, UNTIL_CLOSE)
        good, bad = peer.encrypted(b"good"), bytearray(peer.encrypted(b"bad"))
        bad[-1] ^= 1
        peer.there.sendall(good + bad)
        settle(lambda: reader.status != "running")
        assert (reader.status, reader.collected()[0]) == ("failed", b"good")
        assert isinstance(reader.failure, ssl.SSLError)


@each_maker
def test_bytes_read_of_the_next_response_are_kept(maker: str) -> None:
    """Tickets behind a response belong to the connection. They are decrypted before the next response."""
    with reading(maker, late=True) as (peer, reader, _, decryption):
        reader.begin_body(0, 0)
        peer.there.sendall(peer.tickets)
        gevent.sleep(0.05)
        assert (reader.status, reader.surplus) == ("complete", False)
        decryption.close()
        peer.there.sendall(peer.encrypted(b"more"))
        again = Decryption(source(maker), peer.client.fileno(), Event(), peer.tls)
        again.plaintext.begin_body(0, 4)
        settle(lambda: again.plaintext.status != "running")
        assert again.plaintext.collected()[0] == b"more"
        again.close()


@each_maker
def test_bytes_beyond_the_response_are_reported_as_surplus(maker: str) -> None:
    with reading(maker) as (peer, reader, _, _):
        reader.begin_body(0, 3)
        peer.there.sendall(peer.encrypted(b"abc") + peer.encrypted(b"and more"))
        settle(lambda: reader.status != "running" and reader.surplus)
        assert (reader.status, reader.collected()[0]) == ("complete", b"abc")
