"""The preflight check: an error that every request would have is reported once, with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asr_load.audio.shard import Shards
from asr_load.errors import InputError
from asr_load.http.server_info import unlisted
from asr_load.load.preflight import ask_before_test
from asr_load.load.target import Target, Targets
from asr_load.settings.credentials import Secrets
from asr_load.settings.settings import Settings, read_settings
from conftest import CHECKOUT
from harness.fleets import processes
from harness.models import STREAM, AnsweringServer, answering
from harness.options import parse
from harness.ports import free_port
from harness.runs import FAST, Run, locust, run
from harness.serving import serve, wait_until
from harness.ui import ui


def ask(
    host: str,
    clips: Path,
    *words: str,
    ready_s: float = 0.0,
    trial: bool = True,
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Ask a server before a test with these options. Returns the model that it was found to have, by host."""
    models: dict[str, str] = {}

    def check() -> tuple[Settings, Targets]:
        settings = read_settings(parse(*words), host, Secrets(), models.get(host, ""))
        return settings, Targets({"SpeechUser": Target(settings, Shards(clips))})

    ask_before_test(check, models, {}, ready_s=ready_s, trial=trial, flush=False, meanwhile=meanwhile)
    return models


def test_preparation_runs_while_the_trial_request_waits(clips: Path) -> None:
    prepared: list[str] = []
    with serve("--engine", "scripted", "--tokens", "2", "--ttft-ms", "1500") as host:
        ask(host, clips, meanwhile=lambda: prepared.append("now"))
    assert prepared == ["now"]


WHOLE = b'{"choices":[{"message":{"content":"a b"},"finish_reason":"stop"}]}'


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b'{"error": {"message": "no key"}}', "401: no key: set OPENAI_API_KEY or --api-key"),
        (
            404,
            b'{"detail": "Not Found"}',
            "404: Not Found: check the port and path of --host, --api, and that the server has --model",
        ),
        (
            501,
            b"<!DOCTYPE HTML><html><head><title>Oh</title></head><body><h1>No</h1><p>It&#x27;s POST</p></body></html>",
            "501: No It's POST: this address does not accept such requests: check the port in --host, and --api",
        ),
        (
            400,
            b'{"message": "m is not a multimodal model"}',
            "400: m is not a multimodal model: if the server does not accept a field, omit it (--omit)",
        ),
        (500, b"boom", "500: boom: check the server's log"),
        (200, b'data: {"error": {"message": "cannot hear"}}\n\n', "stream_error: cannot hear: check the server's log"),
        (200, b"<html>a page</html>", "check that the server is OpenAI-compatible"),
        (200, WHOLE, "the response to a trial request was not streamed"),
    ],
)
def test_permanent_failure_of_the_trial_is_reported_once(status: int, body: bytes, said: str, clips: Path) -> None:
    with answering((status, body)) as host, pytest.raises(InputError) as refused:
        ask(host, clips)
    assert said in str(refused.value)
    assert "--no-preflight" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(AnsweringServer.asked) <= 2


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ((500, b"boom"), ""),  # a single failure may be chance
        ((200, b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'), "empty: no text"),
        ((429, b"slowly"), "429: slowly: the server is overloaded: lower -u or the rate"),
    ],
)
def test_temporary_failure_of_the_trial_does_not_stop_the_test(
    first: tuple[int, bytes], said: str, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(first, (200, STREAM)) as host:
        ask(host, clips)
    assert said in capsys.readouterr().err


def test_trial_requests_are_not_measured(clips: Path, tmp_path: Path) -> None:
    with answering((500, b"boom"), (200, STREAM)) as host:
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "3", preflight=True)
    assert done.code == 0, done.err
    assert (len(AnsweringServer.asked), len(done.records), done.summary["requests"]["total"]) == (5, 3, 3)
    with answering((200, STREAM)) as host:
        ask(host, clips, trial=False)
    assert AnsweringServer.asked == []


