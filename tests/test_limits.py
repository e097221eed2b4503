"""Responses of excessive size, over a socket with each reader: they end as `protocol`, and delay nobody else."""

from __future__ import annotations

import gzip
import itertools
import threading
import time
from collections.abc import Sequence

import gevent
import pytest

from asr_load.http.transport import Timeouts
from asr_load.stream.limits import (
    MAX_BYTES,
    MAX_EVENT_LINES,
    MAX_EVENTS,
    MAX_HEAD_BYTES,
    MAX_INTERIM,
    MAX_STREAM_BYTES,
)
from asr_load.stream.reader import Answer, ProtocolError
from harness.answers import CHUNKED, EVENTS, JSON, chunk, sized
from harness.patience import PATIENCE_S
from harness.peer import OVER_TLS, READERS, SOUND, STREAM, Piece, talk
from harness.sse import read_collected, read_events

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TEXT = STREAM.split(b"\n\n")[0] + b"\n\n"
CLOSE = b"Connection: close\r\n\r\n"
DEEP = b"[" * 200_000

ANSWERS: dict[str, tuple[str, bytes | Sequence[Piece]]] = {
    "interim answers": ("more than", CONTINUE * 40_000 + SOUND),
    "interim answers, one too many": ("interim responses", CONTINUE * (MAX_INTERIM + 1) + SOUND),
    "long interim answers": ("head of more than", (b"HTTP/1.1 103 x\r\nA: " + b"b" * 60_000 + b"\r\n\r\n") * 3 + SOUND),
    "a long head": ("head of more than", EVENTS + b"A: b\r\n" * 90 + (b"B: " + b"c" * 30_000 + b"\r\n") * 3 + CHUNKED),
    "a head of many lines": ("", EVENTS + b"A: b\r\n" * 100_000 + CHUNKED),
    "a line without an end": ("", b"HTTP/1.1 200 OK\r\nA: " + b"b" * (1 << 20)),
    "comments": ("stream of more than", EVENTS + CLOSE + b":\n\n" * (MAX_STREAM_BYTES // 3 + 1)),
    "comments in chunks of a byte": ("", EVENTS + CHUNKED + b"1\r\n:\r\n" * (MAX_STREAM_BYTES + 1)),
    "a stream without an event": ("", EVENTS + CLOSE + b"data: " + b"x" * (2 << 20)),
    "events": ("events", EVENTS + CLOSE + b"data: {}\n\n" * (MAX_EVENTS + 1)),
    "events of another kind": ("events", EVENTS + CLOSE + b"data:{}\r\n\r\n" * (MAX_EVENTS + 1)),
    "text": ("stream of more than", EVENTS + CLOSE + TEXT * (MAX_STREAM_BYTES // len(TEXT) + 1)),
    "lines of an event": ("lines", EVENTS + CLOSE + b"data:\n" * (MAX_EVENT_LINES + 1) + b"\n"),
    "long lines of an event": ("", EVENTS + CLOSE + (b"data: " + b"x" * 1000 + b"\n") * MAX_EVENT_LINES + b"\n"),
    "a whole answer": ("more than 16777216 bytes", JSON + CLOSE + b'{"text": "' + b"x" * MAX_BYTES + b'"}'),
    "decompression bomb": (
        "more than",
        sized(gzip.compress(b":\n\n" * (8 << 20)), EVENTS + b"Content-Encoding: gzip\r\n"),
    ),
    "trailers": ("", EVENTS + CHUNKED + chunk(b":\n\n") + b"0\r\n" + b"A: b\r\n" * MAX_HEAD_BYTES + b"\r\n"),
    "nested JSON": ("", sized(b"data: " + DEEP + b"\n\n")),
    "nested JSON in an event": ("", sized(b'data: {"choices": ' + DEEP + b"\n\n")),
    "nested JSON in a whole answer": ("", sized(b'{"text": ' + DEEP, JSON)),
    "a content-length": ("digits", EVENTS + b"Content-Length: 0000000000000050\r\n\r\n" + STREAM),
    "a long content-length": ("digits", EVENTS + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n" + STREAM),
    "the size of a chunk": ("malformed chunks", EVENTS + CHUNKED + b"%016x\r\n%b\r\n0\r\n\r\n" % (len(STREAM), STREAM)),
    "the long size of a chunk": ("malformed chunks", EVENTS + CHUNKED + b"f" * 400 + b"\r\n" + STREAM),
    "what is no size of a chunk": ("malformed chunks", EVENTS + CHUNKED + b"-5\r\n" + STREAM),
}


# Decrypted data is parsed by the same code, so over TLS one response per framing is enough.
FRAMINGS = ("events", "comments in chunks of a byte", "a whole answer")


@pytest.mark.parametrize(
    ("name", "reader"), [*itertools.product(ANSWERS, READERS), *itertools.product(FRAMINGS, OVER_TLS)]
)
def test_excessive_response_is_a_protocol_failure(name: str, reader: str) -> None:
    said, answer = ANSWERS[name]
    longest, ticking = 0.0, True

    def tick() -> None:
        nonlocal longest
        while ticking:
            before = time.thread_time()  # CPU time of this thread: other processes do not count
            gevent.sleep(0)
            longest = max(longest, time.thread_time() - before)
            gevent.sleep(0.001)

    with talk(answer, SOUND, reader=reader) as (client, peer):
        ticker = gevent.spawn(tick)
        record = client.send(peer.url)
        ticking = False
        ticker.join()
        assert (record.outcome, record.ok) == ("protocol", False)
        assert said in (record.error or "")
        assert longest < 0.5  # it was 45 s when each line was searched for from the start of the body
        assert client.send(peer.url).outcome == "ok"


def test_nested_error_is_shown_up_to_the_depth_limit() -> None:
    answer = Answer()
    depth = 300
    body = b'data: {"error": ' + b"[" * depth + b"1" + b"]" * depth + b"}\n\n"
    read_events(answer, [body], lambda: 1)
    assert answer.error
    with pytest.raises(ProtocolError):
        read_events(Answer(), [b'data: {"error": ' + DEEP + b"\n\n"], lambda: 1)


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_split_byte_order_mark_is_skipped(cut: int) -> None:
    body = b"\xef\xbb\xbf" + STREAM
    pieces = [body[:cut], body[cut:]]
    told = Answer()
    read_events(told, pieces, itertools.count(1).__next__)
    assert (told.text, told.outcome()) == ("a", "ok")
    told = Answer()
    read_collected(told, body[:cut], [1], [cut], ended=False)
    read_collected(told, body, [1, 2], [cut, len(body)], ended=True)
    assert (told.text, told.outcome()) == ("a", "ok")
    whole = b'\xef\xbb\xbf{"text": "whole"}'
    told = Answer()
    read_events(told, [whole[:cut], whole[cut:]], lambda: 1)
    assert told.text == "whole"


@pytest.mark.parametrize("reader", ["compiled", "python"])
def test_total_timeout_holds_during_a_flood_of_interim_responses(reader: str) -> None:

    over = threading.Event()
    pieces: list[Piece] = [CONTINUE, 0.02]
    flood: list[Piece] = [*pieces * (MAX_INTERIM - 1), over]
    limits = Timeouts(connect=PATIENCE_S, stall=PATIENCE_S, total=1)
    with talk(flood, reader=reader, limits=limits) as (client, peer):
        assert client.send(peer.url).outcome == "timeout"
        over.set()
