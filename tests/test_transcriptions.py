"""Bodies of transcription requests: multipart forms."""

from __future__ import annotations

import base64
from email.parser import BytesParser

from asr_load.apis.api import RequestFields
from asr_load.apis.transcriptions import Transcriptions
from asr_load.audio.dither import NO_DITHER
from harness.audio import clip


def test_transcription_body() -> None:
    requests = Transcriptions(RequestFields("m", "a prompt", 64, {"language": "en"}))
    form = b"".join(requests.body(clip(), NO_DITHER))
    message = BytesParser().parsebytes(f"Content-Type: {requests.content_type}\r\n\r\n".encode() + form)
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
