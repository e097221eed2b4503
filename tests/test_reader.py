"""From bytes to timed text: every dialect, every way to end, split anywhere."""

from __future__ import annotations

import contextlib
import json
from itertools import pairwise

import numpy as np
import pytest

from asr_load.stream.limits import MAX_EVENT_BYTES
from asr_load.stream.reader import Answer, ProtocolError, http_error_message
from harness import dialects
from harness.sse import ROLE, chunk, read, sse, usage

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
