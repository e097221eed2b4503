"""Requests through a proxy, plain and by CONNECT, which the command line or the environment names."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path

import pytest
import trustme

from asr_load.http.transport import proxy_of_environment
from harness.fleets import info
from harness.proxies import proxy
from harness.runs import Run, answer, canned, run

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
def test_invalid_proxy_address_is_refused(clips: Path, tmp_path: Path, word: str) -> None:
    done = two("http://speech.invalid", clips, tmp_path, "--proxy", word)
    assert done.code == 2
    assert f"error: the proxy {word} is not an address such as http://proxy:3128" in done.err
