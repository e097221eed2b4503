"""From bytes to timed text: every dialect, every way to end, split anywhere."""

from __future__ import annotations

import contextlib
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from asr_load.stream.limits import MAX_EVENT_BYTES
from asr_load.stream.reader import GOOD_ENDS, GRACE_S, Answer, ProtocolError, http_error_message
from harness import dialects
from harness.sse import ROLE, chunk, read, read_collected, read_events, sse, usage

STREAM = sse(ROLE, chunk(" he"), chunk(" said"), chunk(None, "stop"), usage(2))


def test_sglang_chat_stream() -> None:
    answer = read(STREAM)
    assert (answer.text, answer.times, answer.outcome()) == (" he said", [2, 3], "ok")
    assert (answer.output_tokens, answer.prompt_tokens, answer.cached_tokens) == (2, 9, 3)
    assert (answer.finish_reason, answer.done) == ("stop", True)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_stream_parses_alike_however_reads_are_split(size: int, newline: bytes) -> None:
    body = b"".join(STREAM).replace(b"\n", newline)
    answer = read(body[at : at + size] for at in range(0, len(body), size))
    assert (answer.text, len(answer.times), answer.output_tokens, answer.outcome()) == (" he said", 2, 2, "ok")


PLAIN = [*sse(ROLE, chunk("a"), chunk(" b", logprobs={}), chunk(None, "stop"), usage(2)), b": ping\n\n"]
ODD = [
    b": ping\n" + sse(chunk("c"))[0],
    b"event: message\n" + sse(chunk("d"))[0],
    b'data: {"choices":\ndata: []}\n\n',
    b'data:{"choices":[{"delta":{"content":"e"}}]}\n\n',
    'data: {"choices":[{"delta":{"content":"ü"}}],"model":"ü"}\n\n'.encode(),
    sse(chunk("f"))[0].replace(b"\n", b"\r\n"),
    sse(chunk("g"))[0] + b"\n",
    b"data: \n\n",
    b"data:\n\n",
    b"\n\n",
    b"retry: 5\n\n",
    *sse({"error": {"message": "full"}}, {"object": "error", "message": "flat"}),
    sse(chunk("h"))[0][:-1],  # one line end short: the next event is part of it
    b"data: 1,2\n\n",
    b'data: {"choices":[]}{}\n\n',
    b'data: {"model":"\xff"}\n\n',
    b": \xff\n\n",
    b'data: {"text":"i"} {"text":"j"}\n\ndata: \n\n',
    b'data: {"text":\n\ndata: "k"} {"text":"l"}\n\n',
]


@pytest.mark.parametrize("seed", range(200))
def test_all_parsers_agree_on_mixed_events(seed: int) -> None:
    random = np.random.default_rng(seed)
    events = [*random.choice(np.array(PLAIN, object), 8), *random.choice(np.array(ODD, object), seed % 4)]
    random.shuffle(events)
    body = b"".join(events)
    cuts = np.sort(random.integers(0, len(body), seed % 9)).tolist()
    with contextlib.suppress(ProtocolError):
        read(body[start:end] for start, end in pairwise([0, *cuts, len(body)]) if start < end)


@pytest.mark.parametrize("odd", ODD)
def test_all_parsers_agree_on_an_unusual_event(odd: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        read([PLAIN[0], odd, *sse(chunk("a"), chunk(None, "stop"))])


def test_event_has_the_time_of_the_read_that_completed_it() -> None:
    half = STREAM[1]
    answer = read([STREAM[0] + half[:20], half[20:] + STREAM[2], *STREAM[3:]])
    assert answer.times == [2, 2]


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        (sse(ROLE, chunk("a"), chunk(None, "stop")), "ok"),
        (sse(ROLE, chunk("a", "length")), "ok"),
        (sse(ROLE, chunk("a"), chunk(None, "stop"), done=False), "ok"),
        (sse(ROLE, chunk("a")), "ok"),
        (sse(ROLE, chunk("a"), done=False), "cut"),
        (sse(ROLE, chunk(None, "stop")), "empty"),
        (sse(ROLE, chunk("  \n"), chunk(None, "stop")), "empty"),
        (sse(), "empty"),
        (sse(done=False), "cut"),
        (sse(ROLE, chunk("a"), chunk(None, "abort"), usage(1)), "aborted"),
        (sse({"error": {"message": "full", "code": 503}}, usage(0)), "stream_error"),
        (sse(ROLE, chunk("a"), {"error": "broke", "choices": []}), "stream_error"),
        (sse({"object": "error", "message": "flat", "code": 400}), "stream_error"),
    ],
)
def test_outcome_of_a_stream(events: list[bytes], outcome: str) -> None:
    assert read(events).outcome() == outcome


