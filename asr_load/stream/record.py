"""The record of a request, written once, at the end of its stream. Everything that is reported derives from records."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import attrgetter
from typing import Annotated, TypedDict

import msgspec
from msgspec import Meta

from asr_load.decode import Malformed, decode
from asr_load.stream.numbers import LIMIT
from asr_load.stream.timing import tpot
from asr_load.text import visible

SUM_S = 0.001
"""Maximum difference, in seconds, between TTFT plus gaps and the end-to-end latency."""

YEAR_S = 366 * 86400.0

Seconds = Annotated[float, Meta(ge=0, le=YEAR_S)]
Lag = Annotated[float, Meta(ge=-YEAR_S, le=YEAR_S)]
"""Seconds; negative means early."""
Moment = Annotated[float, Meta(ge=0, le=1e11)]
"""A time in seconds since the epoch."""
Count = Annotated[int, Meta(ge=0, lt=LIMIT)]
Number = Annotated[int, Meta(gt=-1 << 53, lt=1 << 53)]
Amount = Annotated[float, Meta(ge=0, le=1e12)]
"""A rate, a share, or a number from an option."""
Status = Annotated[int, Meta(ge=100, le=999)]
CloseCode = Annotated[int, Meta(ge=0, lt=1 << 16)]
"""A close code of a WebSocket."""

LEAST_AUDIO_S = 0.001
"""Length of the shortest clip, and rounding unit of lengths, in seconds."""

MAX_WORD_CHARS = 2000
"""Maximum length of a record's words and lines. Transcripts have only the limit of a response."""


class Record(msgspec.Struct, kw_only=True, gc=False):  # has no reference cycles
    """One request. Times are in seconds; `started_at` and `due_at` are seconds since the epoch on one clock.

    A latency is None if the request did not get that far. A failure keeps the values measured before it, which no
    metric includes.
    """

    clip: str
    """The clip's id."""
    seq: Number
    """Number of the request in the run, over all workers; below 0 if it was sent again."""
    user: Count
    """Number of the user within its worker."""
    worker: Count
    """Number of the process that sent it."""
    warmup: bool
    """If true, no metric includes it."""
    started_at: Moment
    """When the first byte was sent, or the first packet of a session."""
    due_at: Moment | None
    """When it should have been sent, in an open loop."""
    lag: Lag | None
    outcome: str
    """ok, or why it failed: docs/metrics.md lists the outcomes."""
    ok: bool
    """Whether the outcome is ok."""
    http_status: Status | None
    """Status of the response; None without one, and for sessions."""
    error: str | None
    """Error message of a failure."""
    upload: Seconds | None
    """Time until the request body was sent."""
    headers: Seconds | None
    """Time until the response headers arrived."""
    ttft: Seconds | None
    itl: list[Seconds]
    e2el: Seconds | None
    stream_end: Seconds | None
    """Time until the response body ended."""
    chunks: Count
    """Number of text chunks."""
    output_tokens: Count | None
    """Tokens of the response."""
    output_tokens_source: str | None
    """usage if the server counted the tokens, chunks if they are the number of chunks."""
    prompt_tokens: Count | None
    """Prompt tokens, as the server counted them."""
    cached_tokens: Count | None
    """Prompt tokens that came from the server's cache."""
    finish_reason: str | None
    """Why the server ended the response."""
    streamed: bool
    """False for a plain JSON response: its TTFT equals its latency."""
    audio_s: Seconds
    """Length of the clip."""
    text: str
    """The transcript."""
    reference: str
    """The expected transcript; empty without one."""
    retries: Count = 0
    """Attempts before the last one, on kept connections that the server had closed."""
    retry_s: Seconds = 0.0
    """Time of these attempts; no latency includes it."""
    user_class: str = ""
    """Name of the locustfile's user class that sent the request."""
    raw_text: str | None = None
    """The server's text, if `text` is the same without its envelope."""
    text_format: str = "raw"
    """The removed envelope; raw: none."""
    ttft_text: Seconds | None = None
    """Time to the first character after the envelope, if there was one."""
    connect: Seconds | None = None
    """Time to open a connection, including TLS; no latency includes it. None on a kept connection."""
    replica: str = ""
    """Address of the server; empty behind a proxy."""
    first_error: str | None = None
    """Error of the first attempt, if there were several."""
    retry_of: Number | None = None
    """The `seq` of the request that this one retries (--retries)."""
    cause: str = ""
    """Cause of a failure, if more is known than its outcome (Cause)."""
    ended_at: Moment | None = None
    """When the request ended, successfully or not, on the clock of `started_at`."""

    @property
    def begins(self) -> float:
        """When the request was sent or, in an open loop, due."""
        return self.started_at if self.due_at is None else self.due_at

    @property
    def end(self) -> float:
        """When the request ended, estimated if the record lacks `ended_at`."""
        return self.started_at + (self.stream_end or self.e2el or 0.0) if self.ended_at is None else self.ended_at

    def moved(self, seconds: float) -> Record:
        """The record on another clock that is ahead by `seconds`."""
        moved = {
            name: None if value is None else value + seconds
            for name in ("started_at", "due_at", "ended_at")
            for value in [getattr(self, name)]
        }
        return msgspec.structs.replace(self, **moved)

    @property
    def unfinished(self) -> bool:
        """Whether the end of the test cut the request off: neither a success nor a failure."""
        return self.outcome == "unfinished"

    @property
    def failed(self) -> bool:
        """Whether the server, the network or the load generator (outcome `client`) failed."""
        return not self.ok and not self.unfinished

    @property
    def known_tokens(self) -> int | None:
        """Output tokens as counted by the server. Chunks are not a substitute: one may hold several tokens."""
        return self.output_tokens if self.output_tokens_source == "usage" else None

    @property
    def tpot(self) -> float | None:
        return tpot(self.ttft, self.e2el, self.known_tokens)

    @property
    def rtf(self) -> float | None:
        """Real-time factor: end-to-end latency over the clip's length; None for a clip without one."""
        return None if self.e2el is None or not self.audio_s else self.e2el / self.audio_s


