"""Chunked framing, decoded alike by Python and by the compiled reader."""

from __future__ import annotations

import pytest

from asr_load.stream.chunked import Chunked
from harness.socket_readers import pieces

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
