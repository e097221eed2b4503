"""The content of requests: by the model's preset, and by options, which take precedence."""

from __future__ import annotations

import re
from typing import Any

import pytest

from asr_load.apis.presets import LANGUAGE
from asr_load.errors import InputError
from asr_load.languages import language_name
from asr_load.options.table import DEFAULT_PROMPT
from harness.options import request


def test_options_take_precedence_over_the_preset() -> None:
    given = {"prompt": "Write it down.", "prompt_position": "after", "api": "chat-input-audio", "text_format": "raw"}
    found = request("openbmb/MiniCPM-o-2_6", {"top_p": 0.9}, system="Be brief.", temperature=0.2, **given)
    fields = found.fields
    assert (fields.prompt, fields.prompt_first, found.api.name, found.text_format) == (
        "Write it down.", False, "chat-input-audio", "raw",
    )  # fmt: skip
    assert (fields.system, fields.temperature, fields.extra) == ("Be brief.", 0.2, {"top_p": 0.9})
    assert request("Qwen/Qwen3-Omni", {"modalities": None}).fields.extra == {"modalities": None}
    assert request("Qwen/Qwen3-ASR", api="chat-input-audio").fields.prompt == ""
    assert request("Qwen/Qwen3-ASR", prompt="names: Ann").fields.prompt == "names: Ann"
    assert request("openai/whisper-1", api="chat").fields.prompt == DEFAULT_PROMPT


def test_transcription_has_no_default_prompt() -> None:
    assert request("any", api="transcriptions").fields.prompt == ""
    assert request("any", api="transcriptions", prompt="names: Ann").fields.prompt == "names: Ann"
    assert request("any").fields.prompt == DEFAULT_PROMPT


def test_language_is_sent_in_the_form_of_the_model() -> None:
    assert request("google/gemma-3n-E4B-it", language="de").fields.prompt == "Transcribe this audio into German:"
    assert request("google/gemma-3n-E4B-it", language="Swabian").fields.prompt == "Transcribe this audio into Swabian:"
    assert request("any", language="de-AT", prompt=f"In {LANGUAGE}:").fields.prompt == "In German:"
    whisper = request("openai/whisper-large-v3", language="de").fields
    assert (whisper.language, whisper.prompt) == ("de", "")
    assert language_name("zh-CN") == "Chinese"


@pytest.mark.parametrize(
    ("model", "options", "line"),
    [
        (
            "Qwen/Qwen3-ASR-1.7B",
            {"language": "de"},
            "--language de: the prompt does not contain {language}",
        ),
        ("any", {"language": "de"}, "--language de: the prompt does not contain {language}"),
        (
            "any",
            {"language": "xx", "prompt": "In {language}"},
            "--language xx: unknown language. Give its name (German)",
        ),
        ("whisper", {"language": "Elvish"}, "--language Elvish: unknown language. Give its name (German)"),
        ("any", {"prompt": "In {language}"}, "--prompt contains {language}, but --language is missing"),
        ("whisper", {"system": "x"}, "--system has no effect with --api transcriptions; remove it"),
        (
            "whisper",
            {"prompt_position": "before"},
            "--prompt-position has no effect with --api transcriptions; remove it",
        ),
        ("any", {"api": "realtime", "prompt": "x"}, "--prompt has no effect with --api realtime; remove it"),
        ("any", {"api": "realtime", "extra_body": "{}"}, "--extra-body has no effect with --api realtime; remove it"),
        ("any", {"api": "realtime", "omit": "n"}, "--omit has no effect with --api realtime; remove it"),
    ],
)
def test_invalid_request_options_are_refused(model: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        request(model, **options)
