"""Uploads of clips as multipart forms."""

from __future__ import annotations

import secrets

import msgspec
import pybase64

from asr_load.apis.api import Api, RequestFields, json_number, merge_extra
from asr_load.audio.clip import AUDIO_FORMATS, Clip
from asr_load.audio.dither import Pieces, dithered


class Transcriptions(Api):
    """OpenAI's transcriptions, with vLLM's `max_completion_tokens` and `stream_include_usage`, which SGLang and OpenAI
    ignore."""

    name = "transcriptions"
    path = "/v1/audio/transcriptions"
    summary = "posts a form to `/v1/audio/transcriptions`"
    accepts = ("--prompt", "--language", "--extra-body", "--omit")
    token_limits = ("max_completion_tokens",)

    def __init__(self, fields: RequestFields, audio_format: str = "wav") -> None:
        super().__init__(fields, audio_format)
        boundary = f"asr-load-{secrets.token_hex(16)}"
        self.content_type = f"multipart/form-data; boundary={boundary}"
        form = {
            "model": fields.model,
            "prompt": fields.prompt,
            "language": fields.language,
            "temperature": json_number(fields.temperature),
            "max_completion_tokens": fields.max_tokens,
            "stream": True,
            "stream_include_usage": True,
        }
        fixed = {"file": "it contains the audio", "stream": "the measurement needs it"}
        before = bytearray()
        for name, value in merge_extra(form, fields.extra, fixed).items():
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            if text:
                before += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
        name = f"clip.{audio_format}"
        before += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'.encode()
        before += f"Content-Type: {AUDIO_FORMATS[audio_format]}\r\n\r\n".encode()
        self._before, self._after = bytes(before), f"\r\n--{boundary}--\r\n".encode()

    def body(self, clip: Clip, nonce: bytes) -> Pieces:
        audio = pybase64.b64decode(b"".join(dithered(clip.audio_b64, nonce, clip.dither_at)))
        return [self._before, audio, self._after]
