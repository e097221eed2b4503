"""Chat completions with audio: as an `audio_url` (SGLang, vLLM) or as OpenAI's `input_audio`."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from asr_load.apis.api import Api, RequestFields, json_number, merge_extra
from asr_load.audio.clip import AUDIO_FORMATS, Clip
from asr_load.audio.dither import Pieces, dithered


class Chat(Api):
    """Chats whose audio is a data URL."""

    name = "chat"
    path = "/v1/chat/completions"
    summary = "sends audio as `audio_url` (SGLang, vLLM)"
    accepts = ("--prompt", "--prompt-position", "--system", "--language", "--extra-body", "--omit")
    is_instructed = True
    token_limits = ("max_tokens", "max_completion_tokens")

    def __init__(self, fields: RequestFields, audio_format: str = "wav") -> None:
        super().__init__(fields, audio_format)
        # A placeholder for the audio that nothing else in the body can contain.
        place = secrets.token_hex(16)
        content = [self._audio(place)]
        if fields.prompt:
            content.insert(0 if fields.prompt_first else 1, {"type": "text", "text": fields.prompt})
        system = [{"role": "system", "content": fields.system}] if fields.system else []
        body = {
            "model": fields.model,
            "messages": [*system, {"role": "user", "content": content}],
            "max_tokens": fields.max_tokens,
            "temperature": json_number(fields.temperature),
            "stream": True,
            # Without this the server reports no usage, and token counts would be guesses from chunks.
            "stream_options": {"include_usage": True},
        }
        fixed = {"messages": "it contains the audio", "stream": "the measurement needs it"}
        whole = msgspec.json.encode(merge_extra(body, fields.extra, fixed))
        self._before, self._after = whole.split(place.encode())

    def _audio(self, audio_b64: str) -> dict[str, Any]:
        """The part of the message that contains the audio."""
        url = f"data:{AUDIO_FORMATS[self.audio_format]};base64,{audio_b64}"
        return {"type": "audio_url", "audio_url": {"url": url}}

    def body(self, clip: Clip, nonce: bytes) -> Pieces:
        # In pieces, because most of the audio may precede the dither and need not be copied.
        return [self._before, *dithered(clip.audio_b64, nonce, clip.dither_at), self._after]


class ChatInputAudio(Chat):
    """Chats whose audio is OpenAI's `input_audio`."""

    name = "chat-input-audio"
    summary = "sends audio as OpenAI's `input_audio`"
    audio_formats = ("wav", "mp3")
    """Values that OpenAI allows for `input_audio.format`; engines reject others."""

    def _audio(self, audio_b64: str) -> dict[str, Any]:
        return {"type": "input_audio", "input_audio": {"data": audio_b64, "format": self.audio_format}}
