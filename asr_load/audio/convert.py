"""From a recording to a clip: decode, mix down, resample, encode."""

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
from asr_load.audio.encode import encode
from asr_load.audio.payload import DITHER_EVERY_S, DITHER_FIRST, DITHER_STEP, DITHERED

NOT_SCORED = "ignore time segment in scoring"
"""The text of segments that TED-LIUM and others leave out of their scores."""

SILENCE = 2.0**-10
"""Half the peak-to-peak amplitude below which a recording is silent: -60 dBFS (full scale is 1.0)."""

SHORTEST_S = 0.01
"""Length of the shortest clip that is kept, in seconds."""

LONGEST_FRAMES = (2**31 - 1) // 4 * 3 // 2 - 22
"""More than that in base64 does not fit into a column of Arrow's strings: fourteen hours at 16 kHz. Nor is more of a
recording read that is cut into parts: FLAC of days of silence is a small file."""

LOWEST_RATE, HIGHEST_RATE = 4000, 384_000
"""Sample rates in Hz that speech is recorded with; another one is a broken header."""

CANCELLED = 0.1
"""Share of the louder channel's energy below which the mean of all channels is what is left of opposite phases."""

BLOCK_FRAMES, UNKNOWN_FRAMES = 1 << 20, 1 << 40
"""Read at once; and beyond the second, libsndfile does not know how long a file is."""

CUT_S = 0.1
"""By which a file may differ in length from the part of a recording that was cut into it."""

FRAME_S, QUIET = 0.020, 0.02
"""Speech has ended with the last stretch of so many seconds whose amplitude is this share of the loudest one's."""

HEADER_WORDS = 22
"""The 44 bytes of a WAV's header, in 16-bit words."""


def convert(recording: Recording, rules: Rules, note: Callable[[str], object] = lambda _: None) -> Iterator[Clip]:
    """Decode, mix down, resample, cut and encode a recording: one clip or, one after the other, its parts, of which the
    first has the text of all; `note` is called with what is to be said of it. Raises Skipped, before any."""
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
        # Silence between speeches is nothing to send.
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
    """A clip from 16-bit samples in `wav`, shape (HEADER_WORDS + n,), whose first words become the WAV header."""
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
    """Of samples of shape (n,), n > 0: the second at which the last stretch ends that is not quiet beside the loudest
    one."""
    frame = max(round(FRAME_S * sample_rate), 1)
    block = BLOCK_FRAMES // frame * frame
    energies = np.concatenate([_energies(pcm[first : first + block], frame) for first in range(0, len(pcm), block)])
    heard = np.flatnonzero(energies > QUIET**2 * energies.max())
    return min((int(heard[-1]) + 1) * frame if len(heard) else len(pcm), len(pcm)) / sample_rate


def _energies(pcm: np.ndarray, frame: int) -> np.ndarray:
    """The mean squares of stretches of so many samples, the last of which may be shorter."""
    starts = np.arange(0, len(pcm), frame)
    means: np.ndarray = np.add.reduceat(np.square(pcm, dtype=np.float64), starts) / np.diff([*starts, len(pcm)])
    return means


def dither_places(pcm: np.ndarray, sample_rate: int) -> list[int]:
    """Where in each second the DITHERED samples in a row begin that hold the most energy, of the places that base64
    allows for. A last second that is too short for them has no place, unless it is the only one."""
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
    """Samples as little-endian int16, mono, behind room for a WAV's header: shape (HEADER_WORDS + n,), n > 0; and their
    rate in Hz. Raises Skipped."""
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
        # Too little memory is what a broken header that claims a month of audio ends in.
        raise Skipped("undecodable") from error
    if len(wav) == HEADER_WORDS:
        raise Skipped("empty")
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


class _Mix:
    """One channel out of many: the mean, or the one that is named."""

    def __init__(self, channel: int | None = None) -> None:
        self._channel = channel
        self._energies: np.ndarray = np.zeros(1)
        self._of_mean = 0.0

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Shape (n, channels) to (n,)."""
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
        """Whether the mean is what is left of opposite phases. A voice on one side alone has a quarter of its energy in
        it."""
        return self._of_mean < CANCELLED * float(self._energies[self.loudest])


def _read(audio: bytes | Path, recording: Recording, rules: Rules, mix: _Mix) -> tuple[np.ndarray, int]:
    """What _decode returns, n >= 0: a block after the other, as an hour in float32 is a gigabyte."""
    with _open(audio) as file:
        rate = file.samplerate
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise Skipped("undecodable")
        frames = _frames(file, recording, rules)
        # 16-bit mono is taken as it is, to its place: the copies would cost a tenth of the decoding.
        if file.subtype == "PCM_16" and file.channels == 1 and rules.sample_rate in (None, rate) and file.known:
            wav = np.empty(HEADER_WORDS + frames, dtype="<i2")
            return wav[: HEADER_WORDS + len(file.read(frames, out=wav[HEADER_WORDS:]))], rate
        to = rules.sample_rate or rate
        resample = soxr.ResampleStream(rate, to, 1, dtype="float32").resample_chunk if to != rate else None
        parts = [np.zeros(HEADER_WORDS, dtype="<i2")]
        last = False
        while not last:
            # All else goes through float32, which holds 24 bits exactly.
            block = file.read(min(BLOCK_FRAMES, frames), dtype="float32", always_2d=True)
            if not np.isfinite(block).all():
                raise Skipped("undecodable")
            frames -= len(block)
            # A file that does not know its length has its end where it gives no more.
            last = not frames or not len(block)
            samples = mix(block)
            if resample is not None:
                samples = resample(samples, last=last)
            parts.append(np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2"))
    return np.concatenate(parts), to


def _frames(file: _File, recording: Recording, rules: Rules) -> int:
    """How many frames to read at most, from where the file is set to. Raises Skipped."""
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
    # One second past the limit is enough to know that it is too long: a day of audio must not fill memory.
    longest_s = LONGEST_FRAMES / (rules.sample_rate or rate)
    limits = [int((min(longest_s, rules.max_duration or longest_s) + 1) * rate)]
    if recording.length_s is not None:
        limits.append(round(recording.length_s * rate))
    if file.known:
        limits.append(file.frames - first)
    return min(limits)


def _is_segment(file_s: float, recording: Recording) -> bool:
    """Whether a file of so many seconds is the recording's part already, and not what the part is to be cut out of: it
    is as long as the part, which would end behind the file's end. Tables keep the times of the original so."""
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
    """Where a WAV says that it has no samples though it has some, as one from a pipe does; 0 where it does not."""
    with audio.open("rb") if isinstance(audio, Path) else io.BytesIO(audio) as file:
        end = file.seek(0, io.SEEK_END)
        at = file.seek(len("RIFF....WAVE"))
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                behind = file.read(8)
                # A LIST behind it is no sound.
                is_chunk = behind[:4].isalnum() and at + 16 + int.from_bytes(behind[4:], "little") <= end
                return 0 if size or not behind or is_chunk else at + 4
            at = file.seek(at + 8 + size + size % 2)
    return 0


class _Endless(io.RawIOBase):
    """A WAV that says to have more samples than there are: libsndfile reads it to its end."""

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
    file = wave.open(header, "wb")  # noqa: SIM115 (closing it would mend the header for the frames that it lacks)
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(sample_rate)
    file.setnframes(frames)
    file.writeframesraw(b"")
    return header.getvalue()
