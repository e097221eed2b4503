"""The scripted server as a process: its wire format, its faults as seen on the socket, and its command line."""

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import websockets.sync.client

from asr_server.app import build_app
from asr_server.faults import FAULTS, FaultPlan
from harness import dialects
from harness.patience import PATIENCE_S
from harness.realtime import utter
from harness.serving import (
    chat_body,
    connect,
    events,
    gauges,
    post,
    run_to_end,
    running,
    running_streams,
    serve,
    text_of,
    wait_until,
)

FAST = ("--engine", "scripted", "--tokens", "8", "--ttft-ms", "1", "--itl-ms", "1")
WORDS = "the quick brown fox jumps over the lazy"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(*FAST, "--slow-s", "0.3", "--fault", "404@a clip=ü") as address:
        yield address


def shape(value: Any) -> Any:
    """Keys in order with their types; of a list, the first entry."""
    if isinstance(value, dict):
        return [(key, shape(entry)) for key, entry in value.items()]
    if isinstance(value, list):
        return [shape(entry) for entry in value[:1]]
    return type(value).__name__


def kinds(body: bytes) -> dict[str, Any]:
    """The shape of the first event of each kind."""
    found: dict[str, Any] = {}
    for event in events(body):
        if event == "[DONE]":
            kind = "done"
        elif not event["choices"]:
            kind = "usage"
        else:
            choice = event["choices"][0]
            kind = "finish" if choice["finish_reason"] else "role" if choice["delta"].get("role") else "content"
        found.setdefault(kind, shape(event))
    return found


