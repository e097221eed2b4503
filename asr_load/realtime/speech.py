"""A clip as the packets that a microphone would give."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import soxr

HEADER = 44
"""Bytes before the samples of a shard's WAV."""

NOISE = 8
"""The loudest sample of what is sent as silence, -72 dB below full scale: zeros alone break models."""

FRAME_S, QUIET = 0.020, 0.02
"""Speech has ended with the last stretch of so many seconds whose loudness is this share of the loudest one's."""


class Speech(NamedTuple):
    """16-bit mono samples at a rate, and where in them the speech ends, in seconds."""

    pcm: bytes
    rate: int
    end_s: float
    length_s: float

    def packets(self, packet_s: float) -> Iterator[tuple[bytes, float]]:
        """Packets in turn, each with the second at which the microphone has filled it."""
        step = max(round(packet_s * self.rate), 1) * 2
        for at in range(0, len(self.pcm), step):
            yield self.pcm[at : at + step], min(at + step, len(self.pcm)) / 2 / self.rate


def speech_of(wav: bytes | memoryview, rates: tuple[int, ...], silence_s: float) -> Speech:
    """A shard's WAV at a rate that is taken, with silence behind it. Takes milliseconds: call it in a thread."""
    (rate,) = struct.unpack_from("<I", wav, 24)
    samples = np.frombuffer(wav, "<i2", offset=HEADER)
    if rate not in rates:
        samples = soxr.resample(samples, rate, rates[0])
        rate = rates[0]
    length_s = samples.size / rate
    if not silence_s:
        return Speech(samples.tobytes(), rate, length_s, length_s)
    noise = np.random.default_rng(0).integers(-NOISE, NOISE, round(silence_s * rate), "<i2", endpoint=True)
    end_s = end_of_speech(samples, rate)
    return Speech(np.concatenate([samples, noise]).tobytes(), rate, end_s, length_s + silence_s)


def end_of_speech(samples: np.ndarray, rate: int) -> float:
    """The second at which the last stretch ends that is not quiet; shape of samples: (n,)."""
    frame = max(round(FRAME_S * rate), 1)
    whole = samples[: samples.size // frame * frame].astype(np.float32).reshape(-1, frame)
    loud = np.sqrt(np.square(whole).mean(axis=1))
    heard = np.flatnonzero(loud > QUIET * loud.max()) if loud.size else loud
    return float((heard[-1] + 1) * frame / rate) if heard.size else samples.size / rate
