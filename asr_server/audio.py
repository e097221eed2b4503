"""Decode a request's audio to samples, and cut them at pauses."""

import io
import re
from collections.abc import Iterator

import numpy as np
import pybase64
import soundfile
import soxr

from asr_server.engine import Audio, RequestError, Samples

RATE = 16_000
_HOP = RATE // 50  # 20 ms: the grid of the search for pauses
_SMOOTH = 10  # hops: a pause between words lasts about 0.2 s


def decode(audio: Audio) -> Samples:
    """Read anything libsndfile reads (WAV, FLAC, mp3, ogg; any rate, any channels) as mono samples at 16 kHz.

    Raises:
        RequestError: the bytes are not audio; the message is SGLang's.
    """
    try:
        data = pybase64.b64decode(audio.data, validate=True) if audio.base64 else audio.data
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (ValueError, soundfile.LibsndfileError, soundfile.SoundFileRuntimeError) as error:
        reason = re.sub(r"<_io\.BytesIO object at \w+>", "the audio", str(error))
        message = (
            "An exception occurred while loading AUDIO data at index 0: "
            f"Error while loading data {audio.name}: Could not decode audio: {reason}"
        )
        raise RequestError(message) from None
    mono = np.nan_to_num(samples.mean(axis=1), copy=False)
    return mono if rate == RATE else np.asarray(soxr.resample(mono, rate, RATE), dtype=np.float32)


def cut_at_pauses(samples: Samples, longest: int) -> Iterator[Samples]:
    """Cut into pieces of fewer than `longest` samples, at the quietest place in the second half of that length."""
    while len(samples) >= longest:
        window = samples[longest // 2 : longest - 1]
        hops = len(window) // _HOP
        energy = np.square(window[: hops * _HOP].reshape(hops, _HOP)).sum(axis=1)
        smooth = np.convolve(energy, np.ones(_SMOOTH), mode="valid")
        cut = longest // 2 + (int(smooth.argmin()) + _SMOOTH // 2) * _HOP
        yield samples[:cut]
        samples = samples[cut:]
    yield samples
