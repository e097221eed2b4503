"""A recording from its source to a shard, the rules that select it, and the reasons for skipping it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

SHORTEST_S = 0.01
"""Minimum length of a clip, in seconds."""

SKIP_REASONS = ("too_long", "too_short", "silent", "empty", "undecodable", "no_audio", "not_scored")


@dataclass(frozen=True, slots=True)
class Recording:
    """A row of a source, still encoded. `audio` is the file's bytes, its path, or None if there is no audio."""

    id: str
    text: str
    audio: bytes | Path | None
    offset_s: float = 0.0
    """Start of the recording within the audio, in seconds. `length_s` None: it extends to the end."""
    length_s: float | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording as it is sent. `audio_b64` is the base64 of a WAV (16-bit PCM, mono, `sample_rate` Hz), or of the
    same audio in another of AUDIO_FORMATS."""

    id: str
    text: str
    duration_s: float
    sample_rate: int
    sha256: str
    dither_at: list[int]
    """First sample of the loudest run in each second of a WAV, whose lowest bits may be flipped (dither.dithered).
    Clips from an earlier version have one place in all."""
    speech_end_s: float | None
    """End of speech, in seconds (convert.end_of_speech); None in clips from an earlier version."""
    audio_b64: bytes | memoryview


AUDIO_FORMATS = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "opus": "audio/ogg"}
"""Audio formats of clips and their media types (RFC 3003, 7845, 9639)."""


class Rules(msgspec.Struct, frozen=True):
    """Which recordings prepare keeps, and in which format.

    Durations are in seconds; `max_duration` None sets no limit. `sample_rate` is in Hz; None keeps the file's rate.
    `audio_format` is one of AUDIO_FORMATS. Recordings longer than `chunk_long` are cut into parts of at most that
    length; None leaves them whole.
    """

    max_duration: float | None = 30.0
    min_duration: float = 0.0
    sample_rate: int | None = 16000
    audio_format: str = "wav"
    chunk_long: float | None = None


CHANNELS_CANCEL = "channels_cancel"
"""Note on a clip whose channels have opposite phases: their mean would be almost silent, so only the louder one was
used."""


class Skipped(Exception):
    """A recording was skipped; `reason` is one of SKIP_REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_file(path: Path) -> bool:
    """Whether the path is a file. Returns False for an impossible name, for which `Path.is_file` would raise."""
    return os.path.isfile(path)  # noqa: PTH113


_PART = re.compile(r"(.*)~(\d{4,})-of-(\d{4,})", re.DOTALL)


def part_id(recording: str, number: int, parts: int) -> str:
    """The id of a part of a long recording, numbered from 0."""
    return f"{recording}~{number:04d}-of-{parts:04d}"


def parent_of(id: str) -> tuple[str, int, int]:
    """A clip's recording, part number and number of parts; a whole recording is part 0 of 1."""
    match = _PART.fullmatch(id)
    return (match[1], int(match[2]), int(match[3])) if match else (id, 0, 1)
