"""The body that a reader collects: where it starts, and how its framing ends it."""

from __future__ import annotations

import pytest
from gevent.event import Event

from asr_load.http import socket_reader
from asr_load.http.collector import UNTIL_CLOSE
from asr_load.stream.chunked import MAX_LINE
from asr_load.stream.limits import MAX_HEAD_BYTES
from harness.socket_readers import MAKERS, collect, pair, pieces, settle, source


@pytest.mark.parametrize("maker", MAKERS)
def test_body_may_start_in_the_read_of_the_head(maker: str) -> None:
    here, there = pair()
    with here, there:
        made = source(maker)(here.fileno(), Event())
        for part in (b"head|one", b"two", b"three"):
            known = len(made.head(0))
            there.sendall(part)
            settle(lambda known=known: len(made.head(0)) > known)  # type: ignore[misc]
        first, second = made.stamp(1), made.stamp(11)
        made.begin_body(5, 11)
        assert made.collected() == (b"onetwothree", [first, second, made.last], [3, 6, 11])
        assert first < second < made.last
        assert made.status == "complete"
        made.close()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("framing", "close", "status", "surplus"),
    [
        (6, False, "complete", False),
        (4, False, "complete", True),
        (7, False, "running", False),
        (7, True, "cut", False),
        (UNTIL_CLOSE, False, "running", False),
        (UNTIL_CLOSE, True, "complete", False),
        (0, False, "complete", True),
    ],
)
def test_framing_determines_the_end_of_the_body(
    maker: str, framing: int, close: bool, status: str, surplus: bool
) -> None:
    here, there = pair()
    with here, there:
        made = source(maker)(here.fileno(), Event())
        there.sendall(b"abcdef")
        if close:
            there.close()
            settle(lambda: made.status == "cut")
        else:
            settle(lambda: made.head(0) == b"abcdef")
        made.begin_body(0, framing)
        assert (made.status, made.surplus) == (status, surplus)
        assert made.collected()[0] == b"abcdef"[: framing if framing >= 0 else None]
        made.close()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("size", [1, socket_reader.READ_BYTES, socket_reader.READ_BYTES + 1])
@pytest.mark.parametrize("close", [False, True])
def test_data_and_end_that_came_before_the_first_look_are_read(maker: str, size: int, close: bool) -> None:
    # The kernel reports a socket once: unread data would stay unread forever.
    here, there = pair()
    with here, there:
        there.sendall(b"x" * size)
        if close:
            there.close()
        made = source(maker)(here.fileno(), Event())
        made.begin_body(0, UNTIL_CLOSE if close else size)
        settle(lambda: made.status != "running")
        body, stamps, ends = made.collected()
        assert (made.status, len(body), ends[-1]) == ("complete", size, size)
        assert len(stamps) == len(ends)
        made.close()


BODIES = {
    "trailers": (b"1\r\na\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n", "complete", b"a", False),
    "bytes after the end": (b"1\r\na\r\n0\r\n\r\nHTTP/1.1", "complete", b"a", True),
    "capitals": (b"0A\r\n0123456789\r\n0\r\n\r\n", "complete", b"0123456789", False),
    "spaces": (b"1 \r\na\r\n0\r\n\r\n", "complete", b"a", False),
    "no size": (b"1\r\na\r\n\r\n", "broken", b"a", False),
    "no number": (b"1\r\na\r\nxyz\r\n", "broken", b"a", False),
    "a size in two": (b"1 0\r\n0123456789abcdef\r\n0\r\n\r\n", "broken", b"", False),
    "carriage return within a size": (b"3\rabc\r\n", "broken", b"", False),
    "extension without a size": (b";x\r\n\r\n", "broken", b"", False),
    "carriage return before an extension": (b"1\r;x\r\na\r\n0\r\n\r\n", "broken", b"", False),
    "a sign": (b"-1\r\na\r\n", "broken", b"", False),
    "too large": (b"1\r\na\r\n" + b"f" * 16 + b"\r\n", "broken", b"a", False),
    "longer than its size": (b"1\r\nab\r\n0\r\n\r\n", "broken", b"a", False),
    "an endless line": (b"1;" + b"x" * (MAX_LINE + 2), "broken", b"", False),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_both_readers_end_a_chunked_body_alike(maker: str, name: str, seed: int | None) -> None:
    body, status, text, surplus = BODIES[name]
    reader = collect(maker, [body] if seed is None else pieces(body, seed), framing=-1)
    assert (reader.status, reader.collected()[0]) == (status, text)
    if seed is None:
        assert reader.surplus == surplus


SIZE_LINE = b"1;" + b"x" * (MAX_LINE - 3)
LIMITS = {
    "15 digits": (b"%015x\r\n0123456789\r\n0\r\n\r\n" % 10, "complete"),
    "16 digits": (b"%016x\r\n0123456789\r\n0\r\n\r\n" % 10, "broken"),
    "the longest size line": (SIZE_LINE + b"\r\na\r\n0\r\n\r\n", "complete"),
    "a longer size line": (SIZE_LINE + b"x\r\na\r\n0\r\n\r\n", "broken"),
    "the longest trailer": (b"0\r\n" + b"x" * MAX_LINE + b"\n\n", "complete"),
    "a longer trailer": (b"0\r\n" + b"x" * (MAX_LINE + 1) + b"\n\n", "broken"),
    "the most trailers": (b"0\r\n" + (b"x" * 1024 + b"\n") * (MAX_HEAD_BYTES >> 10) + b"\n", "complete"),
    "more trailers": (b"0\r\n" + (b"x" * 1024 + b"\n") * (MAX_HEAD_BYTES >> 10) + b"x\n\n", "broken"),
}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("maker", MAKERS)
def test_both_readers_have_the_same_limits_of_framing(maker: str, name: str) -> None:
    body, status = LIMITS[name]
    assert collect(maker, [body], framing=-1).status == status
