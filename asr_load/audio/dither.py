"""Dither: flip the lowest bits of some samples of a clip, so that no server's cache recognizes the audio."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pybase64

Pieces = list[bytes | memoryview]
"""Bytes in pieces; those that are not dithered are views of the mapped shard."""

DITHER_EVERY_S = 1.0
"""Seconds between dithered places: any two seconds of a clip, wherever an engine cuts it, hold a whole nonce."""

DITHERED = 64
"""Number of consecutive samples that a nonce changes, one bit each."""

DITHER_FIRST, DITHER_STEP = 2, 3
"""Dither may begin at sample 2 and each third sample after it. base64 works on groups of 3 bytes, and a WAV header has
44: the low bytes of these samples are the first of a group."""

_HEADER, _GROUPS = 44, 43
# 43 groups of base64 are 129 bytes, enough for 64 samples.
# Eight bits of a nonce, spread over the lowest bits of eight 16-bit samples.
_SPREAD = [b"".join(bytes((byte >> bit & 1, 0)) for bit in range(8)) for byte in range(256)]
NO_DITHER = bytes(8)
"""The nonce that leaves the audio unchanged."""


def new_dither() -> bytes:
    """Eight random bytes, not seeded: a server's cache may remember the audio of an earlier run."""
    return os.urandom(8)


def dithered(audio_b64: bytes | memoryview, nonce: bytes, at: Sequence[int]) -> Pieces:
    """The clip's base64 in pieces, with the nonce's bits flipped in the lowest bits of the 64 samples from each of the
    places `at`, which rise and do not overlap.

    A flipped bit is 96 dB below full scale: inaudible, but the bytes differ, so that no cache recognizes the audio.
    Engines that cut audio cache each piece, so a clip has a place in each of its seconds. The places are the loudest,
    where the bits also change the features, which are the key of SGLang's cache: Whisper's log-mel spectrogram discards
    everything 80 dB below its maximum (Radford et al., 2022, and its code), including bits in a quiet passage.
    A clip too short for all of the bits (below 5 ms at 16 kHz) takes those that fit.
    """
    view = memoryview(audio_b64)
    if nonce == NO_DITHER:
        return [view]
    # Decode, flip and encode all places together, with one call each.
    firsts = [(_HEADER + 2 * place) // 3 * 4 for place in at]
    regions = pybase64.b64decode(b"".join([view[first : first + _GROUPS * 4] for first in firsts]))
    mask = (mask_of(nonce) + b"\0") * len(firsts)
    mixed = pybase64.b64encode(flipped(regions, mask))
    pieces: Pieces = []
    end = 0
    for number, first in enumerate(firsts):
        pieces += view[end:first], mixed[number * _GROUPS * 4 : (number + 1) * _GROUPS * 4]
        end = first + _GROUPS * 4
    return [*pieces, view[end:]]


def mask_of(nonce: bytes) -> bytes:
    """The mask, 128 bytes, of the bits that a nonce flips in 64 16-bit samples."""
    return b"".join([_SPREAD[byte] for byte in nonce])


def flipped(samples: bytes, mask: bytes) -> bytes:
    """Flip the bits of `mask` in `samples`; the mask is at least as long."""
    mixed = int.from_bytes(samples, "little") ^ int.from_bytes(mask[: len(samples)], "little")
    return mixed.to_bytes(len(samples), "little")
