"""Variants of streams that servers, gateways and proxies send: from bytes to outcomes."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest

from asr_load.stream.coding import Decoded
from asr_load.stream.limits import MAX_BYTES
from asr_load.stream.reader import GOOD_ENDS, GRACE_S, Answer, ProtocolError
from harness.sse import ROLE, chunk, read, read_events, sse, usage

TEXT = [ROLE, chunk("he"), chunk(" said")]


@pytest.mark.parametrize("reason", sorted(GOOD_ENDS | {"STOP", "MAX_TOKENS", "COMPLETE"}))
def test_good_finish_reasons_are_ok(reason: str) -> None:
    answer = read(sse(*TEXT, chunk(None, reason)))
    assert (answer.outcome(), answer.finish_reason) == ("ok", reason)


@pytest.mark.parametrize("reason", ["error", "content_filter", "abort", "SAFETY", "timeout", "what is this"])
@pytest.mark.parametrize("done", [True, False])
def test_other_finish_reasons_are_aborted(reason: str, done: bool) -> None:
    for events in ([*TEXT, chunk(None, reason)], [*TEXT, chunk(None, reason), chunk(None, "stop")]):
        answer = read(sse(*events, done=done))
        assert (answer.outcome(), answer.finish_reason, answer.text) == ("aborted", reason, "he said")


def test_empty_finish_reason_is_not_an_end() -> None:
    assert read(sse(chunk("he", ""), chunk(" said", ""), done=False)).outcome() == "cut"
    assert read(sse(chunk("he", ""), chunk(" said", ""), chunk(None, "stop"), done=False)).outcome() == "ok"


def test_grace_ends_if_content_follows_a_finish_reason() -> None:
    answer = Answer()
    body = b"".join(sse(*TEXT, chunk(None, "stop"), done=False))
    answer.read_collected(body, [1], [len(body)], ended=False)
    assert (answer.said_its_end, answer.grace_s) == (True, GRACE_S[False])
    more = body + b"".join(sse(chunk(" more"), done=False))
    answer.read_collected(more, [1, 2], [len(body), len(more)], ended=False)
    assert (answer.said_its_end, answer.grace_s) == (False, float("inf"))
    # The first end was not the end, so a second one is not trusted.
    again = more + b"".join(sse(chunk(None, "stop"), done=False))
    answer.read_collected(again, [1, 2, 3], [len(body), len(more), len(again)], ended=False)
    assert answer.grace_s == float("inf")
    whole = again + b"data: [DONE]\n\n"
    answer.read_collected(whole, [1, 2, 3, 4], [len(body), len(more), len(again), len(whole)], ended=False)
    assert (answer.grace_s, answer.text, answer.outcome()) == (GRACE_S[True], "he said more", "ok")


ERRORS: list[tuple[Any, str]] = [
    ({"error": "out of memory"}, "out of memory"),
    ({"error": {"message": "out of memory", "code": 500}}, "out of memory"),
    ({"error": ["out of memory"]}, "out of memory"),
    ({"error": [{"message": "out of memory"}]}, "out of memory"),
    ({"error": True, "message": "out of memory"}, "out of memory"),
    ({"choices": [{"index": 0, "delta": {}, "error": {"message": "out of memory"}}]}, "out of memory"),
    ({"choices": [{"index": 0, "delta": {"content": "x"}, "error": "out of memory"}]}, "out of memory"),
    ({"object": "error", "message": "out of memory", "code": 400}, "out of memory"),
    ({"message": "out of memory", "type": "server_error"}, "out of memory"),
    ({"type": "error", "error": {"message": "out of memory"}}, "out of memory"),
    ({"type": "invalid_request_error", "message": "out of memory"}, "out of memory"),
    ({"detail": "out of memory"}, "out of memory"),
    ({"detail": [{"loc": ["body"], "msg": "out of memory"}]}, "out of memory"),
    ({"code": 1301, "msg": "out of memory"}, "out of memory"),
    ({"code": 500}, "500"),
    ({"errors": ["out of memory"]}, "out of memory"),
    ({"success": False, "message": "out of memory"}, "out of memory"),
    ({"base_resp": {"status_code": 1002, "status_msg": "out of memory"}}, "out of memory"),
    ({"error": {}, "error_msg": 0, "message": "out of memory"}, "out of memory"),
]


@pytest.mark.parametrize(("event", "words"), ERRORS)
@pytest.mark.parametrize("before", [[], TEXT])
@pytest.mark.parametrize("after", [[], [chunk(" more", "stop"), usage(3)]])
@pytest.mark.parametrize("done", [True, False])
def test_error_as_an_event_is_a_stream_error(
    event: Any, words: str, before: list[Any], after: list[Any], done: bool
) -> None:
    answer = read(sse(*before, event, *after, done=done))
    assert answer.outcome() == "stream_error"
    assert words in (answer.error or "")


@pytest.mark.parametrize(("event", "words"), ERRORS)
def test_error_in_place_of_a_stream_is_a_stream_error(event: Any, words: str) -> None:
    answer = read([json.dumps(event, indent=1).encode()])
    assert answer.outcome() == "stream_error"
    assert words in (answer.error or "")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (b'event: error\ndata: {"message": "out of memory"}\n\n', "out of memory"),
        (b'event:error\ndata:{"error": {"message": "out of memory"}}\n\n', "out of memory"),
        (b"event: error\ndata: out of memory\n\n", "out of memory"),
        (b'data: "out of memory"\nevent: error\n\n', "out of memory"),
        (b'event: response.error\ndata: {"detail": "out of memory"}\n\n', "out of memory"),
        (b"event: error\n\n", "without a message"),
        (b'error: {"code": 500, "message": "out of memory"}\n\n', "out of memory"),
        (b"error:out of memory\r\n\r\n", "out of memory"),
        (b"id: 3\nerror: out of memory\n\n", "out of memory"),
    ],
)
@pytest.mark.parametrize("before", [[], TEXT])
@pytest.mark.parametrize("after", [b"", b"data: [DONE]\n\n"])
def test_event_named_error_is_a_stream_error(block: bytes, words: str, before: list[Any], after: bytes) -> None:
    answer = read([*sse(*before, done=False), block, after])
    assert answer.outcome() == "stream_error"
    assert words in (answer.error or "")


def test_first_of_several_errors_is_recorded() -> None:
    assert read(sse({"error": "the cause"}, {"error": "what follows"})).error == "the cause"


@pytest.mark.parametrize(
    "body", [{"status": "queued"}, {"id": "x", "choices": None}, {}, {"result": {"transcript": "elsewhere"}}]
)
def test_json_without_a_transcript_is_a_stream_error(body: dict[str, Any]) -> None:
    answer = read([json.dumps(body).encode()])
    assert (answer.outcome(), answer.error) == ("stream_error", json.dumps(body))


@pytest.mark.parametrize(
    "alive",
    [
        b": keep-alive\n\n",
        b":\n\n",
        b"event: ping\ndata: anything\n\n",
        b'event: ping\ndata: {"type": "ping"}\n\n',
        b"event: ping\ndata:\n\n",
        b"event: heartbeat\ndata: 12:00\n\n",
        b'data: {"type": "ping"}\n\n',
        b"data: null\n\n",
        b"data:\n\n",
        b"data\n\n",
        b"data:   \n\n",
        b"\n\n",
        b"retry: 500\n\n",
        b'data: {"choices": []}\n\n',
        b'data: {"choices": null}\n\n',
        b"data: {}\n\n",
        b'data: {"code": 200, "message": "working on it"}\n\n',
        b'data: {"success": true, "message": "working on it"}\n\n',
    ],
)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_keep_alive_events_are_neither_tokens_nor_errors(alive: bytes, newline: bytes) -> None:
    one, two, three, end = sse(*TEXT, chunk(None, "stop"), done=False)
    reads = [alive, one, two, alive, three, end, alive, b"data: [DONE]\n\n", alive]
    answer = read([data.replace(b"\n", newline) for data in reads])
    assert (answer.outcome(), answer.text, answer.times) == ("ok", "he said", [3, 5])


@pytest.mark.parametrize(
    "end", [b"data:[DONE]\n\n", b"data:   [DONE] \n\n", b"data: [DONE]", b"data: [DONE]\t\r\n\r\n"]
)
def test_done_is_recognized_within_white_space(end: bytes) -> None:
    answer = read([*sse(*TEXT, done=False), end])
    assert (answer.done, answer.outcome()) == (True, "ok")


def test_content_may_be_a_list_of_parts() -> None:
    parts = [{"type": "text", "text": "he"}, " said", {"type": "image", "url": "x"}]
    answer = read(sse({"choices": [{"delta": {"content": parts}}]}, chunk(None, "stop")))
    assert (answer.text, len(answer.times)) == ("he said", 1)
    whole = {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}
    assert read([json.dumps(whole).encode()]).text == "he said"
    for odd in ({"choices": [{"delta": {"content": {"a": 1}}}]}, {"text": {"a": 1}}):
        with pytest.raises(ProtocolError):
            read(sse(odd))


@pytest.mark.parametrize("field", ["chat", "transcript"])
def test_surrogate_halves_in_two_events_are_joined(field: str) -> None:
    def event(half: str) -> bytes:
        text = f'"ok {half}"' if half == "\\ud83d" else f'"{half} fine"'
        if field == "chat":
            return f'data: {{"choices": [{{"delta": {{"content": {text}}}}}]}}\n\n'.encode()
        return f'data: {{"type": "transcript.text.delta", "delta": {text}}}\n\n'.encode()

    answer = read([event("\\ud83d"), event("\\ude00"), b"data: [DONE]\n\n"])
    assert (answer.text, len(answer.times), answer.outcome()) == ("ok 😀 fine", 2, "ok")
    alone = read([event("\\ud83d"), b"data: [DONE]\n\n"])
    assert alone.text == "ok �"
    alone.text.encode()


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("parts", [["he", "said"], [" he", " said"]])
def test_segments_end_with_a_framed_body(framed: bool, parts: list[str]) -> None:
    answer = Answer()
    answer.framed = framed
    body = b"".join(sse(*({"text": part} for part in parts), done=False))
    answer.read_collected(body, [1], [len(body)], ended=True)
    assert answer.text.strip() == "he said"
    assert answer.outcome() == ("ok" if framed else "cut")
    assert not answer.said_its_end


def test_chat_stream_without_an_end_is_cut_in_a_framed_body() -> None:
    answer = Answer()
    answer.framed = True
    read_events(answer, sse(*TEXT, done=False), lambda: 1)
    assert answer.outcome() == "cut"


@pytest.mark.parametrize(
    ("usage_", "counted"),
    [
        ({"completion_tokens": 3, "prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 2}}, (3, 9, 2)),
        ({"output_tokens": 3, "input_tokens": 9, "type": "tokens"}, (3, 9, None)),
        ({"completion_tokens": 3.0, "prompt_tokens": 9.0, "prompt_tokens_details": None}, (3, 9, None)),
        ({"completion_tokens": None, "prompt_tokens": "9"}, (None, None, None)),
        ({"type": "duration", "seconds": 11}, (None, None, None)),
        ("none", (None, None, None)),
        (7, (None, None, None)),
        ([], (None, None, None)),
    ],
)
def test_usage_of_each_kind_is_parsed(usage_: Any, counted: tuple[int | None, ...]) -> None:
    answer = read(sse(*TEXT, chunk(None, "stop"), {"choices": [], "usage": usage_}))
    assert (answer.output_tokens, answer.prompt_tokens, answer.cached_tokens) == counted
    assert answer.outcome() == "ok"


def part(content: str | None = None, message: str | None = None, finish: str | None = None) -> dict[str, Any]:
    """A chat chunk with a delta, a message or both."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    if content is not None:
        choice["delta"] = {"content": content}
    if message is not None:
        choice["message"] = {"role": "assistant", "content": message}
    return {"object": "chat.completion.chunk", "choices": [choice]}