def test_refused_connection_ends_the_start(clips: Path, tmp_path: Path) -> None:
    done = run(f"http://127.0.0.1:{free_port()}", clips, tmp_path / "r", "-u", "1", "-t", "600", preflight=True)
    assert done.code == 2
    assert "connection refused by http://127.0.0.1:" in done.err
    assert "(--ready-timeout waits for it)" in done.err
    assert not (tmp_path / "r" / "records.jsonl").exists()


def test_ready_timeout_waits_for_a_server_that_starts(clips: Path, tmp_path: Path) -> None:
    port, results = free_port(), tmp_path / "r"
    host = f"http://127.0.0.1:{port}"
    words = ("-u", "1", "--requests", "3", "--ready-timeout", "600", "--data", clips, "--results", results)
    process = locust("--host", host, *words)
    assert process.stderr is not None
    waiting = f"waiting for {host}: connection refused (0 of up to 600 s)"
    assert next(line for line in process.stderr if waiting in line)
    command = [sys.executable, str(CHECKOUT / "scripts" / "serve.py"), "--port", str(port), *FAST]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            done = Run(process, results)
        finally:
            server.terminate()
    assert done.code == 0, done.err
    assert len(done.records) == 3
    assert waiting not in done.err  # it is printed only once


def test_ready_timeout_expires(clips: Path) -> None:
    host = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=f"{host} is not ready after 1 s: connection refused"):
        ask(host, clips, ready_s=1)
    with answering((200, STREAM)) as there:  # it has neither /health nor /v1/models, but responds
        ask(there, clips, ready_s=600)


def test_only_model_of_a_server_is_requested(clips: Path, tmp_path: Path) -> None:
    listed: list[str | dict[str, Any]] = ["Qwen/Qwen3-ASR-1.7B", {"id": "an-adapter", "parent": "Qwen/Qwen3-ASR-1.7B"}]
    with answering((200, STREAM), models=listed) as host:
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "3", preflight=True)
    assert done.code == 0, done.err
    assert {body["model"] for body in AnsweringServer.asked} == {"Qwen/Qwen3-ASR-1.7B"}
    assert json.loads((tmp_path / "r" / "run.json").read_text())["model"] == "Qwen/Qwen3-ASR-1.7B"
    assert "preset qwen3-asr for Qwen/Qwen3-ASR-1.7B: --api chat, no prompt, --text-format qwen-asr" in done.err


@pytest.mark.parametrize(
    ("listed", "model", "named"),
    [
        (["openai/*", "whisper-1"], "openai/qwen3-asr", True),
        (["qwen3-asr:latest"], "qwen3-asr", True),
        (["base"], "base:adapter", True),
        (["a[1]?"], "a[1]?", True),
        (["default"], "any", True),
        ([], "any", True),
        (["gpt-4o-mini", "whisper-1"], "qwen3-asr", False),
        (["openai/*"], "mistral/voxtral", False),
        (["a?"], "ab", False),
    ],
)
def test_model_is_looked_up_in_the_servers_list(listed: list[str], model: str, named: bool) -> None:
    line = "" if named else f"the server does not list --model {model}, but {', '.join(listed)}"
    assert unlisted(model, {"/v1/models": {"data": [{"id": each} for each in listed]}}) == line


def test_model_that_is_neither_listed_nor_served_is_refused(clips: Path, tmp_path: Path) -> None:
    with answering((404, b'{"message": "no such model"}'), models=["one", "two"]) as host:
        with pytest.raises(InputError) as refused:
            ask(host, clips, "--model", "gemma")
        # Without a trial, each request reports it.
        words = ("-u", "1", "--requests", "3", "--model", "gemma")
        without = run(host, clips, tmp_path / "r", *words)
    assert [record["outcome"] for record in without.records] == ["http_404"] * 3
    assert "404: no such model: check the port and path of --host, --api, and that the server has" in str(refused.value)
    assert "; the server does not list --model gemma, but one, two. To start" in str(refused.value)


