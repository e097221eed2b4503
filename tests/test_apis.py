"""APIs: one that is added is accepted everywhere, and the engines' own request models accept the requests of each."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import types
import typing
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
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
from harness.fleets import info
from harness.options import parse
from harness.runs import Run, check_in_new_process, locust
from harness.serving import serve
from harness.sse import chunk, sse

ADD = '''
import pybase64

from asr_load.apis import APIS
from asr_load.apis.api import Api
from asr_load.audio.dither import dithered


class Raw(Api):
    """The bytes of a WAV file as the body."""

    name = "raw"
    path = "/v1/raw"
    summary = "posts a WAV file"
    token_limits = ()
    audio_formats = ("wav",)
    content_type = "audio/wav"

    def body(self, clip, nonce):
        return [pybase64.b64decode(b"".join(dithered(clip.audio_b64, nonce, clip.dither_at)))]


APIS[Raw.name] = Raw
'''

DERIVED = """
import pytest
from locust.argument_parser import get_parser

import asr_load.load.startup
from asr_load.errors import InputError
from asr_load.cli.options_page import markdown
from asr_load.settings.other_tools import ADVICE
from asr_load.options.parser import for_class
from harness.options import parse, settings

assert get_parser(default_config_files=[]).parse_args(["--api", "raw"]).api == "raw"
assert for_class(parse(), "User", {"api": "raw"}).api == "raw"
assert "`raw` posts a WAV file." in " ".join(markdown().split())
assert ADVICE["--backend"].endswith("raw")
assert settings("--api", "raw", host="http://h:1/v1/raw").endpoint == "/v1/raw"
assert settings("--endpoint", "/gateway/raw").request.api is Raw
for words, host, line in (
    ("--api raw --prompt x", "http://h:1", "--prompt has no effect with --api raw; remove it"),
    ("--api raw --omit model", "http://h:1", "--omit has no effect with --api raw; remove it"),
    ("--api raw --language de", "http://h:1", "--language has no effect with --api raw; remove it"),
    ("--api raw", "ws://h:1", "this test uses --api raw: add --api realtime"),
    ("--api chat", "http://h:1/v1/raw", "add --api raw, or use --host http://h:1"),
):
    with pytest.raises(InputError, match=line):
        settings(*words.split(), host=host)
with pytest.raises(InputError, match="--api raw supports only wav, but --data has opus: prepare it with"):
    settings("--api", "raw").request.in_format("opus")
"""


def test_added_api_is_accepted_wherever_an_api_is_named() -> None:
    check_in_new_process(ADD + DERIVED)


@contextmanager
def transcribing(text: str) -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A server that streams the same text for each POST, and knows nothing else. Yields its URL and the path, the
    content type and the body of each POST."""
    received: list[tuple[str, str, bytes]] = []
    stream = b"".join(sse(chunk(text), chunk(finish="stop")))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, self.headers["Content-Type"], body))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(len(stream)))
            self.end_headers()
            self.wfile.write(stream)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


@pytest.mark.long
def test_added_api_sends_and_records_its_requests(clips: Path, tmp_path: Path) -> None:
    locustfile, results = tmp_path / "locustfile.py", tmp_path / "run"
    locustfile.write_text(f"{ADD}\nfrom asr_load import SpeechUser\n\n\nclass Own(SpeechUser):\n    pass\n")
    with transcribing("a b c") as (host, received):
        files = ("-f", locustfile, "--data", clips, "--results", results, "--json-file", results / "locust")
        results.mkdir()
        done = Run(locust("--host", host, *files, "-u", "2", "--requests", "4", "--api", "raw"), results)
    assert done.code == 0, done.out + done.err
    assert {(path, kind) for path, kind, _ in received} == {("/v1/raw", "audio/wav")}
    assert all(body.startswith(b"RIFF") for _, _, body in received)
    assert len({body for _, _, body in received}) == 5  # the trial and 4 requests, all dithered
    assert [(record["outcome"], record["text"], record["streamed"]) for record in done.records] == [
        ("ok", "a b c", True)
    ] * 4
    assert (info(done)["api"], info(done)["endpoint"], info(done)["max_tokens"]) == ("raw", "/v1/raw", None)
    assert done.rows["POST", "/v1/raw"]["num_requests"] == 4


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


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize("preset", CHATS)
def test_openai_accepts_the_chats_of_all_presets(preset: str) -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
    from pydantic import TypeAdapter

    TypeAdapter(CompletionCreateParamsStreaming).validate_python(chat_of(preset, "chat-input-audio"))


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_openai_client_reads_transcriptions_of_the_embedded_server(client: Any, tmp_path: Path) -> None:
    wav = tmp_path / "clip.wav"
    body = Transcriptions(RequestFields("m", "", 9)).body(Shards(SAMPLE)[0], NO_DITHER)
    wav.write_bytes(bytes(body[1]))
    with wav.open("rb") as file:
        whole = client.audio.transcriptions.create(model="default", file=file)
    assert len(whole.text.split()) == 5
    assert [model.id for model in client.models.list()] == ["default"]
