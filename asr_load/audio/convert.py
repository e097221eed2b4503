"""Convert a recording to a clip: decode, mix down, resample, encode."""

from __future__ import annotations

import hashlib
import io
import re
import wave
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pybase64

from asr_load.audio.clip import SHORTEST_S, Clip, Recording, Rules, Skipped, part_id
from asr_load.audio.decoder import HEADER_WORDS, decode_recording
from asr_load.audio.dither_places import dither_places
from asr_load.audio.encode import encode
from asr_load.audio.loudness import cuts, end_of_speech, is_silent

NOT_SCORED = "ignore time segment in scoring"
"""The text of segments that TED-LIUM and other corpora exclude from scoring."""


def convert(recording: Recording, rules: Rules, note: Callable[[str], object] = lambda _: None) -> Iterator[Clip]:
    """Decode, mix down, resample, cut and encode a recording. Raises Skipped before the first clip.

    Yields one clip, or the parts of a long recording, of which the first has the whole text. Calls `note` with each
    note to report about the recording.
    """
    if re.sub(r"[\W_]+", " ", recording.text).strip().lower() == NOT_SCORED:
        raise Skipped("not_scored")
    wav, sample_rate = decode_recording(recording, rules, note)
    pcm = wav[HEADER_WORDS:]
    duration_s = len(pcm) / sample_rate
    if rules.max_duration is not None and duration_s > rules.max_duration:
        raise Skipped("too_long")
    if duration_s < max(rules.min_duration, SHORTEST_S):
        raise Skipped("too_short")
    if is_silent(pcm):
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
        if last - first >= SHORTEST_S * sample_rate and not is_silent(pcm[first:last])
    ]
    for number, (first, last) in enumerate(spoken):
        wav = np.concatenate((np.zeros(HEADER_WORDS, "<i2"), pcm[first:last]))
        id = part_id(recording.id, number, len(spoken))
        yield _clip(id, recording.text if number == 0 else "", wav, sample_rate, rules)


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


def _header(frames: int, sample_rate: int) -> bytes:
    header = io.BytesIO()
    file = wave.open(header, "wb")  # noqa: SIM115 (closing it would correct the header for the missing frames)
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(sample_rate)
    file.setnframes(frames)
    file.writeframesraw(b"")
    return header.getvalue()
