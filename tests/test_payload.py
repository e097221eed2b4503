"""Request bodies: valid JSON spliced from bytes."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from email.parser import BytesParser
from typing import Any

import pytest

from asr_load.audio.dither import NO_DITHER, new_dither
from asr_load.audio.payload import BodyOptions, make_builder
from asr_load.errors import InputError
from harness.audio import clip


def body(api: str, nonce: bytes = NO_DITHER, **extra: Any) -> dict[str, Any]:
    build, content_type = make_builder(BodyOptions(api, "my/model", 'Say "what" you hear: ü', 64, extra))
    assert content_type == "application/json"
    decoded: dict[str, Any] = json.loads(b"".join(build(clip(), nonce)))
    return decoded


def test_chat_body() -> None:
    assert body("chat") == {
        "model": "my/model",
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "audio_url",
                        "audio_url": {"url": "data:audio/wav;base64," + bytes(clip().audio_b64).decode()},
                    },
                    {"type": "text", "text": 'Say "what" you hear: ü'},
                ],
            }
        ],
        "max_tokens": 64,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_chat_body_with_input_audio() -> None:
    audio = body("chat-input-audio")["messages"][0]["content"][0]
    assert audio == {
        "type": "input_audio",
        "input_audio": {"data": bytes(clip().audio_b64).decode(), "format": "wav"},
    }


def test_extra_fields_are_merged_but_cannot_replace_the_audio() -> None:
    assert body("chat", temperature=0.5, top_p=0.9)["temperature"] == 0.5
    for api, field in (("chat", "messages"), ("chat", "stream"), ("transcriptions", "file")):
        with pytest.raises(InputError, match=f"cannot set '{field}'"):
            make_builder(BodyOptions(api, "m", "p", 1, {field: 1}))


def test_omitted_fields_are_not_sent() -> None:
    made = body("chat", stream_options=None, max_tokens=None)
    assert {"stream_options", "max_tokens"}.isdisjoint(made)
    assert {"messages", "stream", "model"} <= made.keys()
    plain = b"".join(
        make_builder(BodyOptions("transcriptions", "m", "p", 1, {"stream_include_usage": None}))[0](clip(), NO_DITHER)
    )
    assert b"stream_include_usage" not in plain
    assert b'name="stream"' in plain
    with pytest.raises(InputError, match="'stream' cannot be removed: the measurement needs it"):
        make_builder(BodyOptions("chat", "m", "p", 1, {"stream": None}))
    with pytest.raises(InputError, match="'top_k' cannot be removed, because this --api does not send it; "):
        make_builder(BodyOptions("chat", "m", "p", 1, {"top_k": None}))


@pytest.mark.parametrize("kind", ["flac", "opus"])
def test_input_audio_takes_only_wav_and_mp3(kind: str) -> None:
    options = BodyOptions("chat-input-audio", "m", "p", 1)
    with pytest.raises(InputError, match=f"--api chat-input-audio supports only wav and mp3, but --data has {kind}"):
        make_builder(options, kind)
    assert [make_builder(options, known)[1] for known in ("wav", "mp3")] == ["application/json"] * 2


def test_transcription_body() -> None:
    build, content_type = make_builder(BodyOptions("transcriptions", "m", "a prompt", 64, {"language": "en"}))
    message = BytesParser().parsebytes(
        f"Content-Type: {content_type}\r\n\r\n".encode() + b"".join(build(clip(), NO_DITHER))
    )
    parts = {str(part.get_param("name", header="content-disposition")): part for part in message.get_payload()}  # type: ignore[union-attr]
    texts = {name: part.get_payload(decode=True) for name, part in parts.items()}  # type: ignore[union-attr]
    assert texts.pop("file") == base64.b64decode(clip().audio_b64)
    assert texts == {
        "model": b"m",
        "prompt": b"a prompt",
        "temperature": b"0",
        "max_completion_tokens": b"64",
        "stream": b"true",
        "stream_include_usage": b"true",
        "language": b"en",
    }


def content_of(**options: Any) -> list[dict[str, Any]]:
    build, _ = make_builder(BodyOptions("chat", "m", max_tokens=9, **options))
    messages: list[dict[str, Any]] = json.loads(b"".join(build(clip(), NO_DITHER)))["messages"]
    return messages


def test_prompt_position_in_a_chat() -> None:
    for first, types in ((False, ["audio_url", "text"]), (True, ["text", "audio_url"])):
        (message,) = content_of(prompt="what?", prompt_first=first)
        assert [part["type"] for part in message["content"]] == types
    (message,) = content_of(prompt="")
    assert [part["type"] for part in message["content"]] == ["audio_url"]


def test_system_message_comes_first() -> None:
    first, second = content_of(prompt="what?", system="Be brief.")
    assert first == {"role": "system", "content": "Be brief."}
    assert second["role"] == "user"


def test_temperature_is_sent() -> None:
    for api in ("chat", "chat-input-audio", "transcriptions"):
        built = b"".join(make_builder(BodyOptions(api, "m", "p", 1, temperature=0.2))[0](clip(), NO_DITHER))
        assert (b'"temperature":0.2' in built) or (b'name="temperature"\r\n\r\n0.2\r\n' in built)


def test_n_other_than_1_is_refused() -> None:
    assert body("chat", n=1)["n"] == 1
    with pytest.raises(InputError, match="a request must have exactly one response"):
        make_builder(BodyOptions("chat", "m", "p", 1, {"n": 2}))


@pytest.mark.parametrize(
    ("api", "extra", "limit"),
    [
        ("chat", {}, 64),
        ("chat-input-audio", {"max_tokens": 9}, 9),
        ("chat", {"max_tokens": None}, None),
        ("chat", {"max_tokens": None, "max_completion_tokens": 7}, 7),
        ("transcriptions", {}, 64),
        ("transcriptions", {"max_completion_tokens": None}, None),
        ("transcriptions", {"max_tokens": 5}, 64),
    ],
)
def test_token_limit_of_a_request(api: str, extra: dict[str, Any], limit: int | None) -> None:
    assert BodyOptions(api, "m", "p", 64, extra).token_limit == limit


def test_every_api_has_a_builder() -> None:
    for api in ("chat", "chat-input-audio", "transcriptions"):
        assert make_builder(BodyOptions(api, "m", "p", 1, {}))[0](clip(), new_dither())


@pytest.mark.parametrize("at", [2, 3002, 7934])  # of 8,000 samples
def test_chat_body_copies_only_the_audio_it_dithers(at: int) -> None:
    """A request in flight holds a view of the data, not a copy of a megabyte, wherever the dither is."""
    long = replace(clip(), dither_at=[at])
    pieces = make_builder(BodyOptions("chat", "m", "p", 1, {}))[0](long, new_dither())
    views = [piece for piece in pieces if isinstance(piece, memoryview)]
    assert all(view.obj is memoryview(long.audio_b64).obj for view in views)
    assert sum(map(len, views)) >= len(long.audio_b64) - 1000
