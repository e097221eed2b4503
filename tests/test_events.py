"""Finding all events of a body at once, compiled and in Python, if all of them are plain."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from asr_load.stream import events
from asr_load.stream.events import _events  # type: ignore[attr-defined]

FINDERS = [
    "python",
    pytest.param("compiled", marks=pytest.mark.skipif(_events is None, reason="no C compiler at setup")),
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


def find(finder: str, body: bytes, start: int, *words: object, limit: int | None = None) -> events.Found | None:
    way: Any = events.find_in_python if finder == "python" else _events.find
    found: events.Found | None = way(body, start, *words, *([] if limit is None else [limit]))
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


@pytest.mark.skipif(_events is None, reason="no C compiler at setup")
@pytest.mark.parametrize("parts", [PLAIN, PARTS])
def test_both_finders_find_the_same(parts: list[bytes]) -> None:
    rng = random.Random(0)
    found = 0
    for _ in range(4000):
        body = b"".join(rng.choices(parts, k=rng.randrange(8)))
        cuts = sorted({*rng.choices(range(1, len(body) + 1), k=rng.randrange(5)), len(body)} if body else {0})
        start = rng.choice([0, rng.randrange(len(body) + 1)])
        words = (body, start, [cut * 7 for cut in cuts], cuts)
        by_python = find("python", *words)
        assert find("compiled", *words) == by_python, words
        found += by_python is not None and bool(by_python[1])
    assert found > 100


@pytest.mark.parametrize("finder", FINDERS)
def test_finder_stops_at_the_limit(finder: str) -> None:
    body = b"data: {1}\n\ndata: {2}\n\ndata: {3}\n\n"
    size = len(body) // 3
    for limit, found in ((0, 0), (size - 1, 0), (size, 1), (2 * size - 1, 1), (2 * size, 2), (3 * size, 3)):
        told = find(finder, body, 0, [7], [len(body)], limit=limit)
        assert told is not None
        assert (len(told[1]), told[3]) == (found, found * size)
