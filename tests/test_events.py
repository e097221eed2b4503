"""Finding all events of a body at once with the compiled finder, and one by one with sseclient-py."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

import pytest

from asr_load.stream import events
from harness.sse import Found, find_plain

FINDERS = [
    "reference",
    pytest.param("compiled", marks=pytest.mark.skipif(events.find is None, reason="no C compiler at setup")),
]
PARTS = [
    b"data: {}\n\n",
    b'data: {"a":1}\n\n',
    b": a comment\n",
    b": alone\n\n",
    b"\n",
    b"\n\n",
    b"data: [DONE]\n\n",
    b"data: {}\ndata: {}\n\n",
    b"data:{}\n\n",
    b"data: {}\r\n\r\n",
    b"data: {\n\n",
    b"data: {\n",
    b"data: }\n\n",
    b"data: \n\n",
    b"event: x\ndata: {}\n\n",
    b"data: {}\n",
    b"data: {",
    b"{}\n\n",
    b"\xff\n\n",
]
PLAIN = PARTS[:7]


def find(finder: str, body: bytes, start: int, *words: object, limit: int | None = None) -> Found | None:
    way: Any = find_plain if finder == "reference" else events.find
    found: Found | None = way(body, start, *words, *([] if limit is None else [limit]))
    return found


@pytest.mark.parametrize("finder", FINDERS)
def test_each_event_has_the_stamp_of_the_read_that_completed_it(finder: str) -> None:
    reads = [b": sent_at=1\ndata: {1}\n", b"\ndata: {2}\n\nda", b"ta: {3}", b"\n\n: ping\n\ndata: [DONE]\n\ndata: {4}"]
    body, ends = b"".join(reads), list(itertools.accumulate(map(len, reads)))
    end = len(body) - len(b"data: {4}")
    assert find(finder, body, 0, [10, 20, 30, 40], ends) == (b"{1}\n{2}\n{3}\n", [20, 20, 40], True, end)
    later = body.index(b"data: {2}")
    assert find(finder, body, later, range(4), ends) == (b"{2}\n{3}\n", [1, 3], True, end)


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("body", [b"", b"\n", b"data: {}", b"data: {}\n", b"data: {}\n\n"[:-1]])
def test_incomplete_event_is_left(finder: str, body: bytes) -> None:
    assert find(finder, body, 0, [1], [len(body)]) == (b"", [], False, 0)


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("other", [part for part in PARTS[7:] if part != b"data: {"])
def test_one_unusual_event_makes_the_finder_decline(finder: str, other: bytes) -> None:
    body = PARTS[0] + other + PARTS[0]
    assert find(finder, body, 0, [1], [len(body)]) is None


@pytest.mark.parametrize("finder", FINDERS)
def test_events_after_done_make_the_finder_decline(finder: str) -> None:
    body = b"data: [DONE]\n\ndata: {}\n\n"
    assert find(finder, body, 0, [1], [len(body)]) is None


@pytest.mark.skipif(events.find is None, reason="no C compiler at setup")
@pytest.mark.parametrize("parts", [PLAIN, PARTS])
def test_both_finders_find_the_same(parts: list[bytes]) -> None:
    rng = random.Random(0)
    found = 0
    for _ in range(4000):
        body = b"".join(rng.choices(parts, k=rng.randrange(8)))
        cuts = sorted({*rng.choices(range(1, len(body) + 1), k=rng.randrange(5)), len(body)} if body else {0})
        start = rng.choice([0, rng.randrange(len(body) + 1)])
        words = (body, start, [cut * 7 for cut in cuts], cuts)
        expected = find("reference", *words)
        assert find("compiled", *words) == expected, words
        found += expected is not None and bool(expected[1])
    assert found > 100


@pytest.mark.parametrize("finder", FINDERS)
def test_finder_stops_at_the_limit(finder: str) -> None:
    body = b"data: {1}\n\ndata: {2}\n\ndata: {3}\n\n"
    size = len(body) // 3
    for limit, found in ((0, 0), (size - 1, 0), (size, 1), (2 * size - 1, 1), (2 * size, 2), (3 * size, 3)):
        told = find(finder, body, 0, [7], [len(body)], limit=limit)
        assert told is not None
        assert (len(told[1]), told[3]) == (found, found * size)


Event = tuple[str, str, int]
"""An event's name and data, and the stamp of the read that completed it."""


def one_by_one(body: bytes, stamps: list[int], ends: list[int]) -> list[Event]:
    """Parse the complete events of a body with sseclient-py."""
    parser, found, start = events.Parser(), list[Event](), 0
    for match in events.event_ends(body):
        event = parser.parse(body[start : match.start()])
        start = match.end()
        if event is not None:
            found.append((*event, stamps[next(read for read, end in enumerate(ends) if end >= start)]))
    return found


@pytest.mark.skipif(events.find is None, reason="no C compiler at setup")
def test_sseclient_gives_the_events_of_the_compiled_finder() -> None:
    rng = random.Random(1)
    compared = 0
    for _ in range(4000):
        body = b"".join(rng.choices(PARTS if rng.random() < 0.5 else PLAIN, k=rng.randrange(1, 8)))
        ends = sorted({*rng.choices(range(1, len(body) + 1), k=rng.randrange(5)), len(body)})
        stamps = [end * 7 for end in ends]
        if (found := find("compiled", body, 0, stamps, ends)) is None:
            continue
        objects, times, done, end = found
        expected = [("message", line, at) for line, at in zip(objects.decode().splitlines(), times, strict=True)]
        parsed = one_by_one(body[:end], stamps, ends)
        if done:
            assert parsed.pop()[:2] == ("message", "[DONE]")
        assert parsed == expected, body
        compared += len(parsed)
    assert compared > 1000


def by_the_standard(body: bytes) -> list[tuple[str, str]]:
    """The names and data of a body's events, as WHATWG HTML, section 9.2.6, describes it."""
    found, name, data = list[tuple[str, str]](), "", ""
    *lines, _ = re.split("\r\n|\n|\r", body.decode())
    for line in lines:
        field, _, value = line.partition(":")
        if not line:
            if data:
                found.append((name or "message", data.removesuffix("\n")))
            name = data = ""
        elif field == "event":
            name = value.removeprefix(" ")
        elif field == "data":
            data += value.removeprefix(" ") + "\n"
    return found


PIECES = [
    *(b"data", b"data:", b"data: ", b"data: a", b"data:  b:c", b"DATA: no", b" data: no", b"event: x", b"event:"),
    *(b": comment", b":", b"id: 1", b"retry: x", b"no colon", "data: ü\u2028\x85\x0b".encode()),
    *(b"\n", b"\n", b"\n", b"\r\n", b"\r\n", b"\r"),
]


def test_events_are_those_of_the_standard() -> None:
    rng = random.Random(2)
    compared = 0
    for _ in range(10_000):
        body = b"".join(rng.choices(PIECES, k=rng.randrange(1, 20))) + b"\n\n"
        expected = by_the_standard(body)
        assert [event[:2] for event in one_by_one(body, [0], [len(body)])] == expected, body
        compared += len(expected)
    assert compared > 5000


@pytest.mark.parametrize("first", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("second", [b"\n", b"\r\n", b"\r"])
def test_every_blank_line_ends_an_event(first: bytes, second: bytes) -> None:
    body = b"data: a" + first + second + b"data: b\n\n"
    one_line = first + second == b"\r\n"
    assert [data for _, data, _ in one_by_one(body, [0], [len(body)])] == (["a\nb"] if one_line else ["a", "b"])
