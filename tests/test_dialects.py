"""Realtime dialects: messages that are sent, and events as the engines' sources write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asr_load.apis.dialects import DIALECTS, choose, detect
from asr_load.apis.realtime import RealtimeOptions
from asr_load.apis.transcript import MAX_TYPES, OTHER, ServerEvent, Transcript, error_text, read_event
from asr_load.languages import joined
from asr_load.stream.reader import ProtocolError

OPTIONS = RealtimeOptions(
    dialect="auto", packet_s=0.1, pace=1, silence_s=0, server_vad=False, utterances=1, model="m", language="en"
)
ITEM = "conversation.item.input_audio_transcription"


def hear(dialect: str, *events: dict[str, Any], ends: int = 1, earlier: tuple[str, ...] = ()) -> Transcript:
    """The state after events received at 1, 2, 3 …, when this many messages had ended a part of the audio."""
    transcript = Transcript(frozenset(earlier))
    transcript.ends = ends
    for at, event in enumerate(events, 1):
        DIALECTS[dialect].apply(read_event(json.dumps(event).encode()), transcript, at)
    return transcript


@pytest.mark.long
def test_openai_types_accept_the_messages() -> None:
    # Late: short tests import this module without it.
    from openai.types.realtime import InputAudioBufferAppendEvent, InputAudioBufferCommitEvent, SessionUpdateEvent

    for name in ("openai", "sglang"):
        dialect = DIALECTS[name]
        (update,) = dialect.configure(OPTIONS, dialect.rates[0])
        if name == "openai":  # SGLang also accepts 16 kHz, unlike OpenAI
            told = SessionUpdateEvent.model_validate_json(update, strict=True)
            assert told.session.type == "transcription"
        InputAudioBufferAppendEvent.model_validate_json(dialect.append(b"AAAA"), strict=True)
        InputAudioBufferCommitEvent.model_validate_json(dialect.end(), strict=True)


def test_first_event_determines_the_dialect() -> None:
    def told(event: dict[str, Any], host: str = "gpu") -> str:
        return detect(read_event(json.dumps({"type": "session.created", **event}).encode()), host)

    assert told({"id": "sess-1", "created": 1795579195}) == "vllm"
    nested = {"event_id": "e", "session": {"object": "realtime.transcription_session", "type": "transcription"}}
    assert told(nested) == "sglang"
    assert told(nested, "api.openai.com") == "openai"
    assert told(nested, "notopenai.com") == "sglang"
    assert told({"event_index": 0, "session": {"intent": "transcription"}}) == "omni"
    assert told({"session": {"object": "realtime.session"}}) == ""
    created = read_event(json.dumps({"type": "session.created", **nested}).encode())
    assert choose("openai", created, "gpu").name == "openai"  # a named dialect of the two is trusted
    assert choose("auto", created, "gpu", accepted="openai").name == "openai"
    assert choose("auto", created, "api.openai.com", accepted="sglang").name == "openai"
    with pytest.raises(ProtocolError, match="the server speaks sglang, not vllm"):
        choose("vllm", created, "gpu")


def test_vllm_deltas_are_joined_and_empty_ones_not_counted() -> None:
    deltas = [{"type": "transcription.delta", "delta": delta} for delta in ("language English<asr_text>Hel", "", "lo")]
    done = {"type": "transcription.done", "text": "language English<asr_text>Hello", "usage": {"completion_tokens": 9}}
    transcript = hear("vllm", *deltas, done, done)
    assert transcript.text == "language English<asr_text>Hello"
    assert transcript.times == [1, 3]
    assert transcript.revised == 0
    assert transcript.output_tokens == 9


def test_items_are_matched_by_id_in_any_order() -> None:
    events = [
        {"type": f"{ITEM}.delta", "item_id": "a", "delta": "one"},
        {"type": f"{ITEM}.delta", "item_id": "b", "delta": "two"},
        {"type": f"{ITEM}.completed", "item_id": "b", "transcript": "two"},
    ]
    sglang = DIALECTS["sglang"]
    assert not sglang.is_final(hear("sglang", *events, ends=2))
    both = hear("sglang", *events, {"type": f"{ITEM}.completed", "item_id": "a", "transcript": "one"}, ends=2)
    assert sglang.is_final(both)
    assert both.text == "one two"
    failed = hear("sglang", {"type": f"{ITEM}.failed", "item_id": "a", "error": {"code": "x", "message": "y"}})
    assert failed.failed == "x: y"


def test_replaced_segments_count_withdrawn_words() -> None:
    def segment(index: int, text: str, end: int = 1000, name: str = "s1") -> dict[str, Any]:
        place = {"segment_id": name, "audio_start_ms": 0, "audio_end_ms": end}
        return {"type": "transcription.segment", "event_index": index, "text": text, **place}

    transcript = hear(
        "omni", segment(1, "a b"), segment(2, "a c d"), segment(3, "a c d", 2000), segment(4, "e", 3000, "s2")
    )
    assert (transcript.text, transcript.revised, transcript.times) == ("a c d e", 1, [1, 2, 4])
    assert transcript.positions[-1] == (4, 3.0)
    end = {"type": "transcription.completed", "event_index": 5, "text": "a c d  e"}
    assert hear("omni", segment(1, "a c d"), segment(2, "e", 3000, "s2"), end).text == "a c d  e"
    with pytest.raises(ProtocolError, match="event_index 1 after 2"):
        hear("omni", segment(2, "a"), segment(1, "b"))


def turn(item: str, previous: str | None = None, *, kind: str = "input_audio_buffer.committed") -> dict[str, Any]:
    return {"type": kind, "item_id": item, "previous_item_id": previous, "item": {"id": item}}


def completed(item: str | None, text: str | None, tokens: int | None = None) -> dict[str, Any]:
    usage = {"type": "duration", "seconds": 1} if tokens is None else {"type": "tokens", "output_tokens": tokens}
    return {"type": f"{ITEM}.completed", "item_id": item, "transcript": text, "usage": usage}


@pytest.mark.parametrize("dialect", ["sglang", "openai"])
@pytest.mark.parametrize(
    "before",
    [
        [turn("a"), turn("b", "a"), turn("c", "b")],
        [turn("c", "b"), turn("b", "a"), turn("a")],  # only the previous_item_id gives the order
        [turn("a"), turn("b"), turn("c")],  # only the order of the commits gives it
        [turn(*pair, kind="conversation.item.created") for pair in (("c", "b"), ("b", "a"), ("a", None))],
        [turn(*pair, kind="conversation.item.added") for pair in (("c", "x"), ("x", "b"), ("b", "a"))],
        [turn("a", "of another utterance"), turn("b", "a"), turn("c", "b")],
    ],
)
def test_turns_are_joined_as_spoken_in_any_order_of_completion(dialect: str, before: list[dict[str, Any]]) -> None:
    transcript = hear(
        dialect, *before, completed("c", "five", 1), completed("a", " one two ", 2), completed("b", "four", 3)
    )
    assert transcript.text == "one two four five"
    assert transcript.output_tokens == 6


def test_items_that_precede_each_other_in_a_circle_are_kept() -> None:
    transcript = hear("openai", turn("a", "b"), turn("b", "a"), completed("b", "two"), completed("a", "one"))
    assert sorted(transcript.text.split()) == ["one", "two"]


def test_tokens_are_unknown_if_those_of_one_turn_are() -> None:
    assert hear("openai", completed("a", "one", 1), completed("b", "two")).output_tokens is None
    assert hear("openai", completed("a", "one", 1), completed("b", "two", 4)).output_tokens == 5
    done = {"type": "transcription.done", "text": "a"}
    odds: list[Any] = [True, "7", -1, 1.5, {}, None]
    for odd in odds:
        assert hear("vllm", {**done, "usage": {"completion_tokens": odd}}).output_tokens is None
    assert hear("vllm", {**done, "usage": {"completion_tokens": 3.0}}).output_tokens == 3


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        (["one ", "", " two"], "one two"),
        (["今天", "天气"], "今天天气"),
        (["今日は。", "カタカナ"], "今日は。カタカナ"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["안녕", "하세요"], "안녕 하세요"),
    ],
)
def test_turns_are_joined_without_a_space_in_scripts_without_spaces(texts: list[str], whole: str) -> None:
    assert joined(texts) == whole
    assert hear("openai", *(completed(str(number), text) for number, text in enumerate(texts))).text == whole


FINALS: dict[str, Any] = {
    "vllm": lambda text: {"type": "transcription.done", "text": text},
    "omni": lambda text: {"type": "transcription.completed", "text": text},
    **dict.fromkeys(("sglang", "openai"), lambda text: completed("a", text)),
}


def partials(dialect: str) -> list[dict[str, Any]]:
    """Three events that add the text ` hello big world`."""
    words = [" hello", " big", " world"]
    match dialect:
        case "vllm":
            return [{"type": "transcription.delta", "delta": word} for word in words]
        case "omni":
            texts = ("".join(words[: number + 1]) for number in range(3))
            return [{"type": "transcription.segment", "segment_id": 1, "text": text} for text in texts]
    return [{"type": f"{ITEM}.delta", "item_id": "a", "delta": word} for word in words]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("text", "whole", "chunks"),
    [
        ("hello big world", "hello big world", 3),
        ("hello  big\nworld ", "hello  big\nworld ", 3),
        ("hellobig world", "hellobig world", 3),
        ("Hello, big world.", "Hello, big world.", 4),
        ("other words", "other words", 4),
        ("", "", 3),
        (None, " hello big world", 3),
        ({"text": "odd"}, " hello big world", 3),
    ],
)
def test_final_text_replaces_partial_texts_and_white_space_is_no_chunk(
    dialect: str, text: Any, whole: str, chunks: int
) -> None:
    transcript = hear(dialect, *partials(dialect), FINALS[dialect](text), FINALS[dialect]("once more"))
    assert transcript.text == whole
    assert transcript.times == list(range(1, chunks + 1))
    assert DIALECTS[dialect].is_final(transcript)
    assert transcript.done_at == 4


def test_segments_are_joined_in_the_order_of_their_audio() -> None:
    def segment(name: Any, start: Any, text: str) -> dict[str, Any]:
        return {"type": "transcription.segment", "segment_id": name, "audio_start_ms": start, "text": text}

    late = segment(10, 2000, "three"), segment(9, 0, "one"), segment("x", 900.5, "two")
    assert hear("omni", *late).text == "one two three"
    assert hear("omni", segment(2, None, "one"), segment(1, "?", "two")).text == "one two"
    whole = hear("omni", *late, {"type": "transcription.completed", "text": "four"})
    assert (whole.text, whole.revised) == ("four", 3)


def test_final_text_of_an_earlier_utterance_is_ignored() -> None:
    again = hear("openai", completed("old", "before"), turn("new"), earlier=("old",))
    assert (again.text, again.times, DIALECTS["openai"].is_final(again)) == ("", [], False)
    assert hear("openai", completed("old", "before"), completed("new", "now"), earlier=("old",)).text == "now"
    # A text without an id that comes before any audio has ended belongs to an earlier utterance.
    for dialect in DIALECTS:
        transcript = hear(dialect, {**FINALS[dialect]("x"), "item_id": None}, ends=0)
        assert (transcript.text, transcript.is_early, DIALECTS[dialect].is_final(transcript)) == ("", True, False)


def test_items_without_ids_are_distinguished_by_order() -> None:
    transcript = hear("sglang", completed(None, "one"), completed(None, "two"), completed(None, "two"), ends=2)
    assert (transcript.text, DIALECTS["sglang"].is_final(transcript)) == ("one two", True)


def test_session_is_settled_when_every_turn_is_done() -> None:
    openai = DIALECTS["openai"]
    started = {"type": "input_audio_buffer.speech_started", "item_id": "a"}
    stopped = {"type": "input_audio_buffer.speech_stopped", "item_id": "a"}
    done = completed("a", "one")
    for events, ends, settled, final in (
        ((started,), 0, False, False),
        ((started, stopped, turn("a")), 0, False, False),
        ((started, stopped, turn("a"), done), 0, True, True),
        ((started, stopped, turn("a"), done, started), 0, False, False),
        ((started, stopped, turn("a"), turn("b", "a"), done), 0, False, False),
        ((started, turn("a"), done), 1, True, True),  # our message ended the turn
        ((started, stopped, turn("a"), done), 1, True, False),  # our message may have ended another turn
    ):
        transcript = hear("openai", *events, ends=ends)
        assert (transcript.is_settled, openai.is_final(transcript)) == (settled, final), events


def test_empty_commit_is_distinguished_from_other_errors() -> None:
    code = "input_audio_buffer_commit_empty"
    assert DIALECTS["openai"].refuses_end(ServerEvent("error", error={"code": code, "message": "buffer too small"}))
    assert DIALECTS["sglang"].refuses_end(ServerEvent("error", error="x", code=code))
    assert not DIALECTS["openai"].refuses_end(ServerEvent("error", error={"code": "invalid_audio"}))
    assert not DIALECTS["vllm"].refuses_end(ServerEvent("error", error={"code": code}))


ODD: list[Any] = [None, True, 7, -1.5, 1 << 80, "text", "\ud83d", [], ["a", [1]], {}, {"text": {"a": None}}]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "field", [name for name in ServerEvent.__struct_fields__ if name not in ("type", "event_index")]
)
def test_event_with_any_json_in_any_field_is_accepted(dialect: str, field: str) -> None:
    kinds = ["x.partial", "error", "session.created", *(event["type"] for event in partials(dialect))]
    kinds += [FINALS[dialect]("")["type"], "input_audio_buffer.committed", "conversation.item.created"]
    for kind in dict.fromkeys(kinds):
        for odd in ODD:
            transcript = hear(dialect, {"type": kind, field: odd})
            event = read_event(json.dumps({"type": kind, field: odd}).encode())
            transcript.count(event, 1)
            assert isinstance(error_text(event), str)
            assert isinstance(detect(event, "gpu"), str)
            transcript.text.encode()
            assert transcript.events == {kind: 1}


def test_events_without_a_name_are_counted_and_kinds_are_bounded() -> None:
    transcript = Transcript()
    for odd in ODD:
        if not isinstance(odd, str):
            transcript.count(read_event(json.dumps({"type": odd}).encode()), 1)
    assert transcript.events == {OTHER: len(ODD) - 2}
    for number in range(2 * MAX_TYPES):
        transcript.count(ServerEvent(f"kind {number}"), 1)
    assert len(transcript.events) == MAX_TYPES
    assert transcript.events.total() == len(ODD) - 2 + 2 * MAX_TYPES


def test_event_index_that_is_not_a_number_is_ignored() -> None:
    assert hear("omni", {"type": "x", "event_index": 2}, {"type": "x", "event_index": "1"}).index == 2
