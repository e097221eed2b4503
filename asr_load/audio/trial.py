"""A clip in bytes that no request of a test has."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import numpy as np
import pybase64
import soundfile

from asr_load.audio.clip import Clip
from asr_load.audio.encode import encode

QUIETER = (0.90, 0.97)
"""By how much: a quarter of a decibel at least, which any encoder keeps, and less than one, which nobody hears."""

LONGEST_S = 30.0
"""Encoding takes time."""


def re_encoded(clip: Clip, audio_format: str) -> Clip:
    """The first half a minute of a compressed clip, a little quieter by chance: the same speech in other bytes."""
    pcm, rate = soundfile.read(io.BytesIO(pybase64.b64decode(bytes(clip.audio_b64))), dtype="int16")
    pcm = pcm[: round(LONGEST_S * rate)]
    quieter = np.rint(pcm * random.uniform(*QUIETER)).astype(np.int16)
    audio = encode(quieter, rate, audio_format)
    return replace(clip, duration_s=len(pcm) / rate, audio_b64=pybase64.b64encode(audio))
