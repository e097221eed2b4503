"""Servers, proxies and name lookups that never finish, while connecting and before a test."""

from __future__ import annotations

import socket
from dataclasses import replace

import gevent
import pytest

from asr_load.errors import InputError
from asr_load.http import server_info
from asr_load.http.transport import Transport
from asr_load.stream.record import Record
from asr_load.text import Intake
from harness.patience import PATIENCE_S
from harness.peer import LIMITS, Client
from harness.proxies import PAUSE_S, never_ending
from harness.realtime import utter

LIMIT_S = 0.5
"""The limit for connecting."""

HELLO_REQUEST = b"\x16\x03\x03\x00\x04\x00\x00\x00\x00"
"""A TLS record that asks the client to restart the handshake that it is in (RFC 5246, section 7.4.1.1)."""

HEAD, UPGRADE = b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 101 Switching Protocols\r\nX-A: "


def ask(url: str, proxy: str = "") -> Record:
    """The record of a request or of an utterance, with a short limit for connecting only."""
    limits = replace(LIMITS, connect=LIMIT_S)
    if url.startswith("ws"):
        return utter(url, limits=limits, proxy=proxy)
    client = Client("compiled", limits)
    client.transport = Transport(client.transport.verify, proxy=proxy)
    record = client.send(url)
    client.user_connection.close()
    return record


@pytest.mark.parametrize("scheme", ["https", "wss"])
@pytest.mark.parametrize(
    ("piece", "pause_s"), [(HELLO_REQUEST * 1000, 0.0), (HELLO_REQUEST, PAUSE_S)], ids=["a flood", "a drip"]
)
def test_connect_timeout_ends_a_tls_handshake(scheme: str, piece: bytes, pause_s: float) -> None:
    with never_ending(b"", piece, pause_s) as place:
        record = ask(f"{scheme}://{place}/x")
    assert (record.outcome, record.error) == ("connect", "connecting took too long")


@pytest.mark.parametrize("scheme", ["https", "ws"])
def test_connect_timeout_ends_the_response_of_a_proxy(scheme: str) -> None:
    with never_ending(HEAD, b"a") as place:
        record = ask(f"{scheme}://127.0.0.1:1/x", f"http://{place}")
    assert (record.outcome, record.error, record.cause) == ("connect", "connecting took too long", "proxy")


@pytest.mark.parametrize("begin", [b"", UPGRADE], ids=["silence", "a drip"])
def test_connect_timeout_ends_a_websocket_handshake(begin: bytes) -> None:
    with never_ending(begin, b"a" if begin else b"") as place:
        record = ask(f"ws://{place}/x")
    assert (record.outcome, record.cause) == ("connect", "unreachable")
    assert "WebSocket" in (record.error or "")


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_connect_timeout_ends_a_name_lookup(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*_: object, **__: object) -> None:
        gevent.sleep(PATIENCE_S)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr("asr_load.http.addresses.socket.getaddrinfo", search)
    record = ask(f"{scheme}://server.example/x")
    assert (record.outcome, record.error) == ("connect", "connecting took too long")


@pytest.mark.parametrize(
    ("head", "piece", "pause_s"),
    [
        (b"Content-Length: 1000000", b"a", PAUSE_S),
        (b"Transfer-Encoding: chunked", b"1\r\na\r\n" * 10_000, 0.0),
    ],
    ids=["a drip", "small chunks"],
)
def test_requests_before_a_test_have_a_limit_on_the_whole_response(
    head: bytes, piece: bytes, pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_info, "PATIENCE_S", LIMIT_S)
    late = f"no complete response within {LIMIT_S:g} s"
    with never_ending(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % head, piece, pause_s) as place:
        assert server_info.unready(f"http://{place}", {}, Intake(), Transport()) == late
        with pytest.raises(InputError, match=late):
            server_info.flush_cache(f"http://{place}", {}, Intake(), Transport())
        assert server_info.ask_server(f"http://{place}", {}, Intake(), Transport()) == {}


def test_undecodable_response_before_a_test_is_reported() -> None:
    unread = "unsupported content-encoding: br"
    with never_ending(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n", b"a") as place:
        assert server_info.unready(f"http://{place}", {}, Intake(), Transport()) == unread
