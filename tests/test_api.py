"""All APIs treat the fields of a request in the same way."""

from __future__ import annotations

from typing import Any

import pytest

from asr_load.apis import APIS
from asr_load.apis.api import RequestFields
from asr_load.apis.realtime import session_url
from asr_load.audio.dither import NO_DITHER
from asr_load.errors import InputError
from harness.audio import clip

UPLOADS = [name for name, api in APIS.items() if not api.is_websocket]


def body(name: str, extra: dict[str, Any] | None = None, temperature: float = 0.0) -> bytes:
    requests = APIS[name](RequestFields("m", "p", 64, extra or {}, temperature=temperature))
    return b"".join(requests.body(clip(), NO_DITHER))


def test_extra_fields_are_merged_but_cannot_replace_the_audio() -> None:
    assert b'"temperature":0.5,' in body("chat", {"temperature": 0.5, "top_p": 0.9})
    for name, field in (("chat", "messages"), ("chat", "stream"), ("transcriptions", "file")):
        with pytest.raises(InputError, match=f"cannot set '{field}'"):
            body(name, {field: 1})


def test_omitted_fields_are_not_sent() -> None:
    chat = body("chat", {"stream_options": None, "max_tokens": None})
    assert b"stream_options" not in chat
    assert b"max_tokens" not in chat
    assert all(name in chat for name in (b'"messages":', b'"stream":', b'"model":'))
    form = body("transcriptions", {"stream_include_usage": None})
    assert b"stream_include_usage" not in form
    assert b'name="stream"' in form
    with pytest.raises(InputError, match="'stream' cannot be removed: the measurement needs it"):
        body("chat", {"stream": None})
    with pytest.raises(InputError, match="'top_k' cannot be removed, because this --api does not send it; "):
        body("chat", {"top_k": None})


@pytest.mark.parametrize("name", UPLOADS)
def test_temperature_is_sent(name: str) -> None:
    sent = body(name, temperature=0.2)
    assert (b'"temperature":0.2' in sent) or (b'name="temperature"\r\n\r\n0.2\r\n' in sent)


def test_n_other_than_1_is_refused() -> None:
    assert b'"n":1' in body("chat", {"n": 1})
    with pytest.raises(InputError, match="a request must have exactly one response"):
        body("chat", {"n": 2})


@pytest.mark.parametrize(
    ("name", "extra", "limit"),
    [
        ("chat", {}, 64),
        ("chat-input-audio", {"max_tokens": 9}, 9),
        ("chat", {"max_tokens": None}, None),
        ("chat", {"max_tokens": None, "max_completion_tokens": 7}, 7),
        ("transcriptions", {}, 64),
        ("transcriptions", {"max_completion_tokens": None}, None),
        ("transcriptions", {"max_tokens": 5}, 64),
        ("realtime", {}, 64),
    ],
)
def test_token_limit_of_a_request(name: str, extra: dict[str, Any], limit: int | None) -> None:
    assert APIS[name].token_limit(RequestFields("m", "p", 64, extra)) == limit


@pytest.mark.parametrize("name", APIS)
def test_headers_ask_for_an_uncompressed_stream_unless_in_a_session(name: str) -> None:
    api = APIS[name](RequestFields("m", "p", 64))
    expected = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Content-Type": api.content_type}
    assert api.headers == ({} if api.is_websocket else expected)
    assert bool(body(name)) is not api.is_websocket


@pytest.mark.parametrize(
    ("host", "endpoint", "dialect", "url"),
    [
        ("http://h:1", "/v1/realtime", "vllm", "ws://h:1/v1/realtime"),
        ("https://h", "/v1/realtime", "openai", "wss://h/v1/realtime?intent=transcription"),
        ("https://h", "/v1/realtime?model=m", "openai", "wss://h/v1/realtime?model=m"),
    ],
)
def test_url_of_sessions_has_an_intent_unless_it_has_a_query(host: str, endpoint: str, dialect: str, url: str) -> None:
    assert session_url(host, endpoint, dialect) == url
