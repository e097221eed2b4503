"""Secrets: tokens are read from files, and a key that the server repeats is in no file, page, message or log."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from asr_load.errors import InputError
from asr_load.http.server_info import flush_cache, unready
from asr_load.http.transport import Transport
from asr_load.settings import credentials
from asr_load.text import Intake
from harness.options import parse
from harness.runs import run
from harness.serving import wait_until
from harness.ui import ui

KEY = "sk-very-secret-4711"
FIELDS = f"Server: {KEY}\r\nVia: 1.1 {KEY}\r\nSet-Cookie: {KEY}={KEY}\r\nX-{KEY}: {KEY}\r\nContent-Type: {KEY}\r\n"


def answer(status: str, body: str, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} {KEY}\r\n{FIELDS}{more}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def event(**more: object) -> str:
    choice = {"index": 0, "delta": {"content": f"it says {KEY}", KEY: KEY}, "finish_reason": "stop", KEY: KEY}
    return f"data: {json.dumps({'id': KEY, 'model': KEY, 'choices': [choice], KEY: KEY, **more})}\n\n"


REFUSAL = json.dumps({"error": {"message": f"bad key {KEY}", "type": KEY, "code": KEY}})
ANSWERS = [
    answer("200", f": {KEY}\nid: {KEY}\n{event(usage={KEY: KEY, 'completion_tokens': KEY})}data: [DONE]\n\n"),
    answer("200", event().replace('"stop"', f'"{KEY}"')),
    answer("401", REFUSAL),
    answer("302", "", f"Location: http://other/{KEY}\r\n"),
    answer("500", f"<html><title>{KEY}</title><p>{KEY}</html>"),
    answer("200", f"event: error\ndata: {KEY}\n\n"),
    answer("200", f"event: {KEY}\ndata: {{{KEY}\n\n"),
    answer("200", f"{{{KEY}"),
    f"HTTP/1.1 {KEY}\r\n\r\n".encode(),
    f"HTTP/1.1 200 OK\r\n{FIELDS}Transfer-Encoding: chunked\r\n\r\n{KEY}\r\n".encode(),
    answer("200", event(), f"Content-Encoding: {KEY}\r\n"),
    answer("503", KEY, f"Retry-After: {KEY}\r\n"),
]


def frame(opcode: int, data: bytes) -> bytes:
    return bytes([0x80 | opcode, 126]) + struct.pack(">H", len(data)) + data


def text(**words: object) -> bytes:
    return frame(1, json.dumps({**words, KEY: KEY}).encode())


CREATED = text(type="session.created", id=KEY, created=1)
SESSIONS = [
    [
        text(type=KEY),
        text(type="***"),
        text(type="transcription.delta", delta=f"it says {KEY}"),
        text(type="response.done", response={KEY: KEY}, usage={KEY: KEY}),
    ],
    [text(type="error", error={"code": KEY, "message": KEY})],
    [frame(1, f"{{{KEY}".encode())],
    [frame(8, struct.pack(">H", 1011) + KEY.encode())],
    [frame(0xB, KEY.encode())],
]
HANDSHAKES = [
    answer("403", REFUSAL),
    f"HTTP/1.1 101 {KEY}\r\n{FIELDS}Upgrade: {KEY}\r\nSec-WebSocket-Accept: {KEY}\r\n\r\n".encode(),
    f"{KEY} {KEY}\r\n\r\n".encode(),
]


@contextmanager
def parrot() -> Iterator[str]:
    """The URL of a server that gives each request and session the next response, and one more to the trial request."""
    answers, sessions, handshakes = iter([ANSWERS[0], *ANSWERS]), iter(SESSIONS), iter(HANDSHAKES)
    lists = {
        "/v1/models": json.dumps({"data": [{"id": "default"}, {"id": f"m-{KEY}"}], KEY: KEY}),
        "/get_server_info": json.dumps({KEY: [KEY], "version": KEY}),
        "/version": json.dumps(KEY),
    }

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline():
                head = b"".join(iter(self.rfile.readline, b"\r\n"))
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                self.rfile.read(int(length[1]) if length else 0)
                path = line.split()[1].decode()
                if upgrade := re.search(rb"(?i)sec-websocket-key: *(\S+)", head):
                    self.talk(upgrade[1])
                    return
                if path == "/health":
                    said = f"HTTP/1.1 {KEY}\r\n\r\n".encode()
                elif path in lists:
                    said = answer("200", lists[path])
                else:
                    said = next(answers) if path.startswith("/v1") else answer("400", KEY)
                self.wfile.write(said)
                if b"Content-Length" not in said:
                    return

        def talk(self, key: bytes) -> None:
            messages = next(sessions, None)
            if messages is None:
                self.wfile.write(next(handshakes))
                return
            accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
            upgrade = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
            self.wfile.write(f"HTTP/1.1 101 {KEY}\r\n{FIELDS}{upgrade}\r\n".encode() + CREATED)
            begun = b""
            while len(begun) < 2000:  # some audio has arrived
                begun += self.connection.recv(1 << 16)
            self.wfile.write(b"".join([*messages, frame(8, struct.pack(">H", 1000) + KEY.encode())]))
            while self.connection.recv(1 << 16):
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=partial(server.serve_forever, 0.05), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def holding_the_key(folder: Path) -> list[str]:
    return [str(file) for file in folder.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]


def test_key_repeated_by_the_server_over_http_is_stored_nowhere(clips: Path, tmp_path: Path) -> None:
    words = ("--loglevel", "DEBUG", "--requests", str(len(ANSWERS)), "--csv", str(tmp_path / "rows"))
    with parrot() as host, ui("one process", host, clips, tmp_path, *words, preflight=True, OPENAI_API_KEY=KEY) as page:
        page.start(user_count=1)
        wait_until(partial(page.ended, 1), "the end of the test")
        pages = ["/", "/stats/requests", "/exceptions", "/stats/report", "/streaming/points", "/logs"]
        pages += ["/streaming/records", "/streaming/summary", "/streaming/csv", "/stats/failures/csv"]
        shown = {path: page.text_of(path) for path in pages}
    assert page.lines(1) == len(ANSWERS)
    assert page.asked(1)["workers"][0]["server"] == "***"
    assert [path for path, text in shown.items() if KEY in text] == []
    assert holding_the_key(tmp_path) == []


def test_key_repeated_by_the_server_in_sessions_is_stored_nowhere(clips: Path, tmp_path: Path) -> None:
    number = len(SESSIONS) + len(HANDSHAKES)
    words = ("-u", "1", "--requests", str(number), "--api", "realtime", "--pace", "0", "--loglevel", "DEBUG")
    with parrot() as host:
        done = run(host, clips, tmp_path / "r", *words, "--html", tmp_path / "page.html", OPENAI_API_KEY=KEY)
    outcomes = [record["outcome"] for record in done.records]
    sessions = ["no_final", "stream_error", "protocol", "closed_1011", "protocol"]
    assert outcomes == [*sessions, "ws_403", "protocol", "protocol"]
    assert done.records[0]["events"]["***"] == 2
    assert KEY not in done.out + done.err
    assert holding_the_key(tmp_path) == []


def test_key_repeated_by_the_server_is_in_no_message_before_a_test() -> None:
    with parrot() as host:
        with pytest.raises(InputError) as refused:
            flush_cache(host, {}, Intake([KEY]), Transport())
        assert "returned 400 ***" in str(refused.value)
        assert unready(host, {}, Intake([KEY]), Transport()) == "not HTTP (Invalid status code): HTTP/1.1 ***"


TOKEN = "a-token-of-more-than-16-characters"


def test_token_is_read_from_file_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(credentials.TOKEN, raising=False)
    assert credentials.read_token(parse()) == ""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert credentials.read_token(parse("--fleet-token-file", str(file))) == TOKEN
    monkeypatch.setenv(credentials.TOKEN, "short")
    with pytest.raises(InputError, match="needs 16 or more characters"):
        credentials.read_token(parse())
    assert credentials.read_token(parse("--fleet-token-file", str(file))) == TOKEN
    with pytest.raises(InputError, match="cannot be read: No such file"):
        credentials.read_token(parse("--fleet-token-file", str(tmp_path / "none")))
    file.write_text("")
    with pytest.raises(InputError, match="needs 16 or more characters"):
        credentials.read_token(parse("--fleet-token-file", str(file)))
