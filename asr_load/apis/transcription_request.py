"""A request of any API, ready to send."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote

from asr_load.apis.realtime import RealtimeRequest


@dataclass(frozen=True)
class TranscriptionRequest:
    """A request that is ready to send, so that nothing is built after the clock has started."""

    url: str
    body: list[bytes | memoryview]
    """The body in pieces, so that the audio is never copied."""
    headers: dict[str, str]
    """Headers that all requests of a user share; see also `own_headers`."""
    clip: str
    reference: str
    audio_s: float
    seq: int
    user: int
    worker: int
    user_class: str = ""
    warmup: bool = False
    due: int | None = None
    """Scheduled time in an open loop, in perf_counter nanoseconds."""
    queued: bool = False
    """Whether it was due before a user was free."""
    own_headers: dict[str, str] = field(default_factory=dict)
    """Headers of this request only."""
    text_format: str = "auto"
    """Envelope to remove from the transcript: one of TEXT_FORMATS."""
    retry_of: int | None = None
    """Number of the request that this one retries."""
    realtime: RealtimeRequest | None = None
    """What to say in a realtime session; None for other APIs."""


def request_headers(run: str, worker: int, seq: int, clip: str) -> dict[str, str]:
    """Headers that identify a request, so that the server's log can be matched with the records."""
    return {"X-Request-Id": f"{run}-{worker}-{seq}", "X-Clip-Id": quote(clip)}
