"""Decode a recording to 16-bit mono samples: mix down and resample, block by block."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from asr_load.audio.clip import CHANNELS_CANCEL, Recording, Rules, Skipped, is_file

LOWEST_RATE, HIGHEST_RATE = 4000, 384_000
"""Range of plausible sample rates in Hz; others indicate a broken header."""

CANCELLED = 0.1
"""Channels cancel each other if their mean has less than this share of the loudest channel's energy."""

BLOCK_FRAMES, UNKNOWN_FRAMES = 1 << 20, 1 << 40
"""Frames to read at once; and the frame count from which libsndfile does not know a file's length."""

CUT_S = 0.1
"""Tolerance, in seconds, between the length of a file and that of the segment it was cut from."""

HEADER_WORDS = 22
"""Length of a WAV header in 16-bit words (44 bytes)."""

LONGEST_FRAMES = (2**31 - 1) // 4 * 3 // 2 - HEADER_WORDS
"""Maximum samples of a clip, fourteen hours at 16 kHz: the base64 of more does not fit into an Arrow string column. It
also limits recordings that are cut into parts, because a small FLAC file can hold days of silence."""


def decode_recording(recording: Recording, rules: Rules, note: Callable[[str], object]) -> tuple[np.ndarray, int]:
    """Decode to mono little-endian int16 after room for a WAV header, shape (HEADER_WORDS + n,), n > 0. Returns the
    samples and their rate in Hz. Raises Skipped."""
    audio = recording.audio
    if audio is None or (isinstance(audio, Path) and not is_file(audio)):
        raise Skipped("no_audio")
    if (audio.stat().st_size if isinstance(audio, Path) else len(audio)) == 0:
        raise Skipped("empty")
    try:
        mix = _Mix()
        wav, rate = _read(audio, recording, rules, mix)
        if mix.cancelled:
            note(CHANNELS_CANCEL)
            wav, rate = _read(audio, recording, rules, _Mix(mix.loudest))
    except (soundfile.SoundFileError, RuntimeError, MemoryError, OverflowError, ValueError) as error:
        # MemoryError: a broken header may claim a month of audio.
        raise Skipped("undecodable") from error
    if len(wav) == HEADER_WORDS:
        raise Skipped("empty")
    if len(wav) - HEADER_WORDS > LONGEST_FRAMES:
        raise Skipped("too_long")
    return wav, rate


