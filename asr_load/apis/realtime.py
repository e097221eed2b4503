"""Realtime sessions over a WebSocket, as far as they resemble requests; realtime/ speaks and listens in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
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


@dataclass(frozen=True)
class RealtimeOptions:
    """Options of realtime sessions."""

    dialect: str
    """Name of the dialect, or auto."""
    packet_s: float
    pace: float
    """1: real time, 2: twice as fast, 0: as fast as the socket accepts data."""
    silence_s: float
    """Seconds of silence after the speech."""
    server_vad: bool
    """Whether the server detects the ends of turns."""
    utterances: int
    """Utterances per connection."""
    model: str
    """Empty: the server's default."""
    language: str
    found: str = ""
    """With dialect auto, the one that the server accepted in a trial session; empty if there was no need."""

    def is_guess(self, dialect: str) -> bool:
        """Whether this dialect is only a guess by the first event of a session."""
        return self.dialect == "auto" and not self.found and dialect == "sglang"

    def to_dict(self) -> dict[str, Any]:
        """The fields for run.json, which has the model and the language separately."""
        names = ("dialect", "packet_s", "pace", "silence_s", "server_vad", "utterances")
        return {name: getattr(self, name) for name in names}


class RealtimeRequest(NamedTuple):
    """A clip to send in a realtime session."""

    options: RealtimeOptions
    clip: Clip | None
    """None if it cannot be read."""
    nonce: bytes
    """Nonce of the dither: see `flipped`."""