def flat(body: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(body)
    assert list(error) == ["object", "message", "type", "param", "code"]
    return error


@pytest.mark.parametrize(
    ("usage", "options"),
    [
        ("end", {"include_usage": True}),
        ("", None),
        ("continuous", {"include_usage": True, "continuous_usage_stats": True}),
    ],
)
def test_chat_stream_has_the_shape_of_sglangs(url: str, usage: str, options: dict[str, bool] | None) -> None:
    expected = kinds(dialects.sglang_chat(usage=usage))
    status, headers, body = post(url, chat_body(stream_options=options))
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert kinds(body) == expected


def test_transcription_stream_has_the_shape_of_sglangs(url: str) -> None:
    answer = requests.post(
        url + "/v1/audio/transcriptions", files={"file": b"x" * 64_001}, data={"stream": "true"}, timeout=PATIENCE_S
    )
    assert kinds(answer.content) == kinds(dialects.sglang_transcription())
    assert text_of(answer.content) == WORDS
    plain = requests.post(url + "/v1/audio/transcriptions", files={"file": b"x" * 64_001}, timeout=PATIENCE_S)
    assert plain.json() == {"text": WORDS, "usage": {"type": "duration", "seconds": 3}}


def test_stream_has_role_text_finish_usage_and_done(url: str) -> None:
    _, _, body = post(url, chat_body(b"x" * 12_800))
    role, *chunks, finish, usage, done = events(body)
    assert role["choices"][0]["delta"] == {"reasoning_content": None, "role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks][:2] == ["the", " quick"]
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (10, 8)
    assert done == "[DONE]"
    assert re.fullmatch("[0-9a-f]{32}", role["id"])
    assert {event["id"] for event in (role, *chunks, finish, usage)} == {role["id"]}


def test_token_limits_end_the_text(url: str) -> None:
    _, _, body = post(url, chat_body(max_tokens=3))
    assert (text_of(body), kinds(body)["done"]) == ("the quick brown", "str")
    assert events(body)[-3]["choices"][0]["finish_reason"] == "length"
    _, _, body = post(url, chat_body(max_tokens=9, max_completion_tokens=2))
    assert text_of(body) == "the quick"


def test_chat_response_that_is_not_streamed(url: str) -> None:
    status, _, body = post(url, chat_body(stream=False))
    answer = json.loads(body)
    assert (status, answer["object"]) == (200, "chat.completion")
    assert answer["choices"][0]["message"]["content"] == WORDS
    assert answer["usage"]["completion_tokens"] == 8


def test_escapes_in_a_request_body_are_decoded(url: str) -> None:
    body = json.dumps(chat_body(b"x" * 12_800)).replace("/", "\\/").replace("data:", "\\u0064ata:").encode()
    *_, usage, _ = events(post(url, body)[2])
    assert usage["usage"]["prompt_tokens"] == 10


def test_input_audio_models_and_health(url: str) -> None:
    part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    _, _, body = post(url, chat_body(messages=[{"role": "user", "content": [part]}]))
    assert text_of(body) == WORDS
    assert requests.get(url + "/v1/models", timeout=PATIENCE_S).json()["data"][0]["id"] == "default"
    assert requests.get(url + "/health", timeout=PATIENCE_S).status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"messages": [', "cannot be read"),
        (b'{"messages": "\xff"}', "cannot be read"),
        (chat_body(messages=[{"role": "user", "content": "hello"}]), "this one has 0"),
        (chat_body(messages=[{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": 5}}]}]), "str"),
        (chat_body(max_tokens=-1), "max_new_tokens must be at least 0, got -1."),
        *(
            (chat_body(messages=[{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": u}}]}]), words)
            for u, words in [
                ("http://h/a.wav", "downloads nothing"),
                ("file:///etc/passwd", "downloads"),
                ("data:a", "form"),
            ]
        ),
    ],
)
def test_invalid_request_gets_a_flat_400(url: str, body: dict[str, Any] | bytes, words: str) -> None:
    status, _, answer = post(url, body)
    assert status == 400
    assert words in flat(answer)["message"]


def test_negative_token_limit_gets_sglangs_error(url: str) -> None:
    assert json.loads(post(url, chat_body(max_tokens=-1))[2]) == json.loads(
        dialects.sglang_error("max_new_tokens must be at least 0, got -1.")
    )


def test_invalid_forms_and_paths_get_flat_errors(url: str) -> None:
    path = url + "/v1/audio/transcriptions"
    assert "no file" in flat(requests.post(path, files={"x": b"y"}, timeout=PATIENCE_S).content)["message"]
    assert "multipart" in flat(requests.post(path, data={"x": "y"}, timeout=PATIENCE_S).content)["message"]
    assert flat(requests.get(url + "/nowhere", timeout=PATIENCE_S).content)["code"] == 404
    assert flat(requests.get(url + "/v1/chat/completions", timeout=PATIENCE_S).content)["code"] == 405


def faulty(url: str, name: str, **fields: Any) -> tuple[int, http.client.HTTPMessage, bytes]:
    return post(url, chat_body(**fields), {"X-Fault": name})


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_fault_of_an_http_status(url: str, status: int) -> None:
    got, headers, body = faulty(url, str(status))
    assert (got, flat(body)["code"]) == (status, status)
    assert headers["retry-after"] == ("1" if status == 429 else None)


def test_fault_for_a_clip_and_unknown_fault(url: str) -> None:
    assert post(url, chat_body(), {"X-Clip-Id": "a%20clip%3D%C3%BC"})[0] == 404
    assert post(url, chat_body(), {"X-Clip-Id": "another"})[0] == 200
    status, _, body = faulty(url, "nonsense")
    assert status == 400
    assert "early-end" in flat(body)["message"]


@pytest.mark.parametrize(("name", "text"), [("error", ""), ("error-midstream", "the quick brown")])
def test_fault_error_under_status_200(url: str, name: str, text: str) -> None:
    status, _, body = faulty(url, name)
    *_, error, usage, done = events(body)
    assert (status, done, text_of(body)) == (200, "[DONE]", text)
    assert list(error) == ["error"]
    assert error["error"]["code"] == 503
    assert usage["usage"]["completion_tokens"] == usage["usage"]["prompt_tokens"] == 0


def test_fault_early_end_closes_the_connection(url: str) -> None:
    with pytest.raises(http.client.IncompleteRead) as cut:
        faulty(url, "early-end")
    assert text_of(cut.value.partial) == "the quick brown"


def test_fault_reset_resets_the_connection(url: str) -> None:
    with pytest.raises(ConnectionResetError):
        faulty(url, "reset")


def test_fault_stall_and_hang_last_until_the_client_leaves(url: str) -> None:
    for name, chunks in (("stall", 3), ("hang", 0)):
        connection = connect(url)
        connection.request("POST", "/v1/chat/completions", json.dumps(chat_body()), {"X-Fault": name})
        connection.sock.settimeout(0.5)
        got = b""
        with pytest.raises(TimeoutError):
            while True:
                got += connection.sock.recv(65536)
        connection.close()
        assert got.count(b": sent_at=") == chunks


@pytest.mark.parametrize(("name", "text"), [("no-done", WORDS), ("no-end", WORDS), ("no-usage", WORDS), ("empty", "")])
def test_faults_that_omit_events(url: str, name: str, text: str) -> None:
    _, _, body = faulty(url, name)
    parts = {"role", "content", "finish", "usage", "done"}
    gone = {"no-done": {"done"}, "no-end": {"finish", "usage", "done"}, "no-usage": {"usage"}, "empty": {"content"}}
    assert text_of(body) == text
    assert kinds(body).keys() == parts - gone[name]


def test_fault_half_event_ends_within_an_event(url: str) -> None:
    _, _, body = faulty(url, "half-event")
    assert not body.endswith(b"\n")
    with pytest.raises(json.JSONDecodeError):
        events(body)


def test_fault_broken_event_does_not_end_the_stream(url: str) -> None:
    for name, wrong in (("bad-utf8", UnicodeDecodeError), ("bad-json", json.JSONDecodeError)):
        _, _, body = faulty(url, name)
        assert body.endswith(b"data: [DONE]\n\n")
        with pytest.raises(wrong):
            events(body)


def test_fault_giant_event_has_4_mib(url: str) -> None:
    _, _, body = faulty(url, "giant-event")
    assert len(text_of(body)) == len(WORDS) + 4 * 1024 * 1024


def test_fault_abort_multi_and_reasoning(url: str) -> None:
    _, _, body = faulty(url, "abort")
    assert events(body)[-3]["choices"][0]["finish_reason"] == "abort"
    _, _, body = faulty(url, "multi")
    assert (text_of(body), body.count(b": sent_at=")) == (WORDS, 2)
    _, _, body = faulty(url, "reasoning")
    deltas = [event["choices"][0]["delta"] for event in events(body)[1:4]]
    assert "".join(delta["reasoning_content"] for delta in deltas) == "Listening to the audio."
    assert text_of(body) == WORDS
    assert events(body)[-2]["usage"]["reasoning_tokens"] == 3


def test_fault_json_redirect_and_slow_headers(url: str) -> None:
    _, headers, body = faulty(url, "json")
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["choices"][0]["message"]["content"] == WORDS
    assert faulty(url, "redirect")[0] == 307
    followed = requests.post(
        url + "/v1/chat/completions", json=chat_body(), headers={"X-Fault": "redirect"}, timeout=PATIENCE_S
    )
    assert text_of(followed.content) == WORDS
    before = time.perf_counter()
    assert faulty(url, "slow-headers")[0] == 200
    assert time.perf_counter() - before >= 0.3


def test_fault_refuse_closes_the_port_for_a_while() -> None:
    with serve(*FAST) as url:
        host, port = urlsplit(url).netloc.split(":")
        with pytest.raises(ConnectionResetError):
            faulty(url, "refuse")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=PATIENCE_S)

        def answers() -> bool:
            with contextlib.suppress(ConnectionRefusedError):
                return post(url, chat_body())[0] == 200
            return False

        wait_until(answers, "the port is open again")


def test_random_faults_are_reproducible_by_seed() -> None:
    def statuses(seed: str) -> list[int]:
        with serve(*FAST, "--fault", "500=0.3", "--fault", "429=0.3", "--seed", seed) as url:
            return [post(url, chat_body())[0] for _ in range(40)]

    first = statuses("1")
    assert set(first) == {200, 429, 500}
    assert statuses("1") == first
    assert statuses("2") != first


def test_full_queue_gets_sglangs_response() -> None:
    options = ("--engine", "scripted", "--ttft-ms", "60000", "--slots", "1", "--max-queued-requests", "1")
    with serve(*options) as url:
        held = []
        for running_requests, queued in ((1, 0), (1, 1)):
            held.append(connect(url))
            held[-1].request("POST", "/v1/chat/completions", json.dumps(chat_body()))
            wait_for_gauges(url, running_requests, queued)
        status, _, body = post(url, chat_body())
        error, usage, done = events(body)
        assert (status, error["error"]["code"], done) == (200, 503, "[DONE]")
        assert error["error"]["message"] == "The request queue is full."
        assert usage["usage"]["total_tokens"] == 0
        status, _, body = post(url, chat_body(stream=False))
        assert (status, flat(body)["message"]) == (503, "The request queue is full.")
        held[0].close()  # the request in service ends, so the waiting one is served
        wait_for_gauges(url, 1, 0)
        held[1].close()
        wait_for_gauges(url, 0, 0)


def wait_for_gauges(url: str, running_requests: int, queued: int) -> None:
    wait_until(lambda: gauges(url) == (running_requests, queued), f"{running_requests} served, {queued} queued")


def test_api_key_is_required() -> None:
    with serve(*FAST, "--api-key", "s3cret") as url:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            status, _, body = post(url, chat_body(), headers)
            assert (status, json.loads(body)) == (401, {"error": "Unauthorized"})
        assert post(url, chat_body(), {"Authorization": "Bearer s3cret"})[0] == 200
        assert requests.get(url + "/v1/models", timeout=PATIENCE_S).status_code == 401
        assert requests.get(url + "/health", timeout=PATIENCE_S).status_code == 200


def test_metrics_have_sglangs_names(url: str) -> None:
    post(url, chat_body())
    page = requests.get(url + "/metrics", timeout=PATIENCE_S).text
    for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "queue_time"):
        counts = re.findall(rf'sglang:{name}_seconds_bucket{{le="\+Inf",model_name="default"}} (.*)', page)
        assert float(counts[0]) >= 1
    for name in ("prompt_tokens_total", "generation_tokens_total"):
        assert f'sglang:{name}{{model_name="default"}}' in page


def test_stamps_file_has_the_times_of_the_chunks(tmp_path: Path) -> None:
    file = tmp_path / "stamps.jsonl"
    options = ("--engine", "scripted", "--tokens", "10", "--ttft-ms", "20", "--itl-ms", "3", "--tokens-per-chunk", "3")
    with serve(*options, "--stamps", str(file)) as url:
        assert file.read_bytes() == b""
        _, _, body = post(url, chat_body(), {"X-Request-Id": "mine"})
        post(url, chat_body(), {"X-Fault": "abort"})
    first, second = map(json.loads, file.read_text().splitlines())  # the server has ended, so all lines are written
    sent = [float(stamp) for stamp in re.findall(rb"^: sent_at=(\d+\.\d{9})$", body, re.MULTILINE)]
    assert first["sent_at"] == pytest.approx(sent, abs=1e-8)
    assert (first["request_id"], first["tokens"], first["fault"], len(sent)) == ("mine", 10, None, 4)
    assert sent == sorted(sent)
    due = [first["received_at"] + 0.02 + 0.009 * chunk for chunk in range(4)]
    assert all(at >= when for at, when in zip(sent, due, strict=True))
    assert (second["fault"], second["tokens"], len(second["sent_at"])) == ("abort", 9, 3)
    assert re.fullmatch("[0-9a-f]{32}", second["request_id"])


def test_text_of_a_file_is_sent(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("eins\nzwei drei", encoding="utf-8")
    with serve(*FAST, "--text", str(tmp_path / "text.txt")) as url:
        assert text_of(post(url, chat_body(max_tokens=4))[2]) == "eins zwei drei eins"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fault", "nonsense"], "early-end"),
        (["--fault", "500=2"], "from 0 to 1"),
        (["--fault", "500=0.6", "--fault", "400=0.6"], "more than 1"),
        (["--engine", "moonshine", "--ttft-ms", "5"], "--ttft-ms cannot be used with --engine moonshine"),
        (["--engine", "moonshine", "--sender", "python"], "--sender cannot be used with --engine moonshine"),
        (
            ["--host", "http://127.0.0.1:1"],
            "--host http://127.0.0.1:1 is a URL: use a name or an IP address to listen",
        ),
        (["--engine", "scripted", "--threads", "2"], "--threads cannot be used with --engine scripted"),
        (["--engine", "scripted", "--itl-ms", "-1"], "at least 0"),
        (["--engine", "scripted", "--itl-ms", "nan"], "at least 0"),
        (["--engine", "scripted", "--tokens", "-5"], "at least 0"),
        (["--engine", "scripted", "--max-queued-requests", "1"], "--slots"),
        (["--engine", "scripted", "--text", "/nowhere/x"], "/nowhere/x"),
        (["--port", "70000"], "65535"),
        (["--engine", "whisper"], "moonshine"),
    ],
)
def test_invalid_server_option_gives_a_one_line_error(options: list[str], words: str) -> None:
    ended = run_to_end(*options)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert words in ended.stderr


def test_port_in_use_gives_a_one_line_error() -> None:
    with serve(*FAST) as url:
        ended = run_to_end(*FAST, "--port", url.rpartition(":")[2])
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "cannot listen on 127.0.0.1:" in ended.stderr


def test_missing_package_gives_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('gone', name='uvicorn')")
    ended = run_to_end(*FAST, **os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "pip install -r requirements-server.txt -r requirements-recognizer.txt" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_server_with_open_streams(number: signal.Signals) -> None:
    with running("--engine", "scripted", "--tokens", "100000") as (url, process):
        connection = connect(url)
        connection.request("POST", "/v1/chat/completions", json.dumps(chat_body()))
        assert connection.getresponse().status == 200
        process.send_signal(number)
        try:
            assert process.wait(PATIENCE_S) == 128 + number
        except subprocess.TimeoutExpired:
            pytest.fail("it does not stop")
        finally:
            connection.close()


def test_client_that_leaves_a_session_early_causes_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    """The final text is due after the client left, but before the server has noticed."""
    slow = {"X-Fault": "ws-slow-reader"}
    with running(*FAST, "--final-ms", "1", "--realtime", "vllm") as (url, _):
        with websockets.sync.client.connect(
            f"{url.replace('http', 'ws')}/v1/realtime", additional_headers=slow
        ) as session:
            for event in (
                {"type": "session.update", "model": "default"},
                {"type": "input_audio_buffer.commit"},
                {"type": "input_audio_buffer.append", "audio": "AAAA"},
                {"type": "input_audio_buffer.commit", "final": True},
            ):
                session.send(json.dumps(event))
            session.socket.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: running_streams(url) == 0, "the session is over")
    assert "Traceback" not in capfd.readouterr().err


def test_unknown_fault_lists_every_fault() -> None:
    ended = run_to_end("--fault", "?")
    assert all(name in ended.stderr for name in FAULTS)


def test_too_large_content_length_is_refused_before_the_body(url: str) -> None:
    connection = connect(url)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", str(600 << 20))
    connection.endheaders()
    response = connection.getresponse()
    assert (response.status, response.headers["Connection"]) == (413, "close")
    connection.close()


PART = b'--a\r\nContent-Disposition: form-data; name="file"; filename="b"\r\n\r\n'


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/audio/transcriptions"])
def test_body_without_a_length_is_read_up_to_the_limit(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr_server.app.MAX_BODY_BYTES", 1000)
    reads, sent = itertools.count(1), list[Any]()

    async def receive() -> dict[str, Any]:
        number = next(reads)
        assert number <= 11, "it reads on"
        return {"type": "http.request", "body": PART if number == 1 else b"x" * 100, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"multipart/form-data; boundary=a")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b"", "root_path": ""}
    service = SimpleNamespace(metrics=SimpleNamespace(count=lambda _: None))
    app = build_app(service, "m", FaultPlan([], 0), None)  # type: ignore[arg-type]
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 413


def test_sessions_leave_no_descriptor_open() -> None:
    def count() -> int:
        return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))

    with running(*FAST, "--realtime", "vllm") as (url, process):
        session = f"{url.replace('http', 'ws', 1)}/v1/realtime"
        assert utter(session).ok  # the first session opens shared descriptors
        before = count()
        for _ in range(2):
            assert utter(session).ok
        wait_until(lambda: count() <= before, "the descriptors of all sessions are closed")
