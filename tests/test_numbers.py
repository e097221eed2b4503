"""Impossible numbers from servers become null, over HTTP and in realtime sessions, and end no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr_load.apis.dialects import DIALECTS
from asr_load.apis.transcript import Transcript, read_event
from asr_load.stream.numbers import LIMIT
from asr_load.stream.reader import Answer
from harness.realtime import saying
from harness.runs import run
from harness.sse import read_collected, read_events

NONE = ["true", "false", "-5", "1e300", "-1e300", "1e999", "NaN", "9" * 400, "9" * 5000, str(1 << 64), str(LIMIT)]
NONE += ["[1]", '"7"', "null", "{}"]
KNOWN = {"0": 0, "7": 7, "7.0": 7, str(LIMIT - 1): LIMIT - 1}
COUNTS = [("2.5", None), *((text, None) for text in NONE), *KNOWN.items()]


@pytest.mark.parametrize(("text", "count"), COUNTS)
def test_token_count_is_a_valid_number_or_null(text: str, count: int | None) -> None:
    counts = f'"completion_tokens":{text},"prompt_tokens":{text},"prompt_tokens_details":{{"cached_tokens":{text}}}'
    body = f'data: {{"choices":[],"usage":{{{counts}}}}}\n\n'.encode()
    one_by_one, together = Answer(), Answer()
    read_events(one_by_one, [body], lambda: 1)
    read_collected(together, body, [1], [len(body)], ended=True)
    for answer in (one_by_one, together):
        assert (answer.output_tokens, answer.prompt_tokens, answer.cached_tokens) == (count, count, count)

    transcript = Transcript()
    transcript.ends = 1
    done = f'{{"type":"transcription.done","text":"a","usage":{{"completion_tokens":{text}}}}}'.encode()
    DIALECTS["vllm"].apply(read_event(done), transcript, 1)
    assert transcript.output_tokens == count


@pytest.mark.parametrize("text", NONE)
def test_position_in_the_audio_is_a_valid_number_or_none(text: str) -> None:
    transcript = Transcript()
    numbers = f'"event_index":{text},"audio_start_ms":{text},"audio_end_ms":{text}'
    said = f'{{"type":"transcription.segment","segment_id":"s","text":"a",{numbers}}}'
    DIALECTS["omni"].apply(read_event(said.encode()), transcript, 1)
    assert (transcript.positions, transcript.item("s").start_ms, transcript.index) == ([], 0.0, -1)


def test_impossible_token_count_in_a_session_still_gives_a_record(clips: Path, tmp_path: Path) -> None:
    done: dict[str, object] = {"type": "transcription.done", "text": "a", "usage": {"completion_tokens": 1e300}}
    with saying({"type": "session.created", "id": "s", "created": 1}, last=done) as host:
        words = ("-u", "1", "--requests", "1", "--api", "realtime", "--pace", "0")
        finished = run(host, clips, tmp_path / "r", *words)
    assert finished.code == 0, finished.err
    assert finished.summary["requests"]["success"] == 1
    assert {record["output_tokens_source"] for record in finished.records} == {"chunks"}
