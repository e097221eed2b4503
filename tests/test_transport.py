"""How to reach a server: proxies, authorities, and the limit on connecting."""

from __future__ import annotations

import base64
import socket
import ssl
from dataclasses import replace
from pathlib import Path

import gevent
import pytest
import trustme

from asr_load.http.transport import Transport, proxy_of_environment
from asr_load.stream.record import Record
from harness.checks import error_of
from harness.fleets import info
from harness.patience import PATIENCE_S
from harness.peer import LIMITS, SOUND, Client, talk
from harness.proxies import PAUSE_S, never_ending, proxy
from harness.realtime import utter
from harness.runs import Run, answer, canned, run

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


VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def two(host: str, clips: Path, folder: Path, *words: str | Path) -> Run:
    return run(host, clips, folder / "r", "-u", "1", "--requests", "2", *words)


ANSWERS = [answer("one", length=True), answer("two", length=True)]


@pytest.mark.parametrize("reader", ["auto", "python"])
def test_proxy_resolves_the_host_name(clips: Path, tmp_path: Path, reader: str) -> None:
    with canned(ANSWERS) as (server, _), proxy(server) as (address, heads):
        done = two("http://speech.invalid", clips, tmp_path, "--proxy", address, "--reader", reader)
    assert [record["text"] for record in done.records] == ["one", "two"]
    assert all(record["ttft"] > 0 for record in done.records)
    assert heads[0].startswith("POST http://speech.invalid/v1/chat/completions HTTP/1.1\r\n")
    assert info(done)["proxy"] == address
    assert done.summary["connections"]["opened"] == 1  # the connection is kept


def test_tls_goes_through_the_proxy_by_connect(clips: Path, tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("speech.invalid").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with canned(ANSWERS, context) as (server, _), proxy(server) as (address, heads):
        done = two("https://speech.invalid", clips, tmp_path, "--proxy", address, "--ca", tmp_path / "ca.pem")
    assert [record["text"] for record in done.records] == ["one", "two"]
    (head,) = heads  # the connection is kept
    assert head.startswith("CONNECT speech.invalid:443 HTTP/1.")


def test_proxy_of_the_environment_is_used(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with canned(ANSWERS) as (server, _), proxy(server) as (address, heads):
        monkeypatch.setenv("HTTP_PROXY", address)
        done = two("http://speech.invalid", clips, tmp_path)
    assert [record["text"] for record in done.records] == ["one", "two"]
    assert heads


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", "http://localhost:9", "http://[::1]:9", "http://a.example.com"])
def test_no_proxy_of_the_environment_excludes_hosts(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "example.com")
    assert proxy_of_environment(host) == ""
    assert proxy_of_environment("http://other.example.org") == "http://proxy:3128"
    assert proxy_of_environment("https://other.example.org") == ""
    monkeypatch.setenv("ALL_PROXY", "http://all:3128")
    assert proxy_of_environment("https://other.example.org") == "http://all:3128"


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_proxy_password_is_only_sent_to_the_proxy(clips: Path, tmp_path: Path, scheme: str) -> None:
    with canned(ANSWERS) as (server, asked), proxy(server) as (address, heads):
        word = address.replace("http://", f"{scheme}someone:pass-word-77@")
        done = two("http://speech.invalid", clips, tmp_path, "--proxy", word)
    basic = base64.b64encode(b"someone:pass-word-77").decode()
    assert [record["outcome"] for record in done.records] == ["ok", "ok"]
    assert f"Proxy-Authorization: Basic {basic}" in heads[0]
    assert info(done)["proxy"] == address
    written = b"".join(file.read_bytes() for file in (tmp_path / "r").rglob("*") if file.is_file())
    for text in (written.decode(), done.out, done.err):
        assert "pass-word-77" not in text
        assert basic not in text
    assert asked


@pytest.mark.parametrize(
    ("scheme", "outcome", "said"),
    [("https", "connect", "the proxy: 407 Who are you"), ("http", "http_407", "Who are you")],
)
def test_refusal_by_the_proxy_is_the_outcome(clips: Path, tmp_path: Path, scheme: str, outcome: str, said: str) -> None:
    with proxy("http://127.0.0.1:9", "407 Who are you") as (address, _):
        done = two(f"{scheme}://speech.invalid", clips, tmp_path, "--proxy", address)
    assert [(record["outcome"], record["error"]) for record in done.records] == [(outcome, said)] * 2


def test_unreachable_proxy_is_a_connect_failure(clips: Path, tmp_path: Path) -> None:
    done = two("http://speech.invalid", clips, tmp_path, "--proxy", "http://127.0.0.1:9")
    assert {(record["outcome"], record["error"]) for record in done.records} == {
        ("connect", "the proxy: Connection refused")
    }


@pytest.mark.parametrize("word", ["socks5://proxy:1080", "http://", "https://proxy"])
def test_invalid_proxy_address_is_refused(word: str) -> None:
    error = error_of("-u", "1", "--host", "http://speech.invalid", "--proxy", word)
    assert error.startswith(f"the proxy {word} is not an address such as http://proxy:3128")


def test_verify_and_proxies_of_the_locustfiles_session_apply() -> None:
    with talk(SOUND, reader="python, TLS") as (client, peer):
        client.transport = client.transport.__class__(verify=True)
        assert client.send(peer.url).outcome == "connect"
        client.session.verify = False
        assert client.send(peer.url).outcome == "ok"
    with talk(SOUND) as (client, peer):
        client.session.proxies = {"http": peer.url.replace("http://", "http://me:mine@").removesuffix("/v1/x?a=b")}
        assert client.send("http://speech.invalid/v1/x").outcome == "ok"
    assert peer.requests[0].startswith(b"POST http://speech.invalid/v1/x HTTP/1.1\r\n")
    assert b"\r\nProxy-Authorization: Basic bWU6bWluZQ==\r\n" in peer.requests[0]
