"""Encode speech as FLAC, MP3 or Opus."""

from __future__ import annotations

import io

import numpy as np
import soundfile

OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
"""Sample rates in Hz that Opus supports (RFC 6716)."""

_SUBTYPES = {"flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}


def encode(pcm: np.ndarray, sample_rate: int, audio_format: str) -> bytes:
    """Encode 16-bit mono samples, shape (n,), as a file. The same samples give the same bytes."""
    format, subtype = _SUBTYPES[audio_format]
    file = io.BytesIO()
    soundfile.write(file, pcm, sample_rate, format=format, subtype=subtype)
    return _renumbered(file.getvalue()) if audio_format == "opus" else file.getvalue()


def _renumbered(ogg: bytes) -> bytes:
    """Replace the random serial number of libsndfile's Ogg stream with 1 (RFC 3533: the serial number is at byte 14 of
    each page, the checksum at 22, the segment sizes from 27 on)."""
    stream, at = bytearray(ogg), 0
    while at < len(stream):
        segments = stream[at + 26]
        end = at + 27 + segments + sum(stream[at + 27 : at + 27 + segments])
        stream[at + 14 : at + 18] = (1).to_bytes(4, "little")
        stream[at + 22 : at + 26] = bytes(4)
        stream[at + 22 : at + 26] = _checksum(stream[at:end]).to_bytes(4, "little")
        at = end
    return bytes(stream)


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 1 << 31 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


_CHECKSUMS = _table()


def _checksum(page: bytes | bytearray) -> int:
    """Ogg's CRC-32, which processes bits in the opposite order to zlib's."""
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ _CHECKSUMS[value >> 24 ^ byte]
    return value
