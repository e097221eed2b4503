"""From a recording to a clip: decode, mix down, resample, encode."""

from __future__ import annotations

import hashlib
import io
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pybase64
import soundfile
import soxr

from asr_load.audio.clip import CHANNELS_CANCEL, Clip, Recording, Rules, Skipped, is_file
from asr_load.audio.payload import DITHER_FIRST, DITHER_STEP, DITHERED

SILENCE = 2.0**-10
"""Half the peak-to-peak amplitude below which a recording is silent: -60 dBFS (full scale is 1.0)."""

SHORTEST_S = 0.01
"""Of which nothing can be said."""

LOWEST_RATE, HIGHEST_RATE = 4000, 384_000
"""Sample rates in Hz that speech is recorded with; another one is a broken header."""

CANCELLED = 0.1
"""Share of the louder channel's energy below which the mean of all channels is what is left of opposite phases."""

BLOCK_FRAMES, UNKNOWN_FRAMES = 1 << 20, 1 << 40
"""Read at once where a file's length is not known; libsndfile gives a length beyond the second then."""

HEADER_WORDS = 22
"""The 44 bytes of a WAV's header, in 16-bit words."""


def convert(recording: Recording, rules: Rules, note: Callable[[str], object] = lambda _: None) -> Clip:
    """Decode, mix down, resample and encode a recording; `note` is called with what is to be said of it. Raises
    Skipped."""
    wav, sample_rate = _decode(recording, rules, note)
    pcm = wav[HEADER_WORDS:]
    duration_s = len(pcm) / sample_rate
    if rules.max_duration is not None and duration_s > rules.max_duration:
        raise Skipped("too_long")
    if duration_s < max(rules.min_duration, SHORTEST_S):
        raise Skipped("too_short")
    # Peak to peak, so that a constant offset counts as silence too. Widened first: the span can exceed 16 bits.
    if (int(pcm.max()) - int(pcm.min())) / 2 < SILENCE * 32768:
        raise Skipped("silent")
    wav[:HEADER_WORDS] = np.frombuffer(_header(len(pcm), sample_rate), dtype="<i2")
    return Clip(
        id=recording.id,
        text=recording.text,
        duration_s=round(duration_s, 6),
        sample_rate=sample_rate,
        sha256=hashlib.sha256(wav.data).hexdigest(),
        dither_at=_loudest(pcm),
        audio_b64=pybase64.b64encode(wav.data.cast("B")),
    )


def _loudest(pcm: np.ndarray) -> int:
    """Where the DITHERED samples in a row begin that hold the most energy, of the places that base64 allows for."""
    energy = pcm.astype(np.int64)
    energy *= energy
    sums = np.cumsum(energy)
    starts = np.arange(DITHER_FIRST, len(pcm) - DITHERED + 1, DITHER_STEP)
    if not len(starts):
        return DITHER_FIRST
    return int(starts[np.argmax(sums[starts + DITHERED - 1] - sums[starts - 1])])


