"""Hooks, cookies and authentication of a locustfile's session."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from requests import PreparedRequest, Response
from requests.auth import AuthBase, HTTPDigestAuth

from harness.answers import each_reader
from harness.peer import OK, SOUND, STREAM, talk


@each_reader
def test_hook_sends_a_request_again_for_digest_authentication(reader: str) -> None:
    who = (
        b'HTTP/1.1 401 Who\r\nWWW-Authenticate: Digest realm="r", nonce="n", qop="auth"\r\n'
        b"Content-Length: 4\r\n\r\nwho?"
    )
    with talk(who, SOUND, who, SOUND, reader=reader) as (client, peer):
        client.session.auth = HTTPDigestAuth("someone", "secret-77")
        told = [client.send(peer.url) for _ in range(2)]
    assert [record.outcome for record in told] == ["ok", "ok"]
    assert peer.connections == 1
    assert b"Authorization: Digest username=" in peer.requests[1]
    assert peer.requests[1].endswith(b'{"a":' + b"1" * 100 + b"}")


@each_reader
def test_response_hook_sees_each_response(reader: str) -> None:
    seen: list[int] = []
    with talk(SOUND, SOUND, b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", reader=reader) as (client, peer):
        client.session.hooks["response"].append(lambda response, **_: seen.append(response.status_code))
        assert [client.send(peer.url).outcome for _ in range(3)] == ["ok", "ok", "http_503"]
    assert seen == [200, 200, 503]
    assert peer.connections == 1


def test_cookie_set_by_the_server_is_sent_back() -> None:
    cookie = OK + b"Set-Cookie: seat=7; Path=/\r\n\r\n" + STREAM
    with talk(SOUND, cookie, SOUND) as (client, peer):
        for _ in range(3):
            assert client.send(peer.url).ok
    assert [b"seat=7" in request for request in peer.requests] == [False, False, True]


def test_expired_cookie_is_no_longer_sent() -> None:
    cookie = OK + b"Set-Cookie: seat=7; Path=/\r\n\r\n" + STREAM
    no_cookie = OK + b"Set-Cookie: seat=7; Path=/; Max-Age=0\r\n\r\n" + STREAM
    with talk(cookie, no_cookie, SOUND, SOUND) as (client, peer):
        assert [client.send(peer.url).outcome for _ in range(4)] == ["ok"] * 4
    assert [b"seat=7" in request for request in peer.requests] == [False, True, False, False]


BODY = b'{"error": {"message": "who?"}}'
REFUSAL = (
    b"HTTP/1.1 401 Who Is It\r\nX-Hint: a\r\nX-Hint: b\r\nSet-Cookie: seat=7; Path=/\r\nContent-Encoding: gzip\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(packed := gzip.compress(BODY)), packed)
)


@each_reader
def test_hook_sees_the_head_and_the_body_of_an_error(reader: str) -> None:
    seen: list[Response] = []
    with talk(REFUSAL, SOUND, reader=reader) as (client, peer):
        client.session.hooks["response"].append(lambda response, **_: seen.append(response))
        record = client.send(peer.url)
        assert client.send(peer.url).ok
    assert (record.outcome, record.error) == ("http_401", "who?")
    response = seen[0]
    assert (response.status_code, response.reason, response.headers["x-hint"]) == (401, "Who Is It", "a, b")
    assert (response.json(), response.url) == ({"error": {"message": "who?"}}, peer.url)
    assert response.cookies["seat"] == client.session.cookies["seat"] == "7"
    assert seen[1].status_code == 200
    assert b"seat=7" in peer.requests[1]
    assert peer.connections == 1


class Again(AuthBase):
    """Sends a refused request again, with a token."""

    def __call__(self, prepared: PreparedRequest) -> PreparedRequest:
        prepared.register_hook("response", self.send_again)
        return prepared

    def send_again(self, response: Response, **_: Any) -> Response:
        if response.status_code != 401:
            return response
        prepared = response.request.copy()
        prepared.headers["X-Token"] = response.headers["x-hint"]
        return response.connection.send(prepared)


@each_reader
@pytest.mark.parametrize("closes", [False, True])
def test_request_that_a_hook_sends_again_is_the_one_that_counts(reader: str, closes: bool) -> None:
    refusal = b"HTTP/1.1 401 Who\r\nX-Hint: a\r\n" + (b"Connection: close\r\n" if closes else b"")
    refusal += b"Content-Length: 4\r\n\r\nwho?"
    with talk(refusal, SOUND, refusal, refusal, reader=reader) as (client, peer):
        client.session.auth = Again()
        records = [client.send(peer.url) for _ in range(2)]
    assert [(record.outcome, record.http_status) for record in records] == [("ok", 200), ("http_401", 401)]
    assert [b"X-Token: a\r\n" in request for request in peer.requests] == [False, True, False, True]
    assert peer.connections == (3 if closes else 1)


@each_reader
def test_cookies_of_several_fields_are_kept(reader: str) -> None:
    cookies = OK + b"Set-Cookie: a=1; Path=/\r\nset-cookie: b=2; Path=/\r\n\r\n" + STREAM
    with talk(cookies, SOUND, reader=reader) as (client, peer):
        assert [client.send(peer.url).outcome for _ in range(2)] == ["ok"] * 2
    assert b"a=1; b=2" in peer.requests[1]