def test_error_message_of_the_server_is_recorded() -> None:
    assert read(sse({"error": {"message": "The queue\nis full.", "code": 503}})).error == "The queue is full."
    assert read(sse({"error": "no memory"})).error == "no memory"
    assert read(sse({"object": "error", "message": "flat"})).error == "flat"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_timed_but_not_part_of_the_transcript(name: str) -> None:
    answer = read(sse(chunk(**{name: "hm"}), chunk(**{name: ""}), chunk("yes"), chunk(None, "stop")))
    assert (answer.text, answer.times) == ("yes", [1, 3])
    assert read(sse(chunk(**{name: "hm"}), chunk(None, "stop"))).outcome() == "empty"


def test_openai_transcription_stream() -> None:
    usage_ = {"type": "tokens", "input_tokens": 14, "output_tokens": 3, "total_tokens": 17}
    deltas = [{"type": "transcript.text.delta", "delta": word} for word in ("he", " said")]
    end = {"type": "transcript.text.done", "text": "he said", "usage": usage_}
    answer = read(sse(*deltas, end, done=False))
    assert (answer.text, answer.times, answer.outcome(), answer.output_tokens) == ("he said", [1, 2], "ok", 3)
    assert read(sse(end, done=False)).text == "he said"


def test_comments_and_unknown_fields_are_ignored() -> None:
    odd = {"choices": [{"delta": {"content": "a", "refusal": None}, "logprobs": {"x": 1}}], "new": [1]}
    answer = read([b": sent_at=1\n", b"event: message\nid: 7\n", *sse(odd, chunk(None, "stop"))])
    assert (answer.text, answer.outcome()) == ("a", "ok")


@pytest.mark.parametrize(
    "body",
    [
        b'data: {"choices": [{"delta": {"content": "caf\xe9"}}]}\n\n',
        b"data: not json\n\n",
        b'data: {"choices": [{"delta": {"cont',
        b'data: {"choices": 7}\n\n',
        b"data: [1, 2]\n\n",
        b"data: " + b"x" * (MAX_EVENT_BYTES + 1),
    ],
)
def test_broken_stream_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        read([*STREAM[:2], body])


@pytest.mark.parametrize("body", [b"<html><body>It works!</body></html>", b"hello", b"\n\n<html>"])
def test_body_that_is_no_stream_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a stream of events"):
        read([body])


def test_byte_order_mark_is_not_part_of_the_first_event() -> None:
    assert read([b"\xef\xbb\xbf" + b"".join(sse(chunk("a"), chunk(" b"), chunk(None, "stop")))]).text == "a b"


def test_stream_of_only_pings_is_cut() -> None:
    assert read([b": ping\n\n", b": ping\n\n"]).outcome() == "cut"


def test_empty_error_field_is_not_an_error() -> None:
    empty: tuple[object, ...] = (None, False, "", {})
    for nothing in empty:
        assert read(sse({"error": nothing, **chunk("a", "stop")})).outcome() == "ok"


