"""Presets: how to ask each family of models for a transcript, by the model's name.

The values come from the models' cards, the engines' adapters and the Open ASR Leaderboard's scripts, as of November
2026."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

LANGUAGE = "{language}"
"""Placeholder in a prompt for the English name of the language."""


@dataclass(frozen=True)
class Preset:
    """How to ask a model for a transcript. Options that the user sets override the preset."""

    models: str
    """Regular expression that matches the names of its models, in upper or lower case."""
    api: str = "chat"
    prompt: str = ""
    prompt_for_language: str = ""
    """Prompt with --language; if empty, chat requests to this model cannot name a language."""
    prompt_position: str = "after"
    text_format: str = "auto"
    extra_body: dict[str, Any] = field(default_factory=dict)
    longest_s: float | None = None
    """Longest clip that the model accepts, in seconds."""


_GEMMA_4 = (
    "\n* Only output the transcription, with no newlines.\n* When transcribing numbers, write the digits, i.e. write"
    " 1.7 and not one point seven, and write 3 instead of three."
)
_FOLLOW = " Follow these specific instructions for formatting the answer:"

PRESETS = {
    # The model takes text next to the audio as context, not as an instruction.
    "qwen3-asr": Preset(r"qwen3-asr", text_format="qwen-asr"),
    "qwen-omni": Preset(
        r"qwen(2\.5|3)-omni",
        prompt="Transcribe this audio.",
        prompt_for_language=f"Transcribe this audio into {LANGUAGE}.",
        extra_body={"modalities": ["text"]},  # otherwise it also generates speech
    ),
    "minicpm-o": Preset(
        r"minicpm-o",
        prompt="Please listen to the audio snippet carefully and transcribe the content.",
        prompt_for_language=(
            f"Please listen to the audio snippet carefully and transcribe the content. It is in {LANGUAGE}."
        ),
        prompt_position="before",
    ),
    "gemma-3n": Preset(
        r"gemma-?3n",
        prompt="Transcribe this audio:",
        prompt_for_language=f"Transcribe this audio into {LANGUAGE}:",
        longest_s=30,
    ),
    "gemma-4": Preset(
        r"gemma-?4",
        prompt=f"Transcribe the following speech segment in its original language.{_FOLLOW}{_GEMMA_4}",
        prompt_for_language=(
            f"Transcribe the following speech segment in {LANGUAGE} into {LANGUAGE} text.{_FOLLOW}{_GEMMA_4}"
        ),
        longest_s=30,
    ),
    "phi-4": Preset(r"phi-4-multimodal", prompt="Transcribe the audio clip into text."),
    "granite": Preset(
        r"granite.*speech",
        prompt="can you transcribe the speech into a written format?",
        prompt_for_language=f"can you transcribe the {LANGUAGE} speech into a written format?",
    ),
    "glm-asr": Preset(r"glm-asr", prompt="Transcribe the audio.", text_format="glm"),
    "moss": Preset(r"moss-transcribe", text_format="moss"),  # the engine adds the prompt
    "voxtral": Preset(r"voxtral", api="transcriptions"),
    "whisper": Preset(r"whisper", api="transcriptions"),
    "parakeet": Preset(r"parakeet|nemotron.*asr|canary", api="transcriptions"),
    "kimi-audio": Preset(r"kimi-audio", api="transcriptions"),
    "fun-asr": Preset(r"fun-asr|firered|cohere.*transcribe", api="transcriptions"),
}

PRESET_NAMES = ("auto", "none", *PRESETS)


def preset_for(name: str, model: str) -> tuple[str, Preset] | None:
    """The preset with a name in PRESET_NAMES; for auto, the one that matches the model, if any."""
    if name in PRESETS:
        return name, PRESETS[name]
    if name == "none":
        return None
    return next(
        ((known, preset) for known, preset in PRESETS.items() if re.search(preset.models, model, re.IGNORECASE)), None
    )