def _decode(recording: Recording, rules: Rules, note: Callable[[str], object]) -> tuple[np.ndarray, int]:
    """Samples as little-endian int16, mono, behind room for a WAV's header: shape (HEADER_WORDS + n,), n > 0; and their
    rate in Hz. Raises Skipped."""
    audio = recording.audio
    if audio is None or (isinstance(audio, Path) and not is_file(audio)):
        raise Skipped("no_audio")
    if (audio.stat().st_size if isinstance(audio, Path) else len(audio)) == 0:
        raise Skipped("empty")
    try:
        with _File(audio if isinstance(audio, Path) else io.BytesIO(audio)) as file:
            rate = file.samplerate
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise Skipped("undecodable")
            frames = _frames(file, recording, rules)
            # 16-bit mono is taken as it is, to its place: the copies would cost a tenth of the decoding.
            if file.subtype == "PCM_16" and file.channels == 1 and rules.sample_rate in (None, rate) and file.known:
                wav = np.empty(HEADER_WORDS + frames, dtype="<i2")
                wav = wav[: HEADER_WORDS + len(file.read(out=wav[HEADER_WORDS:]))]
                if len(wav) == HEADER_WORDS:
                    raise Skipped("empty")
                return wav, rate
            # All else goes through float32, which holds 24 bits exactly.
            samples = file.read(frames, dtype="float32") if file.known else _read_to_end(file, frames)
    except (soundfile.SoundFileError, RuntimeError, MemoryError, OverflowError, ValueError) as error:
        # Too little memory is what a broken header that claims a month of audio ends in.
        raise Skipped("undecodable") from error
    if not np.isfinite(samples).all():
        raise Skipped("undecodable")
    if samples.ndim == 2 and samples.shape[1] == 1:
        samples = samples[:, 0]
    if samples.ndim == 2:
        samples = _mixed_down(samples, note)
    if len(samples) and rules.sample_rate not in (None, rate):
        samples = soxr.resample(samples, rate, rules.sample_rate)
        rate = rules.sample_rate
    if len(samples) == 0:
        raise Skipped("empty")
    wav = np.empty(HEADER_WORDS + len(samples), dtype="<i2")
    wav[HEADER_WORDS:] = np.clip(np.rint(samples * 32768.0), -32768, 32767)
    return wav, rate


class _File(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    @property
    def known(self) -> bool:
        """Whether it knows its length: FLAC from a pipe does not."""
        known: bool = 0 < self.frames < UNKNOWN_FRAMES
        return known

    def seekable(self) -> bool:
        # soundfile sets a file that can be to where it has read to, and for libsndfile there is no such place then.
        return self.known and bool(super().seekable())


def _frames(file: _File, recording: Recording, rules: Rules) -> int:
    """How many frames to read at most, from where the file is set to. Raises Skipped."""
    rate = file.samplerate
    first = round(recording.offset_s * rate)
    if first:
        if file.known and first >= file.frames:
            raise Skipped("empty")
        if not file.known:
            _read_to_end(file, first)
        else:
            file.seek(first)
    # One second past the limit is enough to know that it is too long: a day of audio must not fill memory.
    limits = [] if rules.max_duration is None else [int((rules.max_duration + 1) * rate)]
    if recording.length_s is not None:
        limits.append(round(recording.length_s * rate))
    if file.known:
        limits.append(file.frames - first)
    return min(limits, default=UNKNOWN_FRAMES)


def _read_to_end(file: _File, at_most: int) -> np.ndarray:
    """Of a file that does not know its length: block by block, as its end is told by nothing else."""
    blocks = [np.empty((0, file.channels), np.float32)]
    while at_most > 0:
        block = file.read(min(BLOCK_FRAMES, at_most), dtype="float32", always_2d=True)
        blocks.append(block)
        at_most -= len(block)
        if not len(block):
            break
    return np.concatenate(blocks)


def _mixed_down(samples: np.ndarray, note: Callable[[str], object]) -> np.ndarray:
    """The mean of the channels, shape (n, channels) to (n,); the loudest of them where they cancel each other."""
    mean: np.ndarray = samples.mean(axis=1)
    if not len(mean):
        return mean
    energies = np.square(samples, dtype=np.float64).sum(axis=0)
    loudest = int(np.argmax(energies))
    # A voice on one side alone has a quarter of its energy in the mean.
    if np.square(mean, dtype=np.float64).sum() >= CANCELLED * energies[loudest]:
        return mean
    note(CHANNELS_CANCEL)
    taken: np.ndarray = samples[:, loudest]
    return taken


def _header(frames: int, sample_rate: int) -> bytes:
    header = io.BytesIO()
    file = wave.open(header, "wb")  # noqa: SIM115 (closing it would mend the header for the frames that it lacks)
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(sample_rate)
    file.setnframes(frames)
    file.writeframesraw(b"")
    return header.getvalue()
