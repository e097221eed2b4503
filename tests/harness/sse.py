"""Events of a stream, as bytes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest

from asr_load.stream.reader import Answer, ProtocolError


def chunk(content: str | None = None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    if content is not None:
        delta["content"] = content
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def usage(tokens: int) -> dict[str, Any]:
    details = {"cached_tokens": 3}
    return {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens, "prompt_tokens_details": details}}


def sse(*events: Any, done: bool = True) -> list[bytes]:
    lines = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    return [*lines, b"data: [DONE]\n\n"] if done else lines


def read(reads: Iterable[bytes]) -> Answer:
    """Parse a stream in three ways that must agree: event by event with sseclient, collected and parsed at the end, and
    collected and parsed after every read. The clock is the number of reads so far."""
    reads = list(reads)
    answer, at_the_end, by_and_by = Answer(), Answer(), Answer()
    ticks = itertools.count(1)
    body, ends = b"".join(reads), list(itertools.accumulate(map(len, reads)))
    try:
        answer.read_events(reads, lambda: next(ticks))
    except ProtocolError:
        with pytest.raises(ProtocolError):
            at_the_end.read_collected(body, range(1, len(reads) + 1), ends, ended=True)
        raise
    else:
        at_the_end.read_collected(body, range(1, len(reads) + 1), ends, ended=True)
        for n in range(1, len(reads) + 1):
            by_and_by.read_collected(body[: ends[n - 1]], range(1, n + 1), ends[:n], ended=n == len(reads))
        assert public(by_and_by) == public(answer)
    assert public(at_the_end) == public(answer)
    return answer


def public(answer: Answer) -> dict[str, Any]:
    return {name: value for name, value in vars(answer).items() if not name.startswith("_")}


ROLE = chunk("", role="assistant")
