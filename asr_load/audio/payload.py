"""Build the body of a request for a clip from prepared pieces.

`json.dumps` of a 30 s clip blocks the event loop, and so every stream of the process, for 3 ms; joining bytes takes a
fiftieth of that. So the JSON around the audio is built once, and the shard's base64 is inserted unchanged.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pybase64

from asr_load.audio.clip import AUDIO_FORMATS, Clip
from asr_load.audio.dither import Pieces, dithered
from asr_load.errors import InputError

APIS = {
    "chat": "/v1/chat/completions",
    "chat-input-audio": "/v1/chat/completions",
    "transcriptions": "/v1/audio/transcriptions",
    "realtime": "/v1/realtime",
}
"""The path of each API: chat with an audio_url (SGLang, vLLM), chat with OpenAI's input_audio, transcriptions, and
sessions over a WebSocket."""

REALTIME = "realtime"
INPUT_AUDIO = "chat-input-audio"
INPUT_AUDIO_FORMATS = ("wav", "mp3")
"""Values that OpenAI allows for `input_audio.format`; engines reject others."""

Build = Callable[[Clip, bytes], Pieces]
"""Builds the body for a clip and eight bytes of dither (see `dithered`; zeros leave the audio unchanged)."""


@dataclass(frozen=True)
class BodyOptions:
    """The fields of a request other than its audio."""

    api: str
    """One of APIS."""
    model: str
    prompt: str
    """Instruction for the model; not sent if empty."""
    max_tokens: int
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields merged into the top level of the body; None removes a field."""
    system: str = ""
    """System message of a chat; not sent if empty."""
    temperature: float = 0.0
    prompt_first: bool = False
    """Whether the prompt precedes the audio in a chat."""
    language: str = ""
    """The `language` field of transcriptions; not sent if empty."""

    @property
    def token_limit(self) -> int | None:
        """The limit of a response's tokens that the request sets; None without one."""
        names = {"max_tokens", "max_completion_tokens"} if self.api not in LIMITS else {LIMITS[self.api]}
        own = LIMITS.get(self.api, "max_tokens")
        asked = [self.extra.get(name, self.max_tokens if name == own else None) for name in names]
        return min((limit for limit in asked if isinstance(limit, int)), default=None)


def make_builder(options: BodyOptions, audio_format: str = "wav") -> tuple[Build, str]:
    """Make the builder of request bodies, and their content type, for clips in one of AUDIO_FORMATS. Raises InputError
    if `extra` sets fields that the measurement depends on."""
    if options.api == "transcriptions":
        return _transcription_body(options, audio_format)
    if options.api == REALTIME:
        if audio_format != "wav":
            raise InputError(f"--api realtime needs WAV clips, but --data has {audio_format}: prepare it as WAV")
        return _no_body, ""
    if options.api == INPUT_AUDIO and audio_format not in INPUT_AUDIO_FORMATS:
        known = " and ".join(INPUT_AUDIO_FORMATS)
        raise InputError(
            f"--api {INPUT_AUDIO} supports only {known}, but --data has {audio_format}: prepare it with --audio-format"
            f" {' or '.join(INPUT_AUDIO_FORMATS)}, or use another --api"
        )
    return _chat_body(options, audio_format), "application/json"


def _no_body(clip: Clip, nonce: bytes) -> Pieces:  # noqa: ARG001
    """Build nothing: a realtime session sends its audio in packets."""
    return []


def _chat_body(options: BodyOptions, audio_format: str) -> Build:
    # A placeholder for the audio that nothing else in the body can contain.
    place = secrets.token_hex(16)
    if options.api == "chat":
        audio = {"type": "audio_url", "audio_url": {"url": f"data:{AUDIO_FORMATS[audio_format]};base64,{place}"}}
    else:
        audio = {"type": "input_audio", "input_audio": {"data": place, "format": audio_format}}
    content: list[dict[str, Any]] = [audio]
    if options.prompt:
        content.insert(0 if options.prompt_first else 1, {"type": "text", "text": options.prompt})
    system = [{"role": "system", "content": options.system}] if options.system else []
    body = {
        "model": options.model,
        "messages": [*system, {"role": "user", "content": content}],
        "max_tokens": options.max_tokens,
        "temperature": _number(options.temperature),
        "stream": True,
        # Without this the server reports no usage, and token counts would be guesses from chunks.
        "stream_options": {"include_usage": True},
    }
    body = _merged(body, options.extra, {"messages": "it contains the audio", "stream": "the measurement needs it"})
    before, after = msgspec.json.encode(body).split(place.encode())

    def build(clip: Clip, nonce: bytes) -> Pieces:
        # In pieces, because most of the audio may precede the dither and need not be copied.
        return [before, *dithered(clip.audio_b64, nonce, clip.dither_at), after]

    return build


def _transcription_body(options: BodyOptions, audio_format: str) -> tuple[Build, str]:
    """Make the builder of multipart bodies for /v1/audio/transcriptions, and their content type."""
    fixed = {"file": "it contains the audio", "stream": "the measurement needs it"}
    boundary = f"asr-load-{secrets.token_hex(16)}"
    # `stream_include_usage` is vLLM's field; SGLang and OpenAI ignore it.
    fields = {
        "model": options.model,
        "prompt": options.prompt,
        "language": options.language,
        "temperature": _number(options.temperature),
        LIMITS["transcriptions"]: options.max_tokens,
        "stream": True,
        "stream_include_usage": True,
    }
    before = bytearray()
    for name, value in _merged(fields, options.extra, fixed).items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        if text:
            before += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
    name = f"clip.{audio_format}"
    before += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'.encode()
    before += f"Content-Type: {AUDIO_FORMATS[audio_format]}\r\n\r\n".encode()
    head, tail = bytes(before), f"\r\n--{boundary}--\r\n".encode()

    def build(clip: Clip, nonce: bytes) -> Pieces:
        return [head, pybase64.b64decode(b"".join(dithered(clip.audio_b64, nonce, clip.dither_at))), tail]

    return build, f"multipart/form-data; boundary={boundary}"


LIMITS = {"transcriptions": "max_completion_tokens"}
"""The field that limits a response's tokens, for APIs where it is not `max_tokens`: vLLM's for transcriptions, which
SGLang and OpenAI ignore."""


def _number(value: float) -> float:
    return int(value) if value.is_integer() else value


def _merged(body: dict[str, Any], extra: dict[str, Any], fixed: dict[str, str]) -> dict[str, Any]:
    """Merge `extra` into a body; a value of None removes the field. Raises InputError for the `fixed` fields."""
    if extra.get("n") not in (None, 1):
        raise InputError(f"--extra-body 'n': {extra['n']}: a request must have exactly one response; remove 'n'")
    for name, value in extra.items():
        if name in fixed:
            refusal = f"{name!r} cannot be removed" if value is None else f"--extra-body cannot set {name!r}"
            raise InputError(f"{refusal}: {fixed[name]}")
        if value is None and name not in body:
            names = ", ".join(known for known in body if known not in fixed)
            raise InputError(f"{name!r} cannot be removed, because this --api does not send it; it can remove {names}")
    return {name: value for name, value in (body | extra).items() if value is not None}
