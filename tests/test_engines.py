"""Requests against the engines' own request models, and the embedded server against OpenAI's client."""

from __future__ import annotations

import json
import subprocess
import sys
import types
import typing
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asr_load.apis.api import RequestFields
from asr_load.apis.presets import PRESETS
from asr_load.apis.transcriptions import Transcriptions
from asr_load.audio.dither import NO_DITHER
from asr_load.audio.shard import Shards
from asr_load.settings.request import read_request
from conftest import CHECKOUT
from harness.options import parse
from harness.serving import serve

pytestmark = pytest.mark.long

SAMPLE = CHECKOUT / "asr_data" / "sample"
SGLANG = "sglang==0.5.23"
CHATS = [name for name, preset in PRESETS.items() if preset.api == "chat"]


def chat_of(preset: str, api: str) -> dict[str, Any]:
    options = parse("--preset", preset, "--api", api, "--system", "Be brief.", "--temperature", "0.2")
    requests = read_request(options, "any", {}).in_format()
    body: dict[str, Any] = json.loads(b"".join(requests.body(Shards(SAMPLE)[0], NO_DITHER)))
    return body


@pytest.fixture(scope="module")
def sglang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """SGLang's request models, taken from its wheel, as the rest of it needs a GPU."""
    folder = tmp_path_factory.mktemp("sglang")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), SGLANG]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip(f"{SGLANG} cannot be had here")
    (wheel,) = folder.glob("*.whl")
    source = zipfile.ZipFile(wheel).read("sglang/srt/entrypoints/openai/protocol.py")
    # Its only import from sglang is for tools, which our requests do not use.
    utilities = types.ModuleType("sglang.utils")
    vars(utilities)["convert_json_schema_to_str"] = None
    protocol = types.ModuleType("sglang_protocol")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sglang", types.ModuleType("sglang"))
        patch.setitem(sys.modules, "sglang.utils", utilities)
        patch.setitem(sys.modules, "sglang_protocol", protocol)
        exec(compile(source, "protocol.py", "exec"), vars(protocol))
        yield protocol


@pytest.mark.parametrize("api", ["chat", "chat-input-audio"])
@pytest.mark.parametrize("preset", CHATS)
def test_sglang_accepts_the_chats_of_all_presets(sglang: Any, preset: str, api: str) -> None:
    body = chat_of(preset, api)
    request = sglang.ChatCompletionRequest.model_validate(body)
    assert request.stream
    assert request.stream_options.include_usage
    read = request.model_dump(include={"temperature", "max_tokens"})
    assert read == {"temperature": 0.2, "max_tokens": 128}
    system, user = request.messages
    assert system.content == "Be brief."
    parts = {part.type: part for part in user.content}
    url = parts["audio_url"].audio_url.url
    assert url.startswith("data:audio/wav;base64,UklGR")  # RIFF
    assert ("text" in parts) is bool(PRESETS[preset].prompt)


@pytest.mark.parametrize("preset", CHATS)
def test_openai_accepts_the_chats_of_all_presets(preset: str) -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
    from pydantic import TypeAdapter

    TypeAdapter(CompletionCreateParamsStreaming).validate_python(chat_of(preset, "chat-input-audio"))


def test_openai_accepts_transcription_requests() -> None:
    from openai.types.audio.transcription_create_params import TranscriptionCreateParamsStreaming

    fields = RequestFields("m", "p", 9, language="de")
    body = b"".join(Transcriptions(fields).body(Shards(SAMPLE)[0], NO_DITHER))
    known = set(typing.get_type_hints(TranscriptionCreateParamsStreaming))
    sent = {part.split(b'"')[1].decode() for part in body.split(b"Content-Disposition: form-data; ")[1:]}
    # The other fields are vLLM's, which other engines ignore.
    assert sent - {"max_completion_tokens", "stream_include_usage"} <= known
    assert {"file", "model", "stream", "language"} <= sent


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    import openai  # late, as above: make test collects this file without it

    with serve("--engine", "scripted", "--tokens", "5", "--ttft-ms", "5", "--itl-ms", "1") as host:
        yield openai.OpenAI(base_url=f"{host}/v1", api_key="EMPTY", max_retries=0)


@pytest.mark.parametrize("kind", ["chat", "chat-input-audio"])
def test_openai_client_reads_chats_of_the_embedded_server(client: Any, kind: str) -> None:
    messages = chat_of("gemma-3n", kind)["messages"]
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="default", messages=messages, stream=True, stream_options=options, max_tokens=5
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(text.split()) == 5
    assert chunks[-1].usage.completion_tokens == 5
    whole = client.chat.completions.create(model="default", messages=messages, max_tokens=5)
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason


def test_openai_client_reads_transcriptions_of_the_embedded_server(client: Any, tmp_path: Path) -> None:
    wav = tmp_path / "clip.wav"
    body = Transcriptions(RequestFields("m", "", 9)).body(Shards(SAMPLE)[0], NO_DITHER)
    wav.write_bytes(bytes(body[1]))
    with wav.open("rb") as file:
        whole = client.audio.transcriptions.create(model="default", file=file)
    assert len(whole.text.split()) == 5
    assert [model.id for model in client.models.list()] == ["default"]