def test_pattern_in_a_gateways_list_is_not_a_model(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering((200, STREAM), models=["openai/*", "whisper-1"]) as host:
        assert ask(host, clips, "--api", "chat") == {host: "whisper-1"}
    assert {body["model"] for body in AnsweringServer.asked} == {"whisper-1"}
    assert f"using model whisper-1, the only one that {host} lists\n" in capsys.readouterr().err


def test_several_models_need_the_model_option(clips: Path) -> None:
    with answering((200, STREAM), models=["one", "two"]) as host:
        with pytest.raises(InputError, match="the server has several models; choose one with --model: one, two"):
            ask(host, clips)
        ask(host, clips, "--model", "two")
    assert [body["model"] for body in AnsweringServer.asked] == ["two"]


def test_workers_request_the_model_that_the_master_found(clips: Path, tmp_path: Path) -> None:
    with answering((200, STREAM), models=["openbmb/MiniCPM-o-2_6"]) as host:
        words = (*processes(2), "-u", "2", "--requests", "6")
        done = run(host, clips, tmp_path / "r", *words, preflight=True)
    assert done.code == 0, done.err
    assert [body["model"] for body in AnsweringServer.asked] == ["openbmb/MiniCPM-o-2_6"] * 7
    assert [body["messages"][0]["content"][0]["type"] for body in AnsweringServer.asked] == ["text"] * 7
    assert done.err.count("preset minicpm-o") == 1


def test_preflight_from_the_web_ui(clips: Path, tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with (
        answering((200, STREAM), models=["openai/whisper-1"]) as host,
        ui("one process", dead, clips, tmp_path, "--requests", "1", preflight=True) as page,
    ):
        refused = page.post("/swarm", user_count=1, spawn_rate=1, host=dead)
        assert not refused["success"]
        assert refused["message"].startswith(f"a trial request failed: connection refused by {dead}")
        page.start(user_count=1, host=host, api="chat")
        wait_until((page.results / "summary.json").exists, "the end of the test")
        assert {body["model"] for body in AnsweringServer.asked} == {"openai/whisper-1"}
        # Another model is loaded, and a second test starts.
        wait_until(partial(page.ended, 1), "the end of the first test")
        AnsweringServer.asked, AnsweringServer.models = [], [{"id": "google/gemma-3n-E4B-it"}]
        page.start(user_count=1, host=host, api="chat")
        wait_until(partial(page.ended, 2), "the end of the second test")
    assert [body["model"] for body in AnsweringServer.asked] == ["google/gemma-3n-E4B-it"] * 2


def test_flush_cache_follows_the_trial_request(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("-u", "1", "--requests", "2", "--flush-cache")
    with answering((200, STREAM)) as host:
        done = run(host, clips, tmp_path / "r", *words, preflight=True)
    chat = "/v1/chat/completions"
    assert (done.code, AnsweringServer.paths) == (0, [chat, "/flush_cache", chat, chat]), done.err
    monkeypatch.setattr(AnsweringServer, "flush", 400)
    with answering((200, STREAM)) as host:
        refused = run(host, clips, tmp_path / "busy", *words)
    assert refused.code == 2
    assert "--flush-cache: POST /flush_cache returned 400 not now" in refused.err
    assert AnsweringServer.paths == ["/flush_cache"]


def test_server_texts_are_printed_without_control_characters(clips: Path, tmp_path: Path) -> None:
    with answering((400, b'{"message": "no \\u001b[31m such"}'), models=["whisper\u001b[2J"]) as host:
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "3", "--api", "chat", preflight=True)
    assert done.code == 2
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    assert not (tmp_path / "r" / "records.jsonl").exists()
    assert "\x1b" not in done.err
    assert "preset whisper for whisper\\x1b[2J" in done.err
    assert "400: no \\x1b[31m such" in done.err
