"""Causes of failed requests, and whether the advice matches them."""

from __future__ import annotations

import pytest

from asr_load.results.summary import summarise
from asr_load.results.verdict import CAUSES, what_failed
from asr_load.stream.cause import Cause, cause_of
from asr_load.stream.record import Record
from harness.records import failure, record, run_info

CONTEXT = [
    "This model's maximum context length is 8192 tokens. However, you requested 9001 tokens",  # vLLM
    "The input (9001 tokens) is longer than the model's context length (8192 tokens).",  # SGLang
    "context_length_exceeded: the request is too large",  # OpenAI
    "The decoder prompt (length 9001) is longer than the maximum model length of 8192.",  # vLLM
    "Input length (9001) exceeds the maximum allowed length: maximum input length is 8192",
]
BUSY = ["The request queue is full.", "rate_limit_exceeded: slow down", "Engine is overloaded, try again"]
PLAIN = [
    "The plain HTTP request was sent to HTTPS port",  # nginx
    "Client sent an HTTP request to an HTTPS server.",  # Go
    "Instead use the HTTPS scheme to access this URL, please.",  # Apache
]
OTHER = ["m is not a multimodal model", "Field required: language", "length must be positive", "boom"]


@pytest.mark.parametrize(
    ("cause", "messages"), [(Cause.CONTEXT, CONTEXT), (Cause.BUSY, BUSY), (Cause.PLAIN, PLAIN), ("", OTHER)]
)
def test_error_messages_of_servers_determine_the_cause(cause: str, messages: list[str]) -> None:
    assert {message: cause_of(400, None, message) for message in messages} == dict.fromkeys(messages, cause)


def test_status_codes_take_precedence_over_messages() -> None:
    assert cause_of(429, None, "") == cause_of(503, None, "no") == cause_of(200, 503, CONTEXT[0]) == Cause.BUSY


@pytest.mark.parametrize(
    ("outcome", "cause", "cure", "not_cure"),
    [
        ("http_400", Cause.CONTEXT, "--chunk-long", "--omit"),
        ("stream_error", Cause.CONTEXT, "--chunk-long", "log"),
        ("http_400", Cause.PLAIN, "use https://", "--omit"),
        ("http_400", "", "--omit", "context"),
        ("connect", Cause.TLS, "certificate", "is the server running"),
        ("connect", Cause.NAME, "spelling of --host", "is the server running"),
        ("connect", Cause.UNREACHABLE, "firewall", "is the server running"),
        ("connect", Cause.PROXY, "NO_PROXY", "is the server running"),
        ("connect", Cause.REFUSED, "is the server running there?", "certificate"),
        ("stream_error", Cause.BUSY, "lower -u or the rate", "log"),
        ("http_503", Cause.BUSY, "--ready-timeout", "log"),
        ("http_502", "", "gateway", "log"),
    ],
)
def test_advice_matches_the_cause(outcome: str, cause: str, cure: str, not_cure: str) -> None:
    line = what_failed(outcome, "words of the server", "http://h", cause)
    assert cure in line
    assert not_cure not in line.removeprefix("http://h")
    records = [failure(n, outcome, error="words of the server", cause=cause) for n in range(2)]
    assert summarise(records, run_info(host="http://h")).validity.reasons == [f"no request succeeded: 2× {line}"]


def test_every_cause_has_advice() -> None:
    assert set(CAUSES) == set(Cause)


def test_connection_refused_names_the_server_or_the_proxy() -> None:
    assert what_failed("connect", "Connection refused", "http://h", Cause.REFUSED).startswith(
        "connection refused by http://h:"
    )
    proxy = what_failed("connect", "the proxy: Connection refused", "http://h", Cause.PROXY)
    assert proxy.startswith("http://h: the proxy: Connection refused: check the proxy")


def stretch(outcome: str, **changes: object) -> list[Record]:
    """Two hundred requests, one per second. Those of the second quarter fail."""
    return [
        failure(n, outcome, started_at=1000.0 + n, ended_at=1000.01 + n, **changes)
        if 50 <= n < 100
        else record(n, started_at=1000.0 + n, e2el=0.9, stream_end=0.9)
        for n in range(200)
    ]


@pytest.mark.parametrize(
    ("outcome", "changes", "overload"),
    [
        ("http_429", {"http_status": 429}, True),
        ("http_503", {"cause": Cause.BUSY}, True),
        ("stream_error", {"cause": Cause.BUSY}, True),  # queue full, with status 200
        ("stream_error", {}, False),
        ("http_500", {"http_status": 500}, False),
        ("connect", {"cause": Cause.REFUSED}, False),
    ],
)
def test_full_queue_is_an_overload_and_not_an_outage(outcome: str, changes: dict[str, object], overload: bool) -> None:
    records = stretch(outcome, **changes)
    (reason, *_) = summarise(records, run_info()).validity.reasons
    assert f"(50 {outcome}): " in reason
    assert ("the server was overloaded and refused requests (2" in reason) == overload
    assert ("an outage (2" in reason) != overload
    assert summarise(records, run_info()).steadiness.verdict == "interrupted"
