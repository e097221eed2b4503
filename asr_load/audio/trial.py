"""Re-encode a clip for the trial request, so that the test's requests do not hit the server's cache."""

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
"""Range of the gain: at least 0.25 dB, which every encoder keeps, and less than 1 dB, which is inaudible."""

LONGEST_S = 30.0
"""Maximum length to encode, in seconds, because encoding takes time."""


def re_encoded(clip: Clip, audio_format: str) -> Clip:
    """The first LONGEST_S seconds of a compressed clip with a random gain: the same speech in different bytes."""
    pcm, rate = soundfile.read(io.BytesIO(pybase64.b64decode(bytes(clip.audio_b64))), dtype="int16")
    pcm = pcm[: round(LONGEST_S * rate)]
    quieter = np.rint(pcm * random.uniform(*QUIETER)).astype(np.int16)
    audio = encode(quieter, rate, audio_format)
    return replace(clip, duration_s=len(pcm) / rate, audio_b64=pybase64.b64encode(audio))
