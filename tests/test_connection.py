"""A user's connection: how it opens, sends, and is kept where allowed."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from asr_load.http.transport import Timeouts
from harness.answers import each_reader
from harness.patience import PATIENCE_S
from harness.peer import OK, OVER_TLS, READERS, SOUND, STREAM, TLS, Client, server_context, talk
from harness.serving import wait_until

BIG: list[bytes | memoryview] = [b"{", memoryview(b"1" * (24 << 20)), b"}"]
"""More than the buffers of two kernels hold."""


@contextmanager
def server(
    serve: Callable[[socket.socket], None], reader: str, address: str = "127.0.0.1", late_s: float = 0.0
) -> Iterator[str]:
    """The URL of a server that passes each connection to a function in a thread. If the reader's name says so, it uses
    TLS, and starts the handshake `late_s` seconds late."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    tls = reader.endswith(TLS)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=work, args=(listener.accept()[0],), daemon=True).start()

    def work(plain: socket.socket) -> None:
        time.sleep(late_s)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            connection = stack.enter_context(plain)
            if tls:
                connection = stack.enter_context(server_context().wrap_socket(plain, server_side=True))
            serve(connection)

    with socket.create_server((address, 0), family=family) as listener:
        threading.Thread(target=accept, daemon=True).start()
        host = f"[{address}]" if ":" in address else address
        yield f"http{'s' * tls}://{host}:{listener.getsockname()[1]}/v1/x"


def read_all(connection: socket.socket, of: bytes) -> bytes:
    data = bytearray()
    while not data.endswith(of) and (more := connection.recv(1 << 20)):
        data += more
    return bytes(data)


