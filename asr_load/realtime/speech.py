"""Divide a clip into the packets that a microphone would produce."""

from __future__ import annotations

import io
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pybase64
import soundfile
import soxr

from asr_load.apis.realtime import RealtimeRequest
from asr_load.audio.clip import Clip, Recording, Rules
from asr_load.audio.convert import convert
from asr_load.audio.decoder import HEADER_WORDS
from asr_load.audio.dither import DITHER_EVERY_S, NO_DITHER, flipped, mask_of
from asr_load.audio.loudness import end_of_speech
from asr_load.threads import in_thread

NOISE = 8
"""Amplitude of the noise that is sent as silence, 72 dB below full scale, because some models fail on zeros."""

FRAMES_PER_S = 100
"""Frames per second for measuring loudness."""

KEPT_BYTES = 256 << 20
"""Maximum bytes of resampled clips in the cache."""


class Speech(NamedTuple):
    """16-bit mono samples, followed by silence; `end_s` is the end of speech in seconds."""

    read: Callable[[int, int], bytes]
    """Reads the bytes of the samples from one position to another."""
    size: int
    """Bytes of the samples."""
    silence: bytes
    mask: bytes
    """Bits to flip in the samples from each of `dither_at` on; empty for none."""
    dither_at: list[int]
    """Rising positions in the samples, in bytes."""
    rate: int
    end_s: float

    @property
    def length_s(self) -> float:
        return (self.size + len(self.silence)) / 2 / self.rate

    def packets(self, packet_s: float) -> Iterator[tuple[bytes, float]]:
        """Yield the packets, each with the second at which a microphone would have filled it."""
        step, whole = max(round(packet_s * self.rate), 1) * 2, self.size + len(self.silence)
        for first in range(0, whole, step):
            last = min(first + step, whole)
            yield self._bytes(first, last), last / 2 / self.rate

    def _bytes(self, first: int, last: int) -> bytes:
        pcm = self.read(first, min(last, self.size)) if first < self.size else b""
        if last > self.size:
            pcm += self.silence[max(first - self.size, 0) : last - self.size]
        for place in self.dither_at[bisect_left(self.dither_at, first - len(self.mask)) :]:
            begins, ends = max(place, first), min(place + len(self.mask), first + len(pcm))
            if place >= last:
                break
            if begins < ends:
                mixed = flipped(pcm[begins - first : ends - first], self.mask[begins - place :])
                pcm = b"".join((pcm[: begins - first], mixed, pcm[ends - first :]))
        return pcm


def speech_of(request: RealtimeRequest, rates: tuple[int, ...], resampled: Resampled) -> Speech:
    """The speech of a clip at one of `rates`, with the silence of its options. Resamples a clip of another rate once,
    in a thread, so call this before the clock starts."""
    clip, silence_s = request.clip, request.options.silence_s
    assert clip is not None
    rate = clip.sample_rate
    if rate in rates:
        size, read = _in_shard(clip)
    else:
        rate = rates[0]
        size, read = resampled.get(clip, rate)
    silence = _silence(silence_s, rate)
    places = [round(place * rate / clip.sample_rate) * 2 for place in clip.dither_at]
    # Dither the silence too: an engine that cuts audio by time caches pieces of it separately.
    places += range(size, size + len(silence), 2 * round(DITHER_EVERY_S * rate))
    mask = b"" if request.nonce == NO_DITHER else mask_of(request.nonce)
    end_s = size / 2 / rate
    if silence_s:
        end_s = clip.speech_end_s or in_thread(_end_of_speech, clip)
    return Speech(read, size, silence, mask, places, rate, end_s)


def piece_of(clip: Clip, seconds: float) -> Clip:
    """Cut the loudest stretch of `seconds` out of a clip; returns a shorter clip unchanged."""
    return clip if clip.duration_s <= seconds else in_thread(_piece, clip, seconds)


def _piece(clip: Clip, seconds: float) -> Clip:
    samples, step = _samples(clip), clip.sample_rate // FRAMES_PER_S
    frames = samples[: len(samples) // step * step].reshape(-1, step)
    energy = np.cumsum(np.einsum("ij,ij->i", frames, frames, dtype=np.float64))
    size = round(seconds * FRAMES_PER_S)
    first = int(np.argmax(energy[size:] - energy[:-size])) + 1 if len(energy) > size else 0
    with io.BytesIO() as file:
        piece = samples[first * step : (first + size) * step]
        soundfile.write(file, piece, clip.sample_rate, format="WAV", subtype="PCM_16")
        recording = Recording(clip.id, clip.text, file.getvalue())
    return next(convert(recording, Rules(max_duration=None, sample_rate=None)))


def _in_shard(clip: Clip) -> tuple[int, Callable[[int, int], bytes]]:
    """The size of a clip's samples in bytes, and a function that reads them from the shard on demand."""
    view = memoryview(clip.audio_b64)
    header = 2 * HEADER_WORDS

    def read(first: int, last: int) -> bytes:
        # base64 encodes groups of 3 bytes as 4.
        group = (header + first) // 3
        skip = header + first - 3 * group
        return pybase64.b64decode(view[4 * group : -(-(header + last) // 3) * 4])[skip : skip + last - first]

    return len(view) // 4 * 3 - bytes(view[-2:]).count(b"=") - header, read


class Resampled:
    """Resampled clips, up to KEPT_BYTES of the most recently used ones."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        """Samples by the clip's hash and the rate, the most recently used last."""

    def get(self, clip: Clip, rate: int) -> tuple[int, Callable[[int, int], bytes]]:
        """The size of a clip's samples at this rate in bytes, and a function that reads them."""
        key = (clip.sha256, rate)
        pcm = self.kept.get(key)
        if pcm is None:
            pcm = self.kept[key] = in_thread(_resample, clip, rate)
            while len(self.kept) > 1 and sum(map(len, self.kept.values())) > KEPT_BYTES:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        return len(pcm), lambda first, last: pcm[first:last]


def _samples(clip: Clip) -> np.ndarray:
    size, read = _in_shard(clip)
    return np.frombuffer(read(0, size), "<i2")


def _resample(clip: Clip, rate: int) -> bytes:
    resampled: np.ndarray = soxr.resample(_samples(clip), clip.sample_rate, rate)
    return resampled.tobytes()


def _end_of_speech(clip: Clip) -> float:
    return end_of_speech(_samples(clip), clip.sample_rate)


@lru_cache
def _silence(seconds: float, rate: int) -> bytes:
    noise = np.random.default_rng(0).integers(-NOISE, NOISE, round(seconds * rate), "<i2")
    return noise.tobytes()
