"""Decoding, mixing down, resampling, and each reason to skip a recording."""

from __future__ import annotations

import base64
import hashlib
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_load.audio import decoder, loudness
from asr_load.audio.clip import CHANNELS_CANCEL, SKIP_REASONS, Clip, Recording, Rules, Skipped
from asr_load.audio.convert import convert
from conftest import noise
from harness.audio import FORMATS, encoded, sample_in


def reason(audio: bytes | Path | None, text: str = "", **rules: float) -> str:
    with pytest.raises(Skipped) as caught:
        convert(Recording("a", text, audio), Rules(**rules))  # type: ignore[arg-type]
    return caught.value.reason


def test_16_bit_mono_is_kept_bit_for_bit() -> None:
    pcm = (noise(0.5) * 32768).astype(np.int16)
    clip = next(convert(Recording("a", "hello", encoded(pcm, subtype="PCM_16", format="FLAC")), Rules()))
    wav = base64.b64decode(bytes(clip.audio_b64))
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        assert file.readframes(file.getnframes()) == pcm.tobytes()
    assert (clip.id, clip.text, clip.duration_s, clip.sample_rate) == ("a", "hello", 0.5, 16000)
    assert clip.sha256 == hashlib.sha256(wav).hexdigest()


def test_stereo_at_another_rate_becomes_mono_at_16_khz() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100) * 0.5
    clip = next(
        convert(Recording("a", "", encoded(np.stack([tone, tone * 0.5], axis=1), 44100, subtype="PCM_24")), Rules())
    )
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(bytes(clip.audio_b64))))
    assert rate == 16000
    assert samples.shape == (16000,)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) * 0.375
    assert np.abs(samples - expected)[100:-100].max() < 1e-3


def test_sample_rate_is_kept_on_request() -> None:
    clip = next(convert(Recording("a", "", encoded(noise(0.2, 8000), 8000)), Rules(sample_rate=None)))
    assert (clip.sample_rate, clip.duration_s) == (8000, 0.2)


def test_loud_floats_are_clipped_and_do_not_wrap() -> None:
    loud = np.where(np.arange(1600) % 2, 3.0, -3.0).astype(np.float32)
    clip = next(convert(Recording("a", "", encoded(loud, subtype="FLOAT")), Rules()))
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(bytes(clip.audio_b64))), dtype="int16")
    assert set(samples.tolist()) == {-32768, 32767}


@pytest.mark.parametrize(("seconds", "kept"), [(30.0, True), (30.0625, False)])
def test_recording_over_30_s_is_too_long(seconds: float, kept: bool) -> None:
    audio = encoded(noise(seconds))
    if kept:
        assert next(convert(Recording("a", "", audio), Rules())).duration_s == seconds
    else:
        assert reason(audio) == "too_long"
        assert next(convert(Recording("a", "", audio), Rules(max_duration=None))).duration_s == seconds


def test_each_reason_to_skip_a_recording(tmp_path: Path) -> None:
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
        "not_scored": reason(encoded(noise(1)), "IGNORE_TIME_SEGMENT_IN_SCORING"),
    }
    assert list(seen) == list(SKIP_REASONS)
    assert all(name == found for name, found in seen.items())
    assert reason(encoded(quiet)) == "silent"
    assert reason(encoded(np.full(16000, 0.5))) == "silent"  # a constant offset is not speech
    assert reason(encoded(np.zeros(0))) == "empty"
    assert reason(encoded(np.zeros(0), 8000, subtype="FLOAT")) == "empty"
    assert reason(encoded(not_a_number, subtype="FLOAT")) == "undecodable"
    assert reason(tmp_path / "missing.wav") == "no_audio"
    (tmp_path / "empty.wav").touch()
    assert reason(tmp_path / "empty.wav") == "empty"


def test_full_scale_square_wave_is_not_silent() -> None:
    square = np.where(np.arange(1600) % 2, 32767, -32768).astype(np.int16)
    assert next(convert(Recording("a", "", encoded(square, subtype="PCM_16")), Rules())).duration_s == 0.1


@pytest.mark.parametrize("kind", FORMATS)
def test_every_audio_format_is_decoded(tmp_path: Path, kind: str) -> None:
    file = tmp_path / kind
    file.write_bytes(sample_in("rms-09", kind))
    assert next(convert(Recording("a", "", file), Rules())).duration_s == pytest.approx(4.23, abs=0.06)


def unknown_length(flac: bytes) -> bytes:
    """A FLAC as written to a pipe: its number of samples, 36 bits of its first block, is 0."""
    data = bytearray(flac)
    assert data[:4] == b"fLaC"
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rules", [Rules(), Rules(max_duration=None), Rules(sample_rate=None)])
def test_flac_of_unknown_length_is_read_completely(channels: int, rules: Rules) -> None:
    pcm = (noise(1.25) * 32768).astype(np.int16)
    flac = encoded(np.stack([pcm] * channels, axis=1), format="FLAC", subtype="PCM_16")
    clip = next(convert(Recording("a", "", unknown_length(flac)), rules))
    assert clip.duration_s == 1.25
    assert samples_of(clip).tolist() == pcm.tolist()
    part = next(convert(Recording("a", "", unknown_length(flac), 0.5, 0.25), rules))
    assert samples_of(part).tolist() == pcm[8000:12000].tolist()
    assert reason(unknown_length(flac), max_duration=1.0) == "too_long"


