"""Requests before a test: what the server says of itself, whether it is ready, and its limits."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from asr_load.apis.api import MODELS
from asr_load.errors import InputError
from asr_load.http import server_info
from asr_load.http.server_info import ask_server, list_models
from asr_load.http.transport import Transport
from asr_load.text import MAX_CHARS, Intake
from harness.models import STREAM, answering
from harness.ports import free_port
from harness.proxies import PAUSE_S, never_ending
from harness.runs import FAST, run
from harness.serving import serve

LIMIT_S = 0.5
"""The limit for connecting."""


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


def test_server_info_may_be_deep_and_long(clips: Path, tmp_path: Path) -> None:
    """It is JSON at the limit of Python's recursion, with a very long name and a very large number."""
    odd: dict[str, Any] = {"id": "m" * 400_000, "size": 10**400}
    for _ in range(900):
        odd = {"id": "m", "more": odd}
    shallow = {"id": "m" * 400_000, "size": 10**400, "text": "x" * 100_000}
    with answering((200, STREAM), models=[odd]) as host:
        assert MODELS not in ask_server(host, {}, Intake(), Transport())
    with answering((200, STREAM), models=[shallow, {"id": "small"}]) as host:
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "1", "--model", "none", preflight=True)
    assert done.code == 0
    assert "the server does not list --model none, but small" in done.err
    kept = json.loads((done.results / "run.json").read_text())["server"][MODELS]["data"][0]
    assert kept["size"] is None
    assert len(kept["text"]) <= MAX_CHARS
    assert "m" * 1000 not in done.out + done.err


def test_models_are_listed_for_the_form() -> None:
    with answering((200, STREAM), models=["a", "b"]) as host:
        assert list_models(host, {}, Intake(), Transport()) == ["a", "b"]
    with answering((200, STREAM)) as host:  # 404
        assert list_models(host, {}, Intake(), Transport()) == []


def test_list_of_models_has_a_limit_on_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_info, "PATIENCE_S", LIMIT_S)
    with (
        never_ending(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"a", PAUSE_S) as place,
        pytest.raises(InputError, match="no complete response within"),
    ):
        list_models(f"http://{place}", {}, Intake(), Transport())
    closed = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=f"{closed} does not answer .*refused"):
        list_models(closed, {}, Intake(), Transport())


class _Models(http.server.BaseHTTPRequestHandler):
    """A server that lists a model and reports how it was started."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        words: dict[str, Any] = {
            "/v1/models": {"object": "list", "data": [{"id": "google/gemma-3n-E4B-it", "object": "model"}]},
            "/get_server_info": {
                "tp_size": 2,
                "api_key": "sk-of-the-server",
                "max_total_tokens": 4096,
                "hf_token": "hf_x",
            },
        }
        body = json.dumps(words[self.path]).encode() if self.path in words else b"not here"
        self.send_response(200 if self.path in words else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def models() -> Iterator[str]:
    _Models.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Models) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_model_that_is_served_but_not_listed_is_tested(models: str, clips: Path, tmp_path: Path) -> None:
    words = ("-u", "1", "--requests", "2", "--model", "google/gemma-3n")
    done = run(models, clips, tmp_path / "r", *words, preflight=True)
    assert (done.code, len(done.records)) == (0, 2), done.err
    assert (
        "the server does not list --model google/gemma-3n, but google/gemma-3n-E4B-it; the trial request succeeded"
        in done.err
    )


def test_server_that_lists_only_default_accepts_any_model(clips: Path, tmp_path: Path) -> None:
    """The README's command line, with the embedded server in place of SGLang."""
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "2", "--model", "openbmb/MiniCPM-o-2_6")
    assert done.code == 0, done.err
    assert json.loads((done.results / "run.json").read_text())["server"]["/v1/models"]["data"][0]["id"] == "default"


@pytest.mark.parametrize("model", ["default", "google/gemma-3n-E4B-it", "google/gemma-3n-E4B-it:my-adapter"])
def test_server_info_is_stored_without_secrets(models: str, clips: Path, tmp_path: Path, model: str) -> None:
    done = run(models, clips, tmp_path / "r", "-u", "1", "--requests", "2", "--model", model)
    assert done.code == 0, done.err
    text = (done.results / "run.json").read_text()
    said = json.loads(text)["server"]
    assert said["/v1/models"]["data"][0]["id"] == "google/gemma-3n-E4B-it"
    assert said["/get_server_info"] == {"tp_size": 2, "api_key": "***", "max_total_tokens": 4096, "hf_token": "***"}
    assert "/version" not in said
    assert "sk-mine" not in text
    assert sorted(_Models.asked) == ["/get_server_info", "/v1/models", "/version"]


@pytest.mark.long
def test_silent_server_delays_the_start_by_seconds_only(clips: Path, tmp_path: Path) -> None:
    """It accepts connections and never responds: the request for its info ends after two seconds."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host = f"http://127.0.0.1:{mute.getsockname()[1]}"
        words = ("-u", "1", "--requests", "1", "--stall-timeout", "1", "--model", "any")
        done = run(host, clips, tmp_path / "r", *words)
    assert [record["outcome"] for record in done.records] == ["stalled"]