def delta(text: str) -> dict[str, Any]:
    return {"type": "transcript.text.delta", "delta": text}


def done(text: str | None) -> dict[str, Any]:
    return {"type": "transcript.text.done", "text": text}


CHAT, DELTAS = [part("he "), part("said")], [delta("he "), delta("said")]
SAME = [
    [*CHAT, part("", "he said", "stop")],
    [*CHAT, part(None, "he said", "stop")],
    [*CHAT, part(None, "he said"), part(None, "he said", "stop")],
    [*CHAT, {"choices": [{"delta": None, "message": {"content": "he said"}, "finish_reason": "stop"}]}],
    [*CHAT, {"choices": [{"message": {"content": [{"type": "text", "text": "he said"}]}, "finish_reason": "stop"}]}],
    [part("he ", "he "), part("said", "he said"), part("", "he said", "stop")],
    [part("he ", "he "), part("said", "said", "stop")],  # the message repeats the delta
    [part("he "), part("said", "he said", "stop")],
    [part(None, "he "), part(None, "he said"), part(None, "he said", "stop")],  # the text so far
    [part(None, "he "), part(None, "said"), part(None, None, "stop")],  # pieces
    [part(None, "he "), part(None, "said"), part(None, "he said", "stop")],
    [*DELTAS, done("he said")],
    [*DELTAS, done("")],
    [*DELTAS, done(None)],
    [*DELTAS, {"type": "transcript.text.segment", "text": "he said", "speaker": "A"}, done("he said")],
    [*DELTAS, {"text": "he said", "usage": {"type": "duration", "seconds": 2}}],
    [{"text": "he"}, {"text": "said"}, {"text": "he said"}],
    [{"text": "he"}, {"text": "said"}, done("he said")],
]


