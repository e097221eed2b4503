"""Paths in --host and --endpoint: that of the API is accepted, and the error for any other says what to type."""

from __future__ import annotations

import shlex

import pytest

from asr_load.apis import APIS
from asr_load.errors import InputError
from harness.options import HOST, settings


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1", "/deployments/x"])
@pytest.mark.parametrize("model", ["default", "openai/whisper-large-v3", "Qwen/Qwen3-ASR-1.7B"])
def test_endpoint_determines_the_automatic_api(prefix: str, model: str) -> None:
    for path, api in (("/audio/transcriptions", "transcriptions"), ("/chat/completions?v=1", "chat")):
        made = settings("--endpoint", prefix + path, "--model", model)
        assert (made.request.api.name, made.endpoint) == (api, prefix + path)
    assert settings("--endpoint", "/v1/speech").request.api.name == "chat"
    assert (
        settings("--endpoint", "/v1/chat/completions", "--api", "chat-input-audio").request.api.name
        == "chat-input-audio"
    )


def test_intent_in_a_pasted_realtime_url_is_accepted() -> None:
    host = "wss://api.openai.com/v1/realtime?intent=transcription"
    made = settings("--api", "realtime", "--prompt", "", host=host)
    assert (made.host, made.endpoint) == ("https://api.openai.com", "/v1/realtime")


PATHS = {name: api.path for name, api in APIS.items()}


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/models", "/v1/models/", "{own}", "{own}/"])
@pytest.mark.parametrize("api", PATHS)
@pytest.mark.parametrize(("scheme", "http"), [("http", "http"), ("ws", "http"), ("wss", "https")])
def test_pasted_url_with_the_path_of_the_api_is_accepted(api: str, path: str, scheme: str, http: str) -> None:
    prompt = ["--prompt", ""] if api == "realtime" else []
    if scheme != "http" and api != "realtime":
        with pytest.raises(
            InputError, match=rf"this test uses --api {api}: add --api realtime, or use --host {http}://h:1"
        ):
            settings("--api", api, host=f"{scheme}://h:1{path.format(own=PATHS[api])}")
        return
    made = settings("--api", api, *prompt, host=f"{scheme}://h:1{path.format(own=PATHS[api])}")
    assert (made.host, made.endpoint) == (f"{http}://h:1", PATHS[api])


@pytest.mark.parametrize("page", ["/docs", "/health/", "/openapi.json", "/v1/chat", "/v1/completions", "/models"])
@pytest.mark.parametrize("prefix", ["", "/openai"])
def test_page_of_the_server_is_not_a_prefix(prefix: str, page: str) -> None:
    with pytest.raises(InputError) as refused:
        settings(host=f"http://h:1{prefix}{page}")
    cure = f" --endpoint {prefix}/v1/chat/completions" if prefix else ""
    assert str(refused.value) == f"--host cannot have this path: use --host http://h:1{cure}"


@pytest.mark.parametrize("api", PATHS)
@pytest.mark.parametrize(
    "path",
    [
        "/openai{own}", "/openai/v1", "/openai/v1/models", "{own}?key=a b", "/v1?version=2", "/v2", "/models",
        "/deployments/x{bare}?api-version=1", "/docs", "/openapi.json?x=1", "/v1/chat", "/openai/v1/completions",
    ],
)  # fmt: skip
def test_advice_for_a_pasted_url_works_when_typed(api: str, path: str) -> None:
    own = PATHS[api]
    with pytest.raises(InputError) as refused:
        settings("--api", api, host="http://h:1" + path.format(own=own, bare=own.removeprefix("/v1")))
    words = shlex.split(str(refused.value).partition(": use ")[2])
    assert words[0] == "--host"
    made = settings("--api", api, *words[2:], host=words[1])
    assert made.host == "http://h:1"
    assert own.removeprefix("/v1") in made.endpoint
    assert made.endpoint.count("/v1") <= 1 + path.startswith("/v2")


@pytest.mark.parametrize("api", PATHS)
@pytest.mark.parametrize("other", ["chat", "transcriptions", "realtime"])
@pytest.mark.parametrize("prefix", ["", "/openai"])
def test_pasted_url_of_another_api_names_the_api_to_add(api: str, other: str, prefix: str) -> None:
    if PATHS[other] == PATHS[api]:
        return
    host = f"http://h:1{prefix}{PATHS[other]}"
    with pytest.raises(InputError, match=f"--api {other}") as refused:
        settings("--api", api, host=host)
    # Either add the option, or type the whole line.
    words = [] if not prefix else shlex.split(str(refused.value).partition(": use ")[2])
    made = settings("--api", other, *words[2:], host=words[1] if words else host)
    assert (made.host, made.endpoint) == ("http://h:1", f"{prefix}{PATHS[other]}")
    with pytest.raises(
        InputError, match=f"is the path of --api {other}, but this test uses --api {api}: add --api {other}"
    ):
        settings("--api", api, "--endpoint", prefix + PATHS[other])


def test_equal_paths_in_host_and_endpoint_are_accepted() -> None:
    made = settings("--endpoint", "/a/chat/completions?v=1", host="http://h:1/a/chat/completions?v=1")
    assert (made.host, made.endpoint) == ("http://h:1", "/a/chat/completions?v=1")
    with pytest.raises(InputError, match="/v1/chat/completions and --endpoint /a differ: use --host http://h:1"):
        settings("--endpoint", "/a", host="http://h:1/v1/chat/completions")


def test_url_as_endpoint_is_refused_with_the_path() -> None:
    for pasted, cure in (("http://me:hush@h/a/chat/completions", "/a/chat/completions"), ("h://b", PATHS["chat"])):
        with pytest.raises(InputError) as refused:
            settings("--endpoint", pasted)
        assert str(refused.value) == f"--endpoint needs a path, not an address: use --endpoint {cure}"


@pytest.mark.parametrize("name", ["api-key", "api_key", "token", "subscription-key"])
def test_key_in_a_pasted_url_is_not_printed(name: str) -> None:
    for words, host in (
        ([], f"http://h:1/v2/chat/completions?v=1&{name}=hush"),
        (["--api", "chat", "--endpoint", f"/audio/transcriptions?{name}=hush"], HOST),
        (["--endpoint", f"x?{name}=hush"], HOST),
        (["--endpoint", f"/x#{name}=hush"], HOST),
        ([], f"h:1/?{name}=hush"),
        ([], f"ftp://h/?v=1&{name}=hush"),
        (["--upstream", f"http://h:1/?{name}=hush"], HOST),
        (["--proxy", f"ftp://h/?{name}=hush"], HOST),
    ):
        with pytest.raises(InputError) as refused:
            settings(*words, host=host)
        assert "hush" not in str(refused.value)
        assert f"{name}=***" in str(refused.value)
