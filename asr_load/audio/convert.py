"""From a recording to a clip: decode, mix down, resample, encode."""

from __future__ import annotations

import hashlib
import io
import wave
from pathlib import Path

import numpy as np
import pybase64
import soundfile
import soxr

from asr_load.audio.clip import Clip, Recording, Rules, Skipped, is_file
from asr_load.audio.payload import DITHER_FIRST, DITHER_STEP, DITHERED

SILENCE = 2.0**-10
"""Half the peak-to-peak amplitude below which a recording is silent: -60 dBFS (full scale is 1.0)."""

HEADER_WORDS = 22
"""The 44 bytes of a WAV's header, in 16-bit words."""


def convert(recording: Recording, rules: Rules) -> Clip:
    """Decode, mix down, resample and encode a recording. Raises Skipped."""
    wav, sample_rate = _decode(recording.audio, rules)
    pcm = wav[HEADER_WORDS:]
    duration_s = len(pcm) / sample_rate
    if rules.max_duration is not None and duration_s > rules.max_duration:
        raise Skipped("too_long")
    if duration_s < rules.min_duration:
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


def _decode(audio: bytes | Path | None, rules: Rules) -> tuple[np.ndarray, int]:
    """Samples as little-endian int16, mono, behind room for a WAV's header: shape (HEADER_WORDS + n,), n > 0; and their
    rate in Hz. Raises Skipped."""
    if audio is None or (isinstance(audio, Path) and not is_file(audio)):
        raise Skipped("no_audio")
    if (audio.stat().st_size if isinstance(audio, Path) else len(audio)) == 0:
        raise Skipped("empty")
    try:
        with soundfile.SoundFile(audio if isinstance(audio, Path) else io.BytesIO(audio)) as file:
            rate = file.samplerate
            # One second past the limit is enough to know that it is too long: a day of audio must not fill memory.
            limit = None if rules.max_duration is None else int((rules.max_duration + 1) * rate)
            # 16-bit mono is taken as it is, to its place: the copies would cost a tenth of the decoding.
            if file.subtype == "PCM_16" and file.channels == 1 and rules.sample_rate in (None, rate):
                wav = np.empty(HEADER_WORDS + min(file.frames, limit or file.frames), dtype="<i2")
                wav = wav[: HEADER_WORDS + len(file.read(out=wav[HEADER_WORDS:]))]
                if len(wav) == HEADER_WORDS:
                    raise Skipped("empty")
                return wav, rate
            # All else goes through float32, which holds 24 bits exactly.
            samples = file.read(-1 if limit is None else limit, dtype="float32")
    except (soundfile.SoundFileError, RuntimeError, MemoryError, OverflowError) as error:
        # Too little memory is what a broken header that claims a month of audio ends in.
        raise Skipped("undecodable") from error
    if not np.isfinite(samples).all():
        raise Skipped("undecodable")
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if len(samples) and rules.sample_rate not in (None, rate):
        samples = soxr.resample(samples, rate, rules.sample_rate)
        rate = rules.sample_rate
    if len(samples) == 0:
        raise Skipped("empty")
    wav = np.empty(HEADER_WORDS + len(samples), dtype="<i2")
    wav[HEADER_WORDS:] = np.clip(np.rint(samples * 32768.0), -32768, 32767)
    return wav, rate


def _header(frames: int, sample_rate: int) -> bytes:
    header = io.BytesIO()
    file = wave.open(header, "wb")  # noqa: SIM115 (closing it would mend the header for the frames that it lacks)
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(sample_rate)
    file.setnframes(frames)
    file.writeframesraw(b"")
    return header.getvalue()
