"""Audio as bytes of a file, and the recordings of the sample."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
import soxr

from asr_load.audio.clip import Clip, Recording, Rules
from asr_load.audio.convert import convert
from conftest import CHECKOUT, noise


def encoded(samples: np.ndarray, rate: int = 16000, **kwargs: str) -> bytes:
    """Encode samples of shape (n,) or (n, channels): as WAV, or as given to soundfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **({"format": "WAV"} | kwargs))
    return buffer.getvalue()


def clip(seconds: float = 0.5) -> Clip:
    pcm = (noise(seconds) * 32768).astype(np.int16)
    return next(convert(Recording("a", "", encoded(pcm, subtype="PCM_16")), Rules()))


def write_tar(file: Path, members: Mapping[str, bytes | str]) -> Path:
    """Write a tar file with these members in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            content = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


SAMPLE = CHECKOUT / "asr_data" / "sample"

FORMATS = {
    "16k_u8.wav": (16000, 1, {"format": "WAV", "subtype": "PCM_U8"}),
    "16k_ulaw.wav": (16000, 1, {"format": "WAV", "subtype": "ULAW"}),
    "8k_pcm16.wav": (8000, 1, {"format": "WAV", "subtype": "PCM_16"}),
    "44k1_stereo_pcm24.wav": (44100, 2, {"format": "WAV", "subtype": "PCM_24"}),
    "48k_float32.wav": (48000, 1, {"format": "WAV", "subtype": "FLOAT"}),
    "16k_24bit.flac": (16000, 1, {"format": "FLAC", "subtype": "PCM_24"}),
    "44k1.ogg": (44100, 1, {"format": "OGG", "subtype": "VORBIS"}),
    "48k.opus": (48000, 1, {"format": "OGG", "subtype": "OPUS"}),
    "22k05_stereo.mp3": (22050, 2, {"format": "MP3", "subtype": "MPEG_LAYER_III"}),
}
"""Rate, channels and encoding, by the end of the file name."""


def sample_text(name: str) -> str:
    """The reference of a recording of the sample."""
    rows = map(json.loads, (SAMPLE / "manifest.jsonl").read_text(encoding="utf-8").splitlines())
    return next(str(row["text"]) for row in rows if row["id"] == name)


def sample_in(name: str, kind: str = "") -> bytes:
    """A recording of the sample unchanged, or in one of FORMATS."""
    if not kind:
        return (SAMPLE / f"{name}.flac").read_bytes()
    rate, channels, how = FORMATS[kind]
    samples, own = soundfile.read(SAMPLE / f"{name}.flac", dtype="float32")
    resampled = soxr.resample(samples, own, rate)
    return encoded(np.stack([resampled] * channels, axis=1) if channels > 1 else resampled, rate, **how)
