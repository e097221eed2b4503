"""Content encodings of responses: what is decoded, and what is an error."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from itertools import accumulate

import pytest

from asr_load.stream.coding import Decoder
from asr_load.stream.limits import MAX_BYTES
from asr_load.stream.reader import Answer, ProtocolError
from harness.sse import ROLE, chunk, read_collected, sse, usage

TEXT = [ROLE, chunk("he"), chunk(" said")]


CODED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "deflate ": lambda data: zlib.compress(data, wbits=-15),
    "gzip, two members": lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:]),
}


def decoder_of(coding: str) -> Decoder:
    decoder = Decoder.for_coding(coding)
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
        read_collected(answer, *taken, ended=n == len(reads))
    assert (answer.text, answer.outcome(), answer.output_tokens) == ("he said", "ok", 3)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br"])
def test_unknown_content_encoding_is_named(coding: str) -> None:
    with pytest.raises(ProtocolError, match=f"content-encoding: {coding}"):
        Decoder.for_coding(coding)


def test_wrong_encoding_and_decompression_bombs_are_errors() -> None:
    with pytest.raises(ProtocolError, match="the body is not gzip, although"):
        decoder_of("gzip").piece(b"data: plain\n\n")
    with pytest.raises(ProtocolError, match="a response of more than"):
        decoder_of("gzip").piece(gzip.compress(bytes(MAX_BYTES + 1)))
