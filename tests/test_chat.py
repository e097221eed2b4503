"""Bodies of chat requests: valid JSON around the audio of a clip."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from asr_load.apis.api import RequestFields
from asr_load.apis.chat import Chat, ChatInputAudio
from asr_load.audio.dither import NO_DITHER, new_dither
from asr_load.errors import InputError
from harness.audio import clip


def body(api: type[Chat] = Chat, **fields: Any) -> dict[str, Any]:
    requests = api(RequestFields("my/model", **{"prompt": 'Say "what" you hear: ü', "max_tokens": 64, **fields}))
    decoded: dict[str, Any] = json.loads(b"".join(requests.body(clip(), NO_DITHER)))
    return decoded


def test_chat_body() -> None:
    assert body() == {
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
    audio = body(ChatInputAudio)["messages"][0]["content"][0]
    assert audio == {
        "type": "input_audio",
        "input_audio": {"data": bytes(clip().audio_b64).decode(), "format": "wav"},
    }


@pytest.mark.parametrize("kind", ["flac", "opus"])
def test_input_audio_takes_only_wav_and_mp3(kind: str) -> None:
    fields = RequestFields("m", "p", 1)
    with pytest.raises(InputError, match=f"--api chat-input-audio supports only wav and mp3, but --data has {kind}"):
        ChatInputAudio(fields, kind)
    assert [ChatInputAudio(fields, known).content_type for known in ("wav", "mp3")] == ["application/json"] * 2


def test_prompt_position_in_a_chat() -> None:
    for first, types in ((False, ["audio_url", "text"]), (True, ["text", "audio_url"])):
        (message,) = body(prompt="what?", prompt_first=first)["messages"]
        assert [part["type"] for part in message["content"]] == types
    (message,) = body(prompt="")["messages"]
    assert [part["type"] for part in message["content"]] == ["audio_url"]


def test_system_message_comes_first() -> None:
    first, second = body(system="Be brief.")["messages"]
    assert first == {"role": "system", "content": "Be brief."}
    assert second["role"] == "user"


@pytest.mark.parametrize("at", [2, 3002, 7934])  # of 8,000 samples
def test_chat_body_copies_only_the_audio_it_dithers(at: int) -> None:
    """A request in flight holds a view of the data, not a copy of a megabyte, wherever the dither is."""
    long = replace(clip(), dither_at=[at])
    pieces = Chat(RequestFields("m", "p", 1)).body(long, new_dither())
    views = [piece for piece in pieces if isinstance(piece, memoryview)]
    assert all(view.obj is memoryview(long.audio_b64).obj for view in views)
    assert sum(map(len, views)) >= len(long.audio_b64) - 1000
