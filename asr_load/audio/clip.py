"""One recording on its way into a shard: what the source gives, what is kept, and why it is not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

SKIP_REASONS = ("too_long", "too_short", "silent", "empty", "undecodable", "no_audio", "not_scored")


@dataclass(frozen=True, slots=True)
class Recording:
    """A row of a source: still encoded. `audio` is the file's bytes, its path, or None where there is none."""

    id: str
    text: str
    audio: bytes | Path | None
    offset_s: float = 0.0
    """Where in the audio it begins, in seconds, and how long it is; None: to the end."""
    length_s: float | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording as it is sent. `audio_b64` is base64 of a WAV, 16-bit PCM, mono, `sample_rate` Hz, or of what that is
    in another of AUDIO_FORMATS."""

    id: str
    text: str
    duration_s: float
    sample_rate: int
    sha256: str
    dither_at: list[int]
    """Of a WAV: where in each second the loudest samples in a row begin, whose lowest bits may be flipped
    (payload.dithered). One place in all where a version prepared it that knew no more."""
    speech_end_s: float | None
    """The second at which what is loud in it ends (convert.end_of_speech); None where it was prepared by a version that
    did not look for it."""
    audio_b64: bytes | memoryview


AUDIO_FORMATS = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "opus": "audio/ogg"}
"""What a clip may be sent as, and its media type (RFC 3003, 7845, 9639)."""


class Rules(msgspec.Struct, frozen=True):
    """What is kept and in which form.

    Durations are in seconds; None is no upper limit. `sample_rate` is in Hz; None keeps that of the file.
    `audio_format` is one of AUDIO_FORMATS. Recordings longer than `chunk_long` are cut into parts up to that; None
    leaves them whole.
    """

    max_duration: float | None = 30.0
    min_duration: float = 0.0
    sample_rate: int | None = 16000
    audio_format: str = "wav"
    chunk_long: float | None = None


CHANNELS_CANCEL = "channels_cancel"
"""A note on a clip: its channels are opposite in phase, so that their mean would be next to nothing; the louder one was
taken."""


class Skipped(Exception):
    """A recording that is not kept; `reason` is one of SKIP_REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_file(path: Path) -> bool:
    """Whether there is such a file. A name that no file system takes is none, where `Path.is_file` would raise."""
    return os.path.isfile(path)  # noqa: PTH113
