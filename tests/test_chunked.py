"""Chunked framing, decoded alike by Python and by the compiled reader."""

from __future__ import annotations

import pytest

from asr_load.stream.chunked import MAX_LINE, Chunked
from harness.socket_readers import MAKERS, collect, pieces

BODY = b"4\r\nWiki\r\n5\r\npedia\r\nE;why=not\r\n in \r\n\r\nchunks\r\n0\r\n\r\n"
TEXT = b"Wikipedia in \r\n\r\nchunks"


@pytest.mark.parametrize("seed", range(40))
def test_chunked_body_decodes_alike_however_reads_are_split(seed: int) -> None:
    chunked = Chunked()
    parts = pieces(BODY, seed)
    taken = [chunked.take(part) for part in parts]
    assert b"".join(taken) == TEXT
    assert (chunked.ended, chunked.broken, chunked.surplus) == (True, False, False)


def test_chunk_content_that_looks_like_a_chunk_is_kept() -> None:
    chunked = Chunked()
    parts = [b"6\r\n", b"1\r\nX\r\n", b"\r\n0\r\n\r\n"]
    assert b"".join(map(chunked.take, parts)) == b"1\r\nX\r\n"
    assert chunked.ended


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