def test_long_event_within_the_limit_is_read() -> None:
    body = b"".join(sse(chunk("x" * (MAX_EVENT_BYTES // 2)), chunk(None, "stop")))
    assert len(read(body[at : at + 65536] for at in range(0, len(body), 65536)).text) == MAX_EVENT_BYTES // 2


def test_json_response_that_is_not_streamed() -> None:
    answer = Answer()
    answer.read_whole(json.dumps({"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]}).encode(), 5)
    assert (answer.text, answer.times, answer.outcome(), answer.streamed) == ("whole", [5], "ok", False)
    answer = Answer()
    answer.read_whole(b'{"text": "whole", "usage": {"type": "duration", "seconds": 11}}', 5)
    assert (answer.text, answer.outcome(), answer.output_tokens) == ("whole", "ok", None)
    answer = Answer()
    answer.read_whole(b'{"text": ""}', 5)
    assert answer.outcome() == "empty"
    answer = Answer()
    answer.read_whole(b'{"object": "error", "message": "no"}', 5)
    assert (answer.outcome(), answer.error) == ("stream_error", "no")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"object":"error","message":"flat words","code":400}', "flat words"),
        (b'{"error":{"message":"nested words","code":404}}', "nested words"),
        (b'{"error":"Unauthorized"}', "Unauthorized"),
        (b'{"detail":[{"loc":["body"]}]}', "[{'loc': ['body']}]"),
        (b"<html>Bad Gateway</html>", "Bad Gateway"),
        (
            b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
            b"<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx/1.27</center>\r\n</body>\r\n</html>\r\n",
            "502 Bad Gateway nginx/1.27",
        ),
        (b"\n<!doctype html><style>p {}</style><script>x < 1</script><p>A &lt; B", "A < B"),
        (b"<b>no page</b>", "<b>no page</b>"),
        (b"<html><head></head></html>", "<html><head></head></html>"),
        (b"", ""),
        (b"\xff\xfe", "��"),
    ],
)
def test_message_of_an_http_error(body: bytes, said: str) -> None:
    assert http_error_message(body) == said


def test_long_error_message_is_shortened() -> None:
    assert len(http_error_message(b"x" * 100_000)) == 2000


STREAMS = {
    "sglang": (dialects.sglang_chat(), "ok"),
    "sglang, usage in each chunk": (dialects.sglang_chat(usage="continuous"), "ok"),
    "sglang, no usage": (dialects.sglang_chat(usage=""), "ok"),
    "sglang, several tokens a chunk": (dialects.sglang_chat(["The ferry", " crosses twice", " a day."]), "ok"),
    "sglang, aborted": (dialects.sglang_chat(finish="abort"), "aborted"),
    "sglang, at its limit": (dialects.sglang_chat(finish="length"), "ok"),
    "sglang, transcription": (dialects.sglang_transcription(), "ok"),
    "vllm": (dialects.vllm_chat(), "ok"),
    "vllm, usage in each chunk": (dialects.vllm_chat(usage="continuous"), "ok"),
    "vllm, no usage": (dialects.vllm_chat(usage="", finish="length"), "ok"),
    "vllm, transcription": (dialects.vllm_transcription(), "ok"),
    "signs of more than a byte": (dialects.vllm_transcription(["Grüße", " 日本", "語", "\ufffd\x05", " 🎙"]), "ok"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_of_engines(name: str) -> None:
    """Expected values are parsed independently: line by line, with the standard library's json."""
    body, outcome = STREAMS[name]
    events = [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    contents = [delta["content"] for delta in deltas if delta.get("content")]
    usages = [event["usage"] for event in events if event.get("usage")]
    finishes = [
        choice["finish_reason"] for event in events for choice in event["choices"] if choice.get("finish_reason")
    ]
    for size in (1460, 13, 1):
        answer = read(body[at : at + size] for at in range(0, len(body), size))
        assert answer.text == "".join(contents)
        assert len(answer.times) == len(contents)
        assert answer.outcome() == outcome
        assert [answer.finish_reason] == finishes
        assert answer.output_tokens == (usages[-1]["completion_tokens"] if usages else None)
        assert answer.done


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            dialects.sglang_error("An exception occurred while loading AUDIO data"),
            "An exception occurred while loading",
        ),
        (dialects.sglang_error("max_new_tokens must be at least 0, got -1."), "max_new_tokens must be at least 0, got"),
        (dialects.vllm_error("The model `nope` does not exist.", 404), "The model `nope` does not exist."),
    ],
)
def test_http_errors_of_engines(body: bytes, said: str) -> None:
    assert http_error_message(body).startswith(said)


def test_complete_transcription_of_engines() -> None:
    body = json.dumps({"text": " again and again", "usage": {"type": "duration", "seconds": 3}}).encode()
    answer = Answer()
    answer.read_whole(body, 1)
    assert answer.text == " again and again"
    assert (answer.outcome(), len(answer.times)) == ("ok", 1)


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
    read_collected(answer, body, [1], [len(body)], ended=False)
    assert (answer.is_complete, answer.grace_s) == (True, GRACE_S[False])
    more = body + b"".join(sse(chunk(" more"), done=False))
    read_collected(answer, more, [1, 2], [len(body), len(more)], ended=False)
    assert (answer.is_complete, answer.grace_s) == (False, float("inf"))
    # The first end was not the end, so a second one is not trusted.
    again = more + b"".join(sse(chunk(None, "stop"), done=False))
    read_collected(answer, again, [1, 2, 3], [len(body), len(more), len(again)], ended=False)
    assert answer.grace_s == float("inf")
    whole = again + b"data: [DONE]\n\n"
    read_collected(answer, whole, [1, 2, 3, 4], [len(body), len(more), len(again), len(whole)], ended=False)
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
    read_collected(answer, body, [1], [len(body)], ended=True)
    assert answer.text.strip() == "he said"
    assert answer.outcome() == ("ok" if framed else "cut")
    assert not answer.is_complete


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
