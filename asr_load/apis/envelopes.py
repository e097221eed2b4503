"""Remove the envelope that some models put around a transcript, before scoring. No I/O.

An envelope is removed only if the text begins with it. One that a model repeats for each segment is then removed
everywhere. The formats are those of the models' cards and engines. ENVELOPES declares each.
"""

from __future__ import annotations

import re
from collections.abc import Callable
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
    for name, envelope in ENVELOPES.items():
        if text_format in ("auto", name) and (found := envelope.remove(raw)) is not None:
            text, start = found
            return Unwrapped(text, name, start)
    return Unwrapped(raw, "raw", 0)


def _qwen(raw: str) -> tuple[str, int] | None:
    """Remove the envelope of Qwen3-ASR, which is `language None` without speech."""
    first = _QWEN.match(raw)
    if first is None:
        return None
    start = first.end()
    parts = _QWEN.split(raw)  # the text before the first, then each language and the text after it
    spoken = [text.strip() for language, text in zip(parts[1::2], parts[2::2], strict=True) if language != "None"]
    return " ".join(filter(None, spoken)), start


def _glm(raw: str) -> tuple[str, int] | None:
    """Remove the envelope of GLM-ASR; returns the text and where it starts, or None without an envelope."""
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
    """Remove the tags of MOSS-Transcribe-Diarize; returns the text and where it starts, or None without tags."""
    if _MOSS_BEGINS.match(raw) is None:
        return None
    text = " ".join(filter(None, map(str.strip, _MOSS.split(raw))))
    at = 0
    while tag := _MOSS.match(raw, at):
        at = tag.end()
    return text, at


def _think(raw: str) -> tuple[str, int] | None:
    """Of reasoning models: `<think>The user wants …</think>Hello`. Without an end tag, everything is reasoning."""
    thought = _THINK.match(raw)
    return None if thought is None else (raw[thought.end() :].strip(), thought.end())


def _tags(raw: str) -> tuple[str, int] | None:
    """Special tokens that an engine does not remove (SenseVoice, Whisper)."""
    at = 0
    while tag := _TAG.match(raw, at):
        at = tag.end()
    return (" ".join(filter(None, map(str.strip, _TAG.split(raw)))), at) if at else None


class Envelope(NamedTuple):
    """An envelope that some models put around a transcript."""

    remove: Callable[[str], tuple[str, int] | None]
    """Takes the raw text. Returns the transcript and its start in the raw text; None if that does not begin with the
    envelope."""
    example: str
    """Markdown for docs/options.md."""


ENVELOPES = {
    "qwen-asr": Envelope(_qwen, "`language English<asr_text>Hello`, in each segment."),
    "glm": Envelope(_glm, "`The transcription of the audio is 'Hello'.`"),
    "moss": Envelope(_moss, "`[0.00][S01]Hello[1.20]`."),
    "think": Envelope(_think, "a block of reasoning before the transcript."),
    "tags": Envelope(_tags, "`<|en|><|NEUTRAL|>Hello`."),
}
"""By name; `unwrap` tries them in this order."""

TEXT_FORMATS = ("auto", "raw", *ENVELOPES)
"""Values of --text-format."""
