"""What an utterance's events say: malformed ones, error messages, and the limits on items and counts."""

from __future__ import annotations

import gc
import json
import time

import pytest

from asr_load.apis.dialects import DIALECTS
from asr_load.apis.transcript import MAX_ITEMS, ServerEvent, Transcript, error_text, read_event
from asr_load.stream.numbers import LIMIT
from asr_load.stream.reader import ProtocolError


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"delta":"x"}', b'"x"', b'{"type":"\xff"}'])
def test_malformed_event_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_event(data)


def test_error_messages_of_each_shape() -> None:
    assert error_text(ServerEvent("error", error="broke", code="processing_error")) == "processing_error: broke"
    assert error_text(ServerEvent("error", error={"type": "t", "code": None, "message": "m"})) == "t: m"
    assert error_text(ServerEvent("error", error={"odd": 1})) == "{'odd': 1}"


def test_number_of_items_of_an_utterance_is_limited() -> None:
    transcript = Transcript()
    for number in range(MAX_ITEMS):
        transcript.append(f"{number}", "x", 1)
    with pytest.raises(ProtocolError, match=f"more than {MAX_ITEMS} items"):
        transcript.append("one more", "x", 1)
    transcript.append("0", "x", 1)
    assert transcript.text.split() == ["xx", *["x"] * (MAX_ITEMS - 1)]


ITEM = "conversation.item.input_audio_transcription"
EVENTS: dict[str, list[tuple[str, dict[str, object]]]] = {
    "deltas of one item": [("vllm", {"type": "transcription.delta", "delta": "x" * 1500})],
    "items": [
        ("openai", {"type": "input_audio_buffer.committed"}),
        ("openai", {"type": f"{ITEM}.completed", "transcript": "x"}),
    ],
}


@pytest.mark.parametrize("name", EVENTS)
def test_time_per_event_does_not_grow_with_earlier_events(name: str) -> None:
    def spent(count: int) -> float:
        transcript = Transcript()
        events = [
            (DIALECTS[dialect], read_event(json.dumps({**fields, "item_id": f"{number}"}).encode()))
            for number in range(count)
            for dialect, fields in EVENTS[name]
        ]
        gc.disable()  # a collection walks the objects of all tests
        began = time.thread_time()
        for dialect, event in events:
            dialect.apply(event, transcript, 1)
            dialect.is_final(transcript)
        took = time.thread_time() - began
        gc.enable()
        return took

    # 10 times as long for 10 times as many; 100 times if each event looked at all earlier ones.
    assert min(spent(4_000) for _ in range(3)) < 40 * max(spent(400) for _ in range(3))


def test_sum_of_token_counts_above_the_limit_is_unknown() -> None:
    transcript = Transcript()
    for number in range(3):
        transcript.finish(str(number), "a", 1, LIMIT - 1)
    assert transcript.output_tokens is None