@pytest.mark.parametrize("chunk_long", [None, 0.5])
@pytest.mark.parametrize("is_known", [True, False])
def test_reading_stops_at_the_longest_allowed_recording(
    chunk_long: float | None, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FLAC with days of silence is a small file."""
    monkeypatch.setattr(decoder, "LONGEST_FRAMES", 2 * 16000)
    monkeypatch.setattr(decoder, "BLOCK_FRAMES", 8000)
    read = 0

    class Counting(decoder._File):
        def read(self, *words: Any, **more: Any) -> Any:
            nonlocal read
            samples = super().read(*words, **more)
            read += len(samples)
            return samples

    monkeypatch.setattr(decoder, "_File", Counting)
    flac = encoded(noise(20), 48000, format="FLAC")
    with pytest.raises(Skipped, match="too_long"):
        convert(Recording("a", "", flac if is_known else unknown_length(flac)), Rules(None, chunk_long=chunk_long))
    assert read == 3 * 48000  # one second more shows that it is too long


def samples_of(clip: Clip) -> np.ndarray:
    return np.frombuffer(base64.b64decode(bytes(clip.audio_b64))[44:], dtype="<i2")


@pytest.mark.parametrize("kind", [{"subtype": "PCM_16"}, {"subtype": "PCM_24"}, {"format": "FLAC"}])
def test_segment_is_cut_out_of_its_file(kind: dict[str, str]) -> None:
    pcm = (noise(2.0) * 32768).astype(np.int16)
    audio = encoded(pcm, 16000, **kind)
    assert samples_of(next(convert(Recording("a", "", audio, 0.5, 0.75), Rules()))).tolist() == pcm[8000:20000].tolist()
    assert samples_of(next(convert(Recording("a", "", audio, 1.5), Rules()))).tolist() == pcm[24000:].tolist()
    assert samples_of(next(convert(Recording("a", "", audio, 1.5, 9.0), Rules()))).tolist() == pcm[24000:].tolist()
    with pytest.raises(Skipped, match="empty"):
        next(convert(Recording("a", "", audio, 2.0), Rules()))


@pytest.mark.parametrize(
    ("left", "right", "peak", "noted"),
    [(1, 1, 9000, False), (1, 0, 4500, False), (1, -1, 9000, True), (0.5, -0.49, 4500, True), (1, 0.5, 6750, False)],
)
def test_cancelling_channels_are_replaced_by_one_and_noted(left: float, right: float, peak: int, noted: bool) -> None:
    tone = np.sin(np.arange(16000) / 5) * 9000 / 32768
    notes: list[str] = []
    clip = next(
        convert(Recording("a", "", encoded(np.stack([tone * left, tone * right], axis=1))), Rules(), notes.append)
    )
    assert np.abs(samples_of(clip).astype(int)).max() == pytest.approx(peak, abs=2)
    assert notes == ([CHANNELS_CANCEL] if noted else [])


def test_extreme_lengths_and_rates_are_skipped() -> None:
    assert reason(encoded(noise(0.009))) == "too_short"
    assert next(convert(Recording("a", "", encoded(noise(0.011))), Rules())).duration_s == 0.011
    for rate in (1, 100, 3999, 400_000):
        assert reason(encoded(noise(1.0), rate)) == "undecodable"


def without_length(samples: np.ndarray, size: int, behind: bytes = b"") -> bytes:
    """A 16 kHz stereo WAV whose data chunk claims `size` bytes, followed by `behind`."""
    data = bytearray(encoded(np.stack([samples, samples], 1), subtype="PCM_24"))
    at = data.index(b"data") + 4
    data[at : at + 4] = size.to_bytes(4, "little")
    return bytes(data) + behind


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("rules", [Rules(), Rules(max_duration=None, sample_rate=None)])
def test_wav_of_unknown_length_is_read_to_its_end(tmp_path: Path, size: int, in_file: bool, rules: Rules) -> None:
    data = without_length(noise(2.0), size)
    (tmp_path / "a.wav").write_bytes(data)
    clip = next(convert(Recording("a", "", tmp_path / "a.wav" if in_file else data), rules))
    assert clip.duration_s == 2.0
    assert (tmp_path / "a.wav").read_bytes() == data


def test_wav_without_samples_is_empty() -> None:
    nothing = without_length(noise(2.0)[:0], 0)
    chunk = b"LIST" + (4).to_bytes(4, "little") + b"INFO"
    for data in (nothing, nothing + chunk):
        assert reason(data) == "empty"


@pytest.mark.parametrize("kind", ["GSM610", "IMA_ADPCM", "MS_ADPCM", "ULAW", "ALAW"])
@pytest.mark.parametrize("rules", [Rules(), Rules(max_duration=None), Rules(sample_rate=None)])
def test_telephone_codecs_in_wav_are_decoded(kind: str, rules: Rules) -> None:
    recording = Recording("a", "", encoded(noise(2.0, 8000), 8000, subtype=kind))
    assert next(convert(recording, rules)).duration_s == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("data", [b"\0\0\0\x20ftypM4A " + bytes(500), b"\xff\xf1\x50\x80" * 9, b"#!AMR\n" + bytes(99)])
def test_formats_that_libsndfile_cannot_read_are_undecodable(data: bytes) -> None:
    assert reason(data) == "undecodable"


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_block_size_does_not_change_a_clip(monkeypatch: pytest.MonkeyPatch, channels: int, rate: int) -> None:
    """Mixing down, resampling and measuring block by block leaves no seams."""
    voice = noise(3.0, rate)
    samples = np.stack([voice, -0.99 * voice][:channels], 1)
    notes: list[str] = []
    recording = Recording("a", "", encoded(samples, rate, subtype="PCM_24"))
    whole = next(convert(recording, Rules()))
    for frames in (999, 4096, 50_001):
        monkeypatch.setattr(decoder, "BLOCK_FRAMES", frames)
        monkeypatch.setattr(loudness, "BLOCK_FRAMES", frames)
        assert next(convert(recording, Rules(), notes.append)) == whole
    assert len(notes) == (3 if channels == 2 else 0)