class SendLag(TypedDict):
    """Delays of a session's packets, in seconds."""

    p50: Seconds
    p99: Seconds
    max: Seconds


class RealtimeRecord(Record, kw_only=True, gc=False):
    """One utterance of a realtime session. Its clock starts when its first packet is sent."""

    api: str = "realtime"
    """Always realtime."""
    dialect: str = ""
    """vllm, sglang, omni or openai; empty if the session did not get that far."""
    session: str = ""
    """The server's id of the session."""
    setup: Seconds | None = None
    """Time from connecting until audio could be sent; no latency includes it. None on a kept session."""
    ttfs: Seconds | None = None
    """Time from the end of speech to the final text."""
    done_latency: Seconds | None = None
    """Time from the message that ended the audio to the final text."""
    rtf_live: Seconds | None = None
    """Time from the first packet to the final text, divided by the seconds of audio sent."""
    send_lag: SendLag | None = None
    """Delays in giving packets to the socket, caused by the load generator."""
    backpressure: Seconds = 0.0
    """Seconds in which the socket accepted no data, because of the server or the network."""
    packets: Count = 0
    """Number of packets sent."""
    close_code: CloseCode | None = None
    """The server's close code, if it closed the session; 1006 without a close frame."""
    events: dict[str, Count] = {}
    """Number of the server's events by type."""
    partial_lag: list[Lag] = []
    """For each text with a known position in the audio: seconds since the audio up to that position was sent."""
    revised: Count = 0
    """Number of withdrawn words."""
    backlog: Seconds | None = None
    """Seconds of audio not yet covered by a text when the audio ended, if known."""


def untrue(record: Record) -> str:
    """Why a record is implausible although each field is within its bounds; empty if it is plausible."""
    if odd := _odd_word(record):
        return f"its {odd} is too long or has control characters"
    times = (record.upload, record.headers, record.ttft, record.e2el, record.stream_end)
    known = [value for value in times if value is not None]
    if known != sorted(known) or (record.ended_at is not None and record.ended_at < record.started_at):
        return "its times are not in order"
    if record.ok != (record.outcome == "ok"):
        return "its outcome contradicts its success"
    if record.ok and (record.ttft is None or record.e2el is None or record.audio_s < LEAST_AUDIO_S):
        return "it succeeded without latencies or audio"
    if record.ok and abs((record.ttft or 0.0) + sum(record.itl) - (record.e2el or 0.0)) > SUM_S:
        return "its gaps do not add up to its latency"
    return ""


_WORDS = (
    "outcome", "error", "first_error", "cause", "output_tokens_source", "finish_reason", "text_format", "user_class",
    "replica",
)  # fmt: skip
_REALTIME_WORDS = (*_WORDS, "api", "dialect", "session")
"""Fields with text that the load generator wrote itself or escaped."""

_words, _realtime_words = attrgetter(*_WORDS), attrgetter(*_REALTIME_WORDS)


def _odd_word(record: Record) -> str:
    """The name of a field whose text is too long or contains control characters; empty without one."""
    if isinstance(record, RealtimeRecord):
        names, words = _REALTIME_WORDS + ("events",) * len(record.events), (*_realtime_words(record), *record.events)
    else:
        names, words = _WORDS, _words(record)
    together = "".join(filter(None, words))
    if together.isascii() and together.isprintable() and len(together) <= MAX_WORD_CHARS:
        return ""
    found = zip(names, words, strict=True)
    return next((name for name, word in found if word and (len(word) > MAX_WORD_CHARS or word != visible(word))), "")


encode_record = msgspec.json.Encoder().encode
REALTIME = b'"api":"realtime"'
"""Identifies a RealtimeRecord's line. It cannot occur within a text, where JSON escapes quotes."""

_FIELD = re.compile(r"(.*) - at `\$\.(\w+)")
"""Splits an error of msgspec into its message and the field's name."""


def record_decoder(kind: type[Record], realtime: type[RealtimeRecord]) -> Callable[[bytes], Record]:
    """Make a function that decodes a record's line as one of two types. It raises ValueError, naming the field, if the
    record is malformed or implausible."""

    def read(line: bytes) -> Record:
        try:
            record = decode(line, realtime if REALTIME in line else kind)
        except Malformed as error:
            found = _FIELD.match(str(error))
            raise ValueError(f"its {found[2]} is invalid: {found[1]}" if found else "it is malformed") from error
        if why := untrue(record):
            raise ValueError(why)
        return record

    return read


decode_record = record_decoder(Record, RealtimeRecord)