@pytest.mark.parametrize("events", SAME)
def test_final_text_equal_to_its_parts_is_not_new_text(events: list[dict[str, Any]]) -> None:
    answer = read(sse(*events))
    assert (answer.text, answer.times, answer.part_times, answer.outcome()) == ("he said", [1, 2], [1, 2], "ok")


@pytest.mark.parametrize(
    ("events", "text", "times", "part_times"),
    [
        # It differs in spaces only: its spaces are right, and no text is new.
        ([part("he"), part("said"), part(None, "he said", "stop")], "he said", [1, 2], [1, 2]),
        ([part(" he"), part(" said"), part(None, "he said", "stop")], "he said", [1, 2], [1, 2]),
        ([delta("he "), delta("said"), done("he said\n")], "he said\n", [1, 2], [1, 2]),
        ([{"text": "he"}, {"text": "said"}, done("he  said")], "he  said", [1, 2], [1, 2]),
        # It differs in words: the different words came last.
        ([part("he "), part("sad"), part(None, "he said", "stop")], "he said", [1, 2, 3], [1, 3]),
        ([part("he "), part("sad", "he said", "stop")], "he said", [1, 2], [1, 2]),
        ([delta("he "), delta("said"), done("He said.")], "He said.", [1, 2, 3], [3]),
        ([delta("he "), delta("said"), done("he said so")], "he said so", [1, 2, 3], [1, 2, 3]),
        ([delta("he "), delta("said"), done("he")], "he", [1, 2], [1]),
        # It is the only text.
        ([part("", "he said", "stop")], "he said", [1], [1]),
        ([done("he said")], "he said", [1], [1]),
        # Repeated words are speech.
        ([{"text": "no"}, {"text": "no"}], "no no", [1, 2], [1, 2]),
        ([delta("no "), delta("no ")], "no no ", [1, 2], [1, 2]),
    ],
)
def test_final_text_replaces_its_parts(
    events: list[dict[str, Any]], text: str, times: list[int], part_times: list[int]
) -> None:
    answer = read(sse(*events))
    assert (answer.text, answer.times, answer.part_times) == (text, times, part_times)


