"""Remove the envelope that some models put around a transcript, before scoring. No I/O.

An envelope is removed only if the text begins with it. One that a model repeats for each segment is then removed
everywhere. The formats are those of the models' cards and engines:

- qwen-asr: `language English<asr_text>Hello`, for each segment; `language None` without speech (Qwen3-ASR).
- glm: `The transcription of the audio is 'Hello'.` (GLM-ASR).
- moss: `[0.00][S01]Hello[1.20]` (MOSS-Transcribe-Diarize).
- think: `<think>The user wants …</think>Hello`, from reasoning models; without an end tag, everything is reasoning.
- tags: `<|en|><|NEUTRAL|>Hello<|2.40|>`, special tokens that an engine does not remove (SenseVoice, Whisper).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_QWEN = re.compile(r"(?:\A\s*|\s*)language\s+([A-Za-z]+(?:[ -][A-Za-z]+)*)\s*<asr_text>\s*")
_GLM = re.compile(r"\A\s*The transcription of the audio is:?\s*(['\"\u2018\u201c])\s*", re.IGNORECASE)
_GLM_ENDS = {"'": "'", '"': '"', "\u2018": "\u2019", "\u201c": "\u201d"}
_MOSS = re.compile(r"\s*(?:\[\d+(?:\.\d+)?\]|\[S\d+\])\s*")
_THINK = re.compile(r"\A\s*<think>.*?(?:</think>\s*|\Z)", re.DOTALL)
_TAG = re.compile(r"\s*<\|[^|<>]*\|>\s*")
_MOSS_BEGINS = re.compile(r"\A\s*\[\d+(?:\.\d+)?\]\s*\[S\d+\]")


class Unwrapped(NamedTuple):
    """A transcript without its envelope."""

    text: str
    format: str
    """The envelope's name; raw without one."""
    start: int
    """Position of its first character in the raw text."""


def unwrap(raw: str, text_format: str = "auto") -> Unwrapped:
    """Remove the envelope that `text_format` (one of TEXT_FORMATS) names; auto: the one with which the text begins."""
    for name, take in ENVELOPES.items():
        if text_format in ("auto", name) and (taken := take(raw)) is not None:
            text, start = taken
            return Unwrapped(text, name, start)
    return Unwrapped(raw, "raw", 0)


def _qwen(raw: str) -> tuple[str, int] | None:
    first = _QWEN.match(raw)
    if first is None:
        return None
    start = first.end()
    parts = _QWEN.split(raw)  # the text before the first, then each language and the text after it
    spoken = [text.strip() for language, text in zip(parts[1::2], parts[2::2], strict=True) if language != "None"]
    return " ".join(filter(None, spoken)), start


def _glm(raw: str) -> tuple[str, int] | None:
    first = _GLM.match(raw)
    if first is None:
        return None
    text = raw[first.end() :].rstrip()
    end = _GLM_ENDS[first[1]]
    for ending in (f"{end}.", f".{end}", end):
        if text.endswith(ending):
            text = text.removesuffix(ending) + ("." if ending[0] == "." else "")
            break
    return text, first.end()


def _moss(raw: str) -> tuple[str, int] | None:
    if _MOSS_BEGINS.match(raw) is None:
        return None
    text = " ".join(filter(None, map(str.strip, _MOSS.split(raw))))
    at = 0
    while tag := _MOSS.match(raw, at):
        at = tag.end()
    return text, at


def _think(raw: str) -> tuple[str, int] | None:
    thought = _THINK.match(raw)
    return None if thought is None else (raw[thought.end() :].strip(), thought.end())


def _tags(raw: str) -> tuple[str, int] | None:
    at = 0
    while tag := _TAG.match(raw, at):
        at = tag.end()
    return (" ".join(filter(None, map(str.strip, _TAG.split(raw)))), at) if at else None


ENVELOPES = {"qwen-asr": _qwen, "glm": _glm, "moss": _moss, "think": _think, "tags": _tags}
"""For each envelope, a function that removes it. It returns the transcript and its start in the raw text, or None if
the text does not begin with the envelope."""

TEXT_FORMATS = ("auto", "raw", *ENVELOPES)
"""Values of --text-format."""
