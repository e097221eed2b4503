"""Encode speech as FLAC, MP3 or Opus."""

from __future__ import annotations

import io
import random
import zlib
from dataclasses import replace

import numpy as np
import pybase64
import soundfile

from asr_load.audio.clip import Clip

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
        stream[at + 22 : at + 26] = _checksum(stream[at:end])
        at = end
    return bytes(stream)


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in the opposite order."""


def _checksum(page: bytes | bytearray) -> bytes:
    """Ogg's CRC-32: that of zlib with the bits of each byte in the opposite order, and without its two inversions."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(_REVERSED)


QUIETER = (0.90, 0.97)
"""Range of the gain: at least 0.25 dB, which every encoder keeps, and less than 1 dB, which is inaudible."""

TRIAL_S = 30.0
"""Maximum length to encode again, in seconds, because encoding takes time."""


def re_encoded(clip: Clip, audio_format: str) -> Clip:
    """The first TRIAL_S seconds of a compressed clip with a random gain: the same speech in different bytes, so that
    a trial request leaves nothing in the server's cache that the test's requests could hit."""
    pcm, rate = soundfile.read(io.BytesIO(pybase64.b64decode(bytes(clip.audio_b64))), dtype="int16")
    pcm = pcm[: round(TRIAL_S * rate)]
    quieter = np.rint(pcm * random.uniform(*QUIETER)).astype(np.int16)
    audio = encode(quieter, rate, audio_format)
    return replace(clip, duration_s=len(pcm) / rate, audio_b64=pybase64.b64encode(audio))
