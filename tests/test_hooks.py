"""Hooks, cookies and authentication of a locustfile's session."""

from __future__ import annotations

from requests.auth import HTTPDigestAuth

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
