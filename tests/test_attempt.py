"""Attempts: what each exception means, the pause after it, and the record of a request that was never sent."""

from __future__ import annotations

import errno
from collections.abc import Callable

import gevent
import pytest
from gevent import GreenletExit

from asr_load.apis.realtime import RealtimeRequest
from asr_load.apis.transcription_request import TranscriptionRequest
from asr_load.audio.dither import NO_DITHER
from asr_load.http.attempt import Attempt, ExchangeConfig, never_sent
from asr_load.http.connection import PAUSE_S, UserConnection
from asr_load.http.failure import Failure
from asr_load.http.transport import Timeouts
from asr_load.stream.cause import Cause
from asr_load.stream.reader import Answer, ProtocolError
from asr_load.stream.record import RealtimeRecord, Record
from harness.options import settings

REQUEST = TranscriptionRequest("http://h", [], {}, "a", "", 1.0, 0, 0, 0)


class _Attempt(Attempt):
    """An attempt that calls a function instead of sending."""

    def __init__(self, call: Callable[[], object], total_s: float = 60) -> None:
        super().__init__(UserConnection(), REQUEST, ExchangeConfig(Timeouts(60, 60, total_s), 0))
        self._call = call

    def send(self) -> None:
        self._call()

    def fail(self, failure: Failure) -> None:
        self.outcome, self.error = failure.outcome, str(failure)


@pytest.mark.parametrize(
    ("error", "outcome", "message", "is_reraised"),
    [
        (Failure("stalled", "x"), "stalled", "x", False),
        (ProtocolError("x"), "protocol", "x", False),
        (gevent.Timeout(2), "timeout", "not finished within the locustfile's limit of 2 s", True),
        (gevent.Timeout(None), "timeout", "not finished within the locustfile's limit", True),
        (OSError(errno.EMFILE, "x"), "client", "too many open files: raise ulimit -n, or lower -u", False),
        (MemoryError(), "client", "out of memory", False),
        (KeyError("x"), "protocol", "KeyError: 'x'", True),
        (GreenletExit(), "unfinished", "cut off by the end of the test", True),
    ],
)
def test_each_exception_has_its_outcome(error: BaseException, outcome: str, message: str, is_reraised: bool) -> None:
    def fail() -> None:
        raise error

    attempt = _Attempt(fail)
    assert attempt.run() is (error if is_reraised else None)
    assert (attempt.outcome, attempt.error) == (outcome, message)


def test_total_timeout_ends_an_attempt_without_an_exception() -> None:
    attempt = _Attempt(lambda: gevent.sleep(60), total_s=0.01)
    assert attempt.run() is None
    assert (attempt.outcome, attempt.error) == ("timeout", "not finished after 0.01 s")


@pytest.mark.parametrize(("outcome", "pause_s"), [("connect", PAUSE_S), ("client", PAUSE_S), ("cut", 0.0)])
def test_user_pauses_after_a_failure_that_would_repeat_at_once(outcome: str, pause_s: float) -> None:
    def fail() -> None:
        raise Failure(outcome, "x")

    attempt = _Attempt(fail)
    attempt.run()
    assert (attempt.user_connection.pause_s, attempt.user_connection.may_retry) == (pause_s, False)


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (Failure("connect", "x", Cause.TLS), "tls"),
        (Failure("connect", "x"), ""),
        (Failure("rejected", "the server is busy"), "busy"),
    ],
)
def test_cause_is_that_of_the_failure_or_found_in_its_message(failure: Failure, cause: str) -> None:
    def fail() -> None:
        raise failure

    attempt = _Attempt(fail)
    attempt.run()
    assert attempt.make_record(attempt.began, Answer()).cause == cause


@pytest.mark.parametrize("api", ["chat", "realtime"])
def test_request_that_was_never_sent_has_a_record_of_its_api(api: str) -> None:
    options = settings("--api", "realtime").realtime
    assert options is not None
    speech = RealtimeRequest(options, None, NO_DITHER) if api == "realtime" else None
    request = TranscriptionRequest("ws://h", [], {}, "a", "b", 1.0, 0, 0, 0, due=0, realtime=speech)
    record = never_sent(request, ExchangeConfig(Timeouts(1, 1, 1), 0), "client", "why")
    assert type(record) is (RealtimeRecord if api == "realtime" else Record)
    assert (record.outcome, record.ok, record.error, record.reference) == ("client", False, "why", "b")
    assert record.lag is not None
    assert (record.ttft, record.http_status, record.output_tokens, record.text) == (None, None, None, "")
