"""Realtime sessions over a WebSocket, as far as they resemble requests; realtime/ speaks and listens in them."""

from __future__ import annotations

from urllib.parse import urlsplit

from asr_load.apis.api import Api
from asr_load.audio.clip import Clip
from asr_load.audio.dither import Pieces


class Realtime(Api):
    """Sessions in which a clip is sent in packets."""

    name = "realtime"
    path = "/v1/realtime"
    summary = "holds [WebSocket sessions](realtime.md)"
    accepts = ("--language",)
    audio_formats = ("wav",)
    is_websocket = True
    query = "intent=transcription"

    def body(self, clip: Clip, nonce: bytes) -> Pieces:  # noqa: ARG002
        return []

    @property
    def headers(self) -> dict[str, str]:
        return {}


def session_url(host: str, endpoint: str, dialect: str) -> str:
    """The WebSocket URL of sessions, by the server's HTTP URL. Dialects except vLLM's and SGLang's need a query."""
    scheme, _, place = host.partition("://")
    query = "" if dialect in ("vllm", "sglang") or urlsplit(endpoint).query else f"?{Realtime.query}"
    return f"{'wss' if scheme == 'https' else 'ws'}://{place}{endpoint}{query}"