def test_final_text_joined_from_surrogates_is_not_new_text() -> None:
    answer = read(sse(part("ok \ud83d"), part("\ude00 fine"), part(None, "ok 😀 fine", "stop")))
    assert (answer.text, answer.times) == ("ok 😀 fine", [1, 2])


def test_reasoning_next_to_a_message_is_timed() -> None:
    thought = {"choices": [{"delta": {"reasoning_content": "hm"}, "message": {"content": ""}}]}
    assert read(sse(thought, *CHAT, part(None, "he said", "stop"))).times == [1, 2, 3]
    alone = {"choices": [{"message": {"content": None, "reasoning": "hm"}}]}
    assert read(sse(alone, part(None, "he said", "stop"))).times == [1, 2]


CODED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "deflate ": lambda data: zlib.compress(data, wbits=-15),
    "gzip, two members": lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:]),
}


def decoder_of(coding: str) -> Decoded:
    decoder = Decoded.of(coding)
    assert decoder is not None
    return decoder


@pytest.mark.parametrize("coding", CODED)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_unrequested_compression_is_decoded(coding: str, size: int) -> None:
    plain = b"".join(sse(*TEXT, chunk(None, "stop"), usage(3)))
    coded = CODED[coding](plain)
    reads = [coded[at : at + size] for at in range(0, len(coded), size)]
    name = coding.partition(",")[0]
    assert b"".join(map(decoder_of(name).piece, reads)) == plain
    decoder, answer = decoder_of(name), Answer()
    ends = list(accumulate(map(len, reads)))
    for n in range(1, len(reads) + 1):
        taken = decoder.take(coded[: ends[n - 1]], range(1, n + 1), ends[:n])
        answer.read_collected(*taken, ended=n == len(reads))
    assert (answer.text, answer.outcome(), answer.output_tokens) == ("he said", "ok", 3)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br"])
def test_unknown_content_encoding_is_named(coding: str) -> None:
    with pytest.raises(ProtocolError, match=f"content-encoding: {coding}"):
        Decoded.of(coding)


def test_wrong_encoding_and_decompression_bombs_are_errors() -> None:
    with pytest.raises(ProtocolError, match="the body is not gzip, although"):
        decoder_of("gzip").piece(b"data: plain\n\n")
    with pytest.raises(ProtocolError, match="a response of more than"):
        decoder_of("gzip").piece(gzip.compress(bytes(MAX_BYTES + 1)))