@each_reader
@pytest.mark.parametrize("answer", ["refused", "closed too", "taken"])
def test_response_before_the_end_of_the_upload_is_read(reader: str, answer: str) -> None:
    """The server refuses the body and stops reading; or it also closes; or it responds early and reads everything."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"
    taken: list[int] = []
    done, over = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 10)
        if answer == "taken":
            connection.sendall(SOUND)
            time.sleep(0.1)
            taken.append(len(read_all(connection, b"}")))
            done.set()
        else:
            connection.sendall(refusal)
            if answer == "closed too":
                wait_until(lambda: client.user_connection.headers is not None, "the client has read the refusal")
            else:
                over.wait(PATIENCE_S)  # the client does not wait for this

    client = Client(reader)
    with server(serve, reader) as url:
        record = client.send(url, list(BIG))
        over.set()
        if answer == "taken":
            assert record.outcome == "ok"
            assert done.wait(PATIENCE_S)
            assert taken[0] > 23 << 20
        else:
            assert (record.outcome, record.error) == ("http_413", "big")
            # The rest of the body must not be read as a request, so the connection is closed.
            assert client.user_connection.connection is not None
            assert client.user_connection.connection.sock is None
        client.user_connection.close()


@each_reader
def test_upload_without_progress_is_stalled(reader: str) -> None:
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 10)
        over.wait(PATIENCE_S)

    with server(serve, reader) as url:
        client = Client(reader, Timeouts(connect=PATIENCE_S, stall=0.4, total=PATIENCE_S))
        record = client.send(url, list(BIG))
        over.set()
        assert (record.outcome, record.error) == ("stalled", "the upload made no progress")
        client.user_connection.close()


@each_reader
def test_body_in_more_pieces_than_one_system_call_takes(reader: str) -> None:
    """A clip of hours has two pieces per second."""
    body = [b"%05d" % number for number in range(5000)]
    taken: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        taken.append(read_all(connection, b"04999"))
        connection.sendall(SOUND)

    with server(serve, reader) as url:
        client = Client(reader)
        assert client.send(url, list(body)).outcome == "ok"
        client.user_connection.close()
    assert taken[0].endswith(b"".join(body))


@each_reader
def test_half_closed_connection_is_not_reused(reader: str) -> None:
    connections: list[int] = []
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        connections.append(1)
        read_all(connection, b"}")
        connection.sendall(SOUND)
        connection.shutdown(socket.SHUT_WR)
        over.wait(PATIENCE_S)

    with server(serve, reader) as url:
        client = Client(reader)
        assert [client.send(url).outcome for _ in range(3)] == ["ok"] * 3
        over.set()
        assert len(connections) == 3
        client.user_connection.close()


@each_reader
def test_each_request_opens_a_connection_without_keep_alive(reader: str) -> None:
    """Connection time is separate from all latencies."""
    with talk(SOUND, SOUND, SOUND, reader=reader) as (client, peer):
        client.keep = False
        began = time.perf_counter()
        told = [client.send(peer.url) for _ in range(3)]
        took = time.perf_counter() - began
    assert peer.connections == 3
    assert all(record.connect is not None and record.connect > 0 for record in told)
    assert sum((record.connect or 0) + (record.stream_end or 0) for record in told) < took
    with talk(SOUND, SOUND, reader=reader) as (client, peer):
        told = [client.send(peer.url) for _ in range(2)]
    assert [record.connect is None for record in told] == [False, True]


@pytest.mark.parametrize("reader", OVER_TLS)
def test_slow_tls_handshake_is_in_no_latency(reader: str) -> None:
    def serve(connection: socket.socket) -> None:
        read_all(connection, b"}")
        connection.sendall(SOUND)

    with server(serve, reader, late_s=0.3) as url:
        client = Client(reader)
        began = time.perf_counter()
        record = client.send(url)
        took = time.perf_counter() - began
        assert record.outcome == "ok"
        assert record.connect is not None
        assert record.ttft is not None
        assert record.connect >= 0.3
        assert record.ttft <= took - record.connect
        client.user_connection.close()


@pytest.mark.parametrize("reader", OVER_TLS)
def test_tls_session_is_resumed(reader: str) -> None:
    with talk(SOUND, SOUND, SOUND, reader=reader) as (client, peer):
        client.keep = False
        assert [client.send(peer.url).outcome for _ in range(3)] == ["ok"] * 3
    assert (peer.connections, peer.resumed) == (3, 2)


@each_reader
def test_tls_tickets_are_not_a_response(reader: str) -> None:
    """Tickets may arrive at any time, and the connection stays usable."""
    with talk(SOUND, [SOUND, 0.1], SOUND, reader=reader) as (client, peer):
        for _ in range(3):
            assert client.send(peer.url).outcome == "ok"
            time.sleep(0.05)
    assert (peer.connections, client.user_connection.shared.dropped) == (1, 0)


@pytest.mark.parametrize("reader", READERS)
def test_ipv6_address_is_connected_to(reader: str) -> None:
    heads: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        heads.append(read_all(connection, b"}"))
        connection.sendall(SOUND)

    try:
        with server(serve, reader, "::1") as url:
            client = Client(reader)
            record = client.send(url)
            client.user_connection.close()
    except OSError:
        pytest.skip("no IPv6 here")
    place = url.removeprefix("http://").removesuffix("/v1/x")
    assert record.outcome == "ok"
    assert record.replica == place
    assert f"\r\nHost: {place}\r\n".encode() in heads[0]


def test_upstream_is_connected_to_with_the_host_of_the_url() -> None:
    with talk(SOUND, SOUND) as (client, peer), talk(SOUND) as (_, other):
        ports = [int(one.url.split(":")[2].split("/")[0]) for one in (peer, other)]
        client.transport = client.transport.__class__(upstream=tuple(("127.0.0.1", port) for port in sorted(ports)))
        client.keep = False
        told = [client.send("http://speech.invalid/v1/x") for _ in range(2)]
    assert [record.outcome for record in told] == ["ok", "ok"]
    assert [record.replica for record in told] == [f"127.0.0.1:{port}" for port in sorted(ports)]
    assert all(b"\r\nHost: speech.invalid\r\n" in one.requests[0] for one in (peer, other))


@each_reader
def test_retried_request_records_the_first_error(reader: str) -> None:
    with talk(SOUND, [0.1, None], SOUND, reader=reader) as (client, peer):
        told = [client.send(peer.url) for _ in range(2)]
    assert told[0].first_error is None
    assert told[1].retries == 1
    assert told[1].first_error in ("Connection reset by peer", "Remote end closed connection without response")


@each_reader
def test_417_to_an_expectation_is_the_outcome(reader: str) -> None:
    failed = b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno"
    continued = b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"\r\n" + STREAM
    with talk(continued, failed, SOUND, reader=reader) as (client, peer):
        told = [client.send(peer.url) for _ in range(3)]
    assert [(record.outcome, record.error) for record in told] == [("ok", None), ("http_417", "no"), ("ok", None)]


def test_alpn_is_http_1_1() -> None:
    assert ssl.HAS_ALPN
    with talk(SOUND, reader="python, TLS") as (client, peer):  # the peer asserts what was negotiated
        assert client.send(peer.url).outcome == "ok"


def test_kept_connection_sends_the_same_bytes_as_requests() -> None:
    with talk(SOUND, SOUND, SOUND) as (client, peer):
        assert [client.send(peer.url).outcome for _ in range(2)] == ["ok"] * 2
        own = {"X-Clip-Id": "ä%20".encode(), "X-Request-Id": b"3"}
        others = {"Accept": "text/event-stream", "Content-Type": "application/json"}
        client.session.post(peer.url, b'{"a":' + b"1" * 100 + b"}", headers={**others, **own})
    assert (peer.connections, client.user_connection.shared.count) == (2, 1)
    heads, bodies = zip(*(request.split(b"\r\n\r\n", 1) for request in peer.requests), strict=True)
    assert bodies[0] == bodies[1] == bodies[2] == b'{"a":' + b"1" * 100 + b"}"
    for number, head in enumerate(heads, 1):
        assert b"\r\nX-Request-Id: %d\r\n" % number in head + b"\r\n"
    lines = [re.sub(rb"(X-Request-Id): \d", rb"\1", head).split(b"\r\n") for head in heads]
    assert lines[0][0] == lines[1][0] == lines[2][0] == b"POST /v1/x?a=b HTTP/1.1"
    assert sorted(lines[0][1:]) == sorted(lines[1][1:]) == sorted(lines[2][1:])


def test_body_larger_than_the_kernel_buffer_is_sent() -> None:
    whole = bytes(range(256)) * 40_000
    with talk(SOUND, SOUND) as (client, peer):
        for _ in range(2):
            record = client.send(peer.url, [whole[:10], memoryview(whole)[10:-5], whole[-5:]])
            assert record.ok
            assert record.upload is not None
            assert record.headers is not None
            assert 0 < record.upload < record.headers
    assert all(request.endswith(b"\r\n\r\n" + whole) for request in peer.requests)


@pytest.mark.parametrize(
    ("answer", "outcome", "error"),
    [
        (b'HTTP/1.1 503 Busy\r\nContent-Length: 26\r\n\r\n{"error":{"message":"full"', "http_503", None),
        (b"HTTP/1.1 307 Go\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n", "http_307", "redirected to http://x/"),
        (b"what is this\r\n\r\n", "protocol", None),
        (OK + b"Connection: close\r\n\r\n" + STREAM, "ok", None),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
            + STREAM[: STREAM.index(b"\n\n") + 2],
            "cut",
            None,
        ),
    ],
)
def test_responses_that_are_no_stream_leave_the_next_request_intact(
    answer: bytes, outcome: str, error: str | None
) -> None:
    with talk(SOUND, answer, SOUND, SOUND) as (client, peer):
        assert client.send(peer.url).ok
        record = client.send(peer.url)
        assert record.outcome == outcome
        assert error is None or (record.error or "").startswith(error)
        assert client.send(peer.url).ok


def test_connection_closed_by_the_server_is_replaced_without_a_failure() -> None:
    with talk(SOUND, OK + b"Connection: close\r\n\r\n" + STREAM, SOUND) as (client, peer):
        assert client.send(peer.url).ok
        # The client has read that the server will close, and does not reuse the connection.
        assert client.send(peer.url).ok
        assert client.send(peer.url).ok
    assert peer.connections == 2
    lone = OK + b"X: Connection: close\r\n\r\n" + STREAM  # closes unannounced: noticed only when it is written to
    with talk(SOUND, lone, SOUND) as (client, peer):
        assert [client.send(peer.url).outcome for _ in range(3)] == ["ok"] * 3
    assert peer.connections == client.user_connection.shared.count == 2
