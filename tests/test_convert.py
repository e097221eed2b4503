"""Decoding, mixing down, resampling, and every reason to skip a recording."""

from __future__ import annotations

import base64
import hashlib
import io
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_load.audio.clip import SKIP_REASONS, Recording, Rules, Skipped
from asr_load.audio.convert import convert
from conftest import noise


def encoded(samples: np.ndarray, rate: int = 16000, **kwargs: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **({"format": "WAV"} | kwargs))
    return buffer.getvalue()


def reason(audio: bytes | Path | None, **rules: float) -> str:
    with pytest.raises(Skipped) as caught:
        convert(Recording("a", "", audio), Rules(**rules))  # type: ignore[arg-type]
    return caught.value.reason


def test_sixteen_bit_mono_is_kept_to_the_bit() -> None:
    pcm = (noise(0.5) * 32768).astype(np.int16)
    clip = convert(Recording("a", "hello", encoded(pcm, subtype="PCM_16", format="FLAC")), Rules())
    wav = base64.b64decode(bytes(clip.audio_b64))
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        assert file.readframes(file.getnframes()) == pcm.tobytes()
    assert (clip.id, clip.text, clip.duration_s, clip.sample_rate) == ("a", "hello", 0.5, 16000)
    assert clip.sha256 == hashlib.sha256(wav).hexdigest()


def test_stereo_at_another_rate_becomes_mono_at_16_khz() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100) * 0.5
    clip = convert(Recording("a", "", encoded(np.stack([tone, tone * 0.5], axis=1), 44100, subtype="PCM_24")), Rules())
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(bytes(clip.audio_b64))))
    assert rate == 16000
    assert samples.shape == (16000,)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) * 0.375
    assert np.abs(samples - expected)[100:-100].max() < 1e-3


def test_the_rate_can_be_kept() -> None:
    clip = convert(Recording("a", "", encoded(noise(0.2, 8000), 8000)), Rules(sample_rate=None))
    assert (clip.sample_rate, clip.duration_s) == (8000, 0.2)


def test_loud_floats_are_clipped_not_wrapped() -> None:
    loud = np.where(np.arange(1600) % 2, 3.0, -3.0).astype(np.float32)
    clip = convert(Recording("a", "", encoded(loud, subtype="FLOAT")), Rules())
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(bytes(clip.audio_b64))), dtype="int16")
    assert set(samples.tolist()) == {-32768, 32767}


@pytest.mark.parametrize(("seconds", "kept"), [(30.0, True), (30.0625, False)])
def test_thirty_seconds_are_not_too_long_and_a_little_more_are(seconds: float, kept: bool) -> None:
    audio = encoded(noise(seconds))
    if kept:
        assert convert(Recording("a", "", audio), Rules()).duration_s == seconds
    else:
        assert reason(audio) == "too_long"
        assert convert(Recording("a", "", audio), Rules(max_duration=None)).duration_s == seconds


def test_reasons_to_skip(tmp_path: Path) -> None:
    quiet = noise(1) * 0.001
    not_a_number = noise(1)
    not_a_number[5] = np.nan
    seen = {
        "too_long": reason(encoded(noise(2)), max_duration=1.5),
        "too_short": reason(encoded(noise(0.5)), min_duration=1),
        "silent": reason(encoded(np.zeros(16000))),
        "empty": reason(b""),
        "undecodable": reason(b"this is no audio"),
        "no_audio": reason(None),
    }
    assert list(seen) == list(SKIP_REASONS)
    assert all(name == found for name, found in seen.items())
    assert reason(encoded(quiet)) == "silent"
    assert reason(encoded(np.full(16000, 0.5))) == "silent"  # a constant offset is no speech
    assert reason(encoded(np.zeros(0))) == "empty"
    assert reason(encoded(np.zeros(0), 8000, subtype="FLOAT")) == "empty"
    assert reason(encoded(not_a_number, subtype="FLOAT")) == "undecodable"
    assert reason(tmp_path / "missing.wav") == "no_audio"
    (tmp_path / "empty.wav").touch()
    assert reason(tmp_path / "empty.wav") == "empty"


def test_a_full_scale_square_wave_is_not_silent() -> None:
    square = np.where(np.arange(1600) % 2, 32767, -32768).astype(np.int16)
    assert convert(Recording("a", "", encoded(square, subtype="PCM_16")), Rules()).duration_s == 0.1


def test_every_format_of_real_speech_gives_the_same_recording(speech: Path) -> None:
    files = sorted((speech / "audio").glob("fmt_*"))
    assert len(files) == 9
    lengths = {file.name: convert(Recording("a", "", file), Rules()).duration_s for file in files}
    assert all(length == pytest.approx(5.425, abs=0.06) for length in lengths.values()), lengths
