"""One attempt to transcribe a clip, over HTTP or in a realtime session: what its end means, and its record."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import gevent
import msgspec

from asr_load.apis.envelopes import unwrap
from asr_load.apis.transcript import Transcript
from asr_load.apis.transcription_request import TranscriptionRequest
from asr_load.http.connection import UserConnection
from asr_load.http.failure import Failure, client_want
from asr_load.http.transport import Timeouts, Transport
from asr_load.stream.cause import cause_of
from asr_load.stream.reader import Answer, ProtocolError
from asr_load.stream.record import RealtimeRecord, Record
from asr_load.stream.timing import latencies, seconds
from asr_load.text import Intake


@dataclass(frozen=True)
class ExchangeConfig:
    """The settings that all exchanges and sessions of a test share."""

    limits: Timeouts
    epoch_ns: int
    """Offset that converts a perf_counter stamp to nanoseconds since the epoch."""
    intake: Intake = field(default_factory=Intake)
    transport: Transport = field(default_factory=Transport)
    keep: bool = True
    """Whether to keep connections for the next request."""


_FROM_REQUEST = ("clip", "seq", "user", "worker", "user_class", "warmup", "reference", "retry_of")
"""Fields of a record that are those of its request."""

_UNKNOWN = dict.fromkeys(("upload", "headers", "stream_end", "prompt_tokens", "cached_tokens", "finish_reason"))
"""Fields of a record that sessions, or requests that were never sent, do not have."""


class Attempt:
    """Sends a request once and makes its record. A subclass knows how to `send` it, and whether the response was
    complete when something made the attempt `fail`."""

    def __init__(self, user_connection: UserConnection, request: TranscriptionRequest, config: ExchangeConfig) -> None:
        self.user_connection, self.request, self.config = user_connection, request, config
        self.began = time.perf_counter_ns()
        self.outcome = "protocol"
        self.error: str | None = None
        self.cause = ""
        self.status: int | None = None
        """Status of the HTTP response."""
        self.error_code: int | None = None
        """Code of an error within a response, like a status of HTTP."""

    def send(self) -> None:
        """Send the request and receive the response. Sets the outcome, or raises Failure and ProtocolError."""
        raise NotImplementedError

    def fail(self, failure: Failure) -> None:
        """Set the outcome after a failure, unless the response was already complete."""
        raise NotImplementedError

    def run(self) -> BaseException | None:
        """Send the request within the total timeout. Returns the exception that the caller must reraise, or None."""
        self.user_connection.reset()
        reraise: BaseException | None = None
        limit = gevent.Timeout(self.config.limits.total)
        limit.start()
        try:
            self.send()
        except BaseException as error:
            reraise = self.end_with(error, limit)
        finally:
            limit.close()
        if self.outcome in ("connect", "client"):
            self.user_connection.pause()
        return reraise

    def end_with(self, error: BaseException, limit: gevent.Timeout) -> BaseException | None:
        """Set the outcome after an exception. Returns it if the caller must reraise it, otherwise None."""
        reraise: BaseException | None = None
        match error:
            case Failure():
                failure = error
            case ProtocolError():
                failure = Failure("protocol", str(error))
            case gevent.Timeout() if error is limit:
                failure = Failure("timeout", f"not finished after {self.config.limits.total:g} s")
            case gevent.Timeout():
                seconds = "" if error.seconds is None else f" of {error.seconds:g} s"
                failure, reraise = Failure("timeout", f"not finished within the locustfile's limit{seconds}"), error
            case Exception() if want := client_want(error):
                failure = Failure("client", want)
            case Exception():
                failure, reraise = Failure("protocol", f"{type(error).__name__}: {error}"), error
            case _:  # usually GreenletExit, with which Locust ends its users
                failure, reraise = Failure("unfinished", "cut off by the end of the test"), error
        self.cause = failure.cause
        self.fail(failure)
        return reraise

    def make_record(self, start: int, content: Answer | Transcript, **fields: Any) -> Record:
        """Make the record of the request, which started at `start` (perf_counter nanoseconds) and ends now. `fields`:
        those that only HTTP or only realtime sessions have."""
        request, config = self.request, self.config
        intake, epoch_ns = config.intake, config.epoch_ns
        raw = content.text
        unwrapped = unwrap(raw, request.text_format)
        if self.outcome == "ok" and not unwrapped.text.strip():
            self.outcome, self.error = "empty", "no text except an envelope"
        is_ok, error = self.outcome == "ok", self.error or ""
        tokens, source = content.output_tokens, "usage"
        if tokens is None and content.streamed and content.times:
            tokens, source = len(content.times), "chunks"  # a chunk may hold several tokens
        common: dict[str, Any] = {
            **{name: getattr(request, name) for name in _FROM_REQUEST},
            "audio_s": round(request.audio_s, 3),
            "started_at": (start + epoch_ns) / 1e9,
            "ended_at": (time.perf_counter_ns() + epoch_ns) / 1e9,
            "due_at": None if request.due is None else (request.due + epoch_ns) / 1e9,
            "lag": None if request.due is None else (start - request.due) / 1e9,
            "outcome": self.outcome,
            "ok": is_ok,
            "http_status": self.status,
            "error": None if is_ok else intake.line(error),
            "cause": "" if is_ok else self.cause or cause_of(self.status, self.error_code, error),
            **msgspec.structs.asdict(latencies(start, content.times)),
            "chunks": len(content.times),
            "streamed": content.streamed,
            "text": intake.speech(unwrapped.text),
            "raw_text": None if unwrapped.text == raw else intake.speech(raw),
            "text_format": unwrapped.format,
            "ttft_text": None if unwrapped.format == "raw" else seconds(start, content.time_of(unwrapped.start)),
            "output_tokens": tokens,
            "output_tokens_source": None if tokens is None else source,
            "connect": self.user_connection.connect_s,
            "replica": self.user_connection.replica,
        }
        kind = Record if request.realtime is None else RealtimeRecord
        return kind(**{**_UNKNOWN, **common, **fields})


def never_sent(request: TranscriptionRequest, config: ExchangeConfig, outcome: str, why: str) -> Record:
    """The record of a request that was taken from the schedule but never sent."""
    attempt = Attempt(UserConnection(), request, config)
    attempt.outcome, attempt.error = outcome, why
    return attempt.make_record(attempt.began, Answer())
