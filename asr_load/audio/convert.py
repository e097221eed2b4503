"""Convert a recording to a clip: decode, mix down, resample, encode."""

from __future__ import annotations

import hashlib
import io
import re
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pybase64
import soundfile
import soxr

from asr_load.audio.clip import CHANNELS_CANCEL, Clip, Recording, Rules, Skipped, is_file
from asr_load.audio.cut import cuts, part_id
from asr_load.audio.dither import DITHER_EVERY_S, DITHER_FIRST, DITHER_STEP, DITHERED
from asr_load.audio.encode import encode

NOT_SCORED = "ignore time segment in scoring"
"""The text of segments that TED-LIUM and other corpora exclude from scoring."""

SILENCE = 2.0**-10
"""Half the peak-to-peak amplitude below which a recording is silent: -60 dBFS (full scale is 1.0)."""

SHORTEST_S = 0.01
"""Minimum length of a clip, in seconds."""

LONGEST_FRAMES = (2**31 - 1) // 4 * 3 // 2 - 22
"""Maximum samples of a clip, fourteen hours at 16 kHz: the base64 of more does not fit into an Arrow string column. It
also limits recordings that are cut into parts, because a small FLAC file can hold days of silence."""

LOWEST_RATE, HIGHEST_RATE = 4000, 384_000
"""Range of plausible sample rates in Hz; others indicate a broken header."""

CANCELLED = 0.1
"""Channels cancel each other if their mean has less than this share of the loudest channel's energy."""

BLOCK_FRAMES, UNKNOWN_FRAMES = 1 << 20, 1 << 40
"""Frames to read at once; and the frame count from which libsndfile does not know a file's length."""

CUT_S = 0.1
"""Tolerance, in seconds, between the length of a file and that of the segment it was cut from."""

FRAME_S, QUIET = 0.020, 0.02
"""Speech ends with the last frame of FRAME_S seconds that has at least the share QUIET of the loudest frame's
amplitude."""

HEADER_WORDS = 22
"""Length of a WAV header in 16-bit words (44 bytes)."""


def convert(recording: Recording, rules: Rules, note: Callable[[str], object] = lambda _: None) -> Iterator[Clip]:
    """Decode, mix down, resample, cut and encode a recording. Raises Skipped before the first clip.

    Yields one clip, or the parts of a long recording, of which the first has the whole text. Calls `note` with each
    note to report about the recording.
    """
    if re.sub(r"[\W_]+", " ", recording.text).strip().lower() == NOT_SCORED:
        raise Skipped("not_scored")
    wav, sample_rate = _decode(recording, rules, note)
    pcm = wav[HEADER_WORDS:]
    duration_s = len(pcm) / sample_rate
    if len(pcm) > LONGEST_FRAMES or (rules.max_duration is not None and duration_s > rules.max_duration):
        raise Skipped("too_long")
    if duration_s < max(rules.min_duration, SHORTEST_S):
        raise Skipped("too_short")
    if _is_silent(pcm):
        raise Skipped("silent")
    if rules.chunk_long is not None and duration_s > rules.chunk_long:
        return _parts(recording, pcm, sample_rate, rules)
    return iter([_clip(recording.id, recording.text, wav, sample_rate, rules)])


def _parts(recording: Recording, pcm: np.ndarray, sample_rate: int, rules: Rules) -> Iterator[Clip]:
    assert rules.chunk_long is not None
    spoken = [
        (first, last)
        for first, last in pairwise([0, *cuts(pcm, sample_rate, rules.chunk_long)])
        # Do not send silence between utterances.
        if last - first >= SHORTEST_S * sample_rate and not _is_silent(pcm[first:last])
    ]
    for number, (first, last) in enumerate(spoken):
        wav = np.concatenate((np.zeros(HEADER_WORDS, "<i2"), pcm[first:last]))
        id = part_id(recording.id, number, len(spoken))
        yield _clip(id, recording.text if number == 0 else "", wav, sample_rate, rules)


def _is_silent(pcm: np.ndarray) -> bool:
    # Peak to peak, so that a constant offset counts as silence too. Widened first: the span can exceed 16 bits.
    return (int(pcm.max()) - int(pcm.min())) / 2 < SILENCE * 32768


def _clip(id: str, text: str, wav: np.ndarray, sample_rate: int, rules: Rules) -> Clip:
    """Make a clip of the 16-bit samples in `wav`, shape (HEADER_WORDS + n,); its first words become the WAV header."""
    pcm = wav[HEADER_WORDS:]
    wav[:HEADER_WORDS] = np.frombuffer(_header(len(pcm), sample_rate), dtype="<i2")
    audio = wav.data.cast("B") if rules.audio_format == "wav" else encode(pcm, sample_rate, rules.audio_format)
    return Clip(
        id=id,
        text=text,
        duration_s=round(len(pcm) / sample_rate, 6),
        sample_rate=sample_rate,
        sha256=hashlib.sha256(audio).hexdigest(),
        dither_at=dither_places(pcm, sample_rate),
        speech_end_s=round(end_of_speech(pcm, sample_rate), 6),
        audio_b64=pybase64.b64encode(audio),
    )


def end_of_speech(pcm: np.ndarray, sample_rate: int) -> float:
    """The end of the last frame that is not quiet compared with the loudest one, in seconds. `pcm` has shape (n,),
    n > 0."""
    frame = max(round(FRAME_S * sample_rate), 1)
    block = BLOCK_FRAMES // frame * frame
    energies = np.concatenate([_energies(pcm[first : first + block], frame) for first in range(0, len(pcm), block)])
    heard = np.flatnonzero(energies > QUIET**2 * energies.max())
    return min((int(heard[-1]) + 1) * frame if len(heard) else len(pcm), len(pcm)) / sample_rate


def _energies(pcm: np.ndarray, frame: int) -> np.ndarray:
    """The mean squares of frames of `frame` samples; the last frame may be shorter."""
    starts = np.arange(0, len(pcm), frame)
    means: np.ndarray = np.add.reduceat(np.square(pcm, dtype=np.float64), starts) / np.diff([*starts, len(pcm)])
    return means


def dither_places(pcm: np.ndarray, sample_rate: int) -> list[int]:
    """The start of the loudest run of DITHERED samples in each second, among the places that base64 allows. A last
    second that is too short has no place, unless it is the only second."""
    places = []
    window = round(DITHER_EVERY_S * sample_rate)
    for begin in range(0, len(pcm), window):
        first = begin + (DITHER_FIRST - begin) % DITHER_STEP
        piece = pcm[first : begin + window].astype(np.int64)
        if len(piece) >= DITHERED:
            sums = np.concatenate(([0], np.cumsum(piece * piece)))
            energies = sums[DITHERED:] - sums[:-DITHERED]
            places.append(first + int(np.argmax(energies[::DITHER_STEP])) * DITHER_STEP)
    return places or [DITHER_FIRST]


def _decode(recording: Recording, rules: Rules, note: Callable[[str], object]) -> tuple[np.ndarray, int]:
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
        size_at = _unsaid_size(audio)
        if size_at:
            file.close()
            return _File(_Endless(audio, size_at))
    return file


def _unsaid_size(audio: bytes | Path) -> int:
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


def _header(frames: int, sample_rate: int) -> bytes:
    header = io.BytesIO()
    file = wave.open(header, "wb")  # noqa: SIM115 (closing it would correct the header for the missing frames)
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(sample_rate)
    file.setnframes(frames)
    file.writeframesraw(b"")
    return header.getvalue()
