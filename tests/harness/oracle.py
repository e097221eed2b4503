"""The reference for the readers: a request sent with requests, whose stream sseclient-py parses."""

from __future__ import annotations

import time
from typing import NamedTuple

import requests

from asr_load.stream.reader import Answer, ProtocolError
from harness.patience import PATIENCE_S
from harness.peer import ca_file
from harness.sse import read_events


class Reading(NamedTuple):
    """The content of a response, without times."""

    outcome: str
    http_status: int
    text: str
    chunks: int
    output_tokens: int | None
    finish_reason: str | None
    streamed: bool


def ask(url: str) -> Reading:
    """Send a request and read its response with the libraries that most clients use."""
    answer = Answer()
    with requests.post(url, data=b"{}", stream=True, timeout=PATIENCE_S, verify=ca_file()) as response:
        if response.status_code != 200:
            return _reading(f"http_{response.status_code}", response.status_code, answer)
        answer.framed = bool({"transfer-encoding", "content-length"} & {name.lower() for name in response.headers})
        try:
            read_events(answer, response.iter_content(None), time.perf_counter_ns)
        except ProtocolError:
            return _reading("protocol", 200, answer)
        except requests.RequestException:
            outcome = answer.outcome() if answer.is_complete else "cut"
            return _reading(outcome, 200, answer)
    return _reading(answer.outcome(), 200, answer)


def _reading(outcome: str, status: int, answer: Answer) -> Reading:
    tokens = answer.output_tokens
    if tokens is None and answer.streamed and answer.times:
        tokens = len(answer.times)
    return Reading(outcome, status, answer.text, len(answer.times), tokens, answer.finish_reason, answer.streamed)