class _File(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    @property
    def known(self) -> bool:
        """Whether the file's length is known: FLAC from a pipe does not state it."""
        known: bool = 0 < self.frames < UNKNOWN_FRAMES
        return known

    def seekable(self) -> bool:
        # soundfile seeks in seekable files after each read, which libsndfile cannot do without a known length.
        return self.known and bool(super().seekable())


class _Mix:
    """Mixes channels down to one: their mean, or the given channel."""

    def __init__(self, channel: int | None = None) -> None:
        self._channel = channel
        self._energies: np.ndarray = np.zeros(1)
        self._of_mean = 0.0

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Mix samples of shape (n, channels) to (n,)."""
        if samples.shape[1] == 1:
            return samples[:, 0]
        if self._channel is not None:
            return np.ascontiguousarray(samples[:, self._channel])
        mean: np.ndarray = samples.mean(axis=1)
        self._energies = self._energies + np.square(samples, dtype=np.float64).sum(axis=0)
        self._of_mean += float(np.square(mean, dtype=np.float64).sum())
        return mean

    @property
    def loudest(self) -> int:
        return int(np.argmax(self._energies))

    @property
    def cancelled(self) -> bool:
        """Whether the channels cancel each other in the mean. A voice on one of two channels keeps a quarter of its
        energy."""
        return self._of_mean < CANCELLED * float(self._energies[self.loudest])


def _read(audio: bytes | Path, recording: Recording, rules: Rules, mix: _Mix) -> tuple[np.ndarray, int]:
    """Decode like `_decode`, n >= 0, block by block: an hour of stereo in float32 would take a gigabyte."""
    with _open(audio) as file:
        rate = file.samplerate
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise Skipped("undecodable")
        frames = _frames(file, recording, rules)
        # Read 16-bit mono directly into its place: copies would cost a tenth of the decoding time.
        if file.subtype == "PCM_16" and file.channels == 1 and rules.sample_rate in (None, rate) and file.known:
            wav = np.empty(HEADER_WORDS + frames, dtype="<i2")
            return wav[: HEADER_WORDS + len(file.read(frames, out=wav[HEADER_WORDS:]))], rate
        to = rules.sample_rate or rate
        resample = soxr.ResampleStream(rate, to, 1, dtype="float32").resample_chunk if to != rate else None
        parts = [np.zeros(HEADER_WORDS, dtype="<i2")]
        last = False
        while not last:
            # Everything else goes through float32, which represents 24 bits exactly.
            block = file.read(min(BLOCK_FRAMES, frames), dtype="float32", always_2d=True)
            if not np.isfinite(block).all():
                raise Skipped("undecodable")
            frames -= len(block)
            # A file of unknown length ends with an empty read.
            last = not frames or not len(block)
            samples = mix(block)
            if resample is not None:
                samples = resample(samples, last=last)
            parts.append(np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2"))
    return np.concatenate(parts), to


def _frames(file: _File, recording: Recording, rules: Rules) -> int:
    """Seek to the recording and return the maximum number of frames to read. Raises Skipped."""
    rate = file.samplerate
    if file.known and _is_segment(file.frames / rate, recording):
        recording = replace(recording, offset_s=0.0, length_s=None)
    first = round(recording.offset_s * rate)
    if first and file.known:
        if first >= file.frames:
            raise Skipped("empty")
        file.seek(first)
    elif first:
        while first and (passed := len(file.read(min(BLOCK_FRAMES, first), dtype="float32"))):
            first -= passed
    # Reading one second past the limit shows that a file is too long, without holding a day of audio in memory.
    longest_s = LONGEST_FRAMES / (rules.sample_rate or rate)
    limits = [int((min(longest_s, rules.max_duration or longest_s) + 1) * rate)]
    if recording.length_s is not None:
        limits.append(round(recording.length_s * rate))
    if file.known:
        limits.append(file.frames - first)
    return min(limits)


def _is_segment(file_s: float, recording: Recording) -> bool:
    """Whether the file is already cut to the recording's segment: it has the segment's length, and the segment would
    end after the file's end. Some tables of cut files keep the times in the original."""
    length_s = recording.length_s
    return length_s is not None and abs(file_s - length_s) <= CUT_S and recording.offset_s + length_s > file_s + CUT_S


def _open(audio: bytes | Path) -> _File:
    file = _File(audio if isinstance(audio, Path) else io.BytesIO(audio))
    if file.frames == 0 and file.format in ("WAV", "WAVEX"):
        size_at = _unknown_size_at(audio)
        if size_at:
            file.close()
            return _File(_Endless(audio, size_at))
    return file


def _unknown_size_at(audio: bytes | Path) -> int:
    """The position of the size field of a WAV that states no samples but has some, such as one from a pipe; else 0."""
    with audio.open("rb") if isinstance(audio, Path) else io.BytesIO(audio) as file:
        end = file.seek(0, io.SEEK_END)
        at = file.seek(len("RIFF....WAVE"))
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                behind = file.read(8)
                # A LIST chunk after it is not sound.
                is_chunk = behind[:4].isalnum() and at + 16 + int.from_bytes(behind[4:], "little") <= end
                return 0 if size or not behind or is_chunk else at + 4
            at = file.seek(at + 8 + size + size % 2)
    return 0


class _Endless(io.RawIOBase):
    """Presents a WAV with the largest size field, so that libsndfile reads it to its end."""

    def __init__(self, audio: bytes | Path, size_at: int) -> None:
        self._file = audio.open("rb") if isinstance(audio, Path) else io.BytesIO(audio)
        self._size_at = size_at

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        first = self._file.tell()
        data = bytearray(self._file.read(len(buffer)))
        for at in range(self._size_at, self._size_at + 4):
            if first <= at < first + len(data):
                data[at - first] = 0xFF
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
