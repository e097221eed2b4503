"""How a model is prompted: by its preset, and by options, which take precedence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from asr_load.apis.envelopes import TEXT_FORMATS
from asr_load.apis.presets import LANGUAGE, PRESETS, preset_for
from asr_load.errors import InputError
from asr_load.languages import language_name
from asr_load.options.table import DEFAULT_PROMPT
from asr_load.settings.request import Asked, read_request
from conftest import CHECKOUT
from harness.options import parse
from harness.runs import FAST, run
from harness.serving import serve


def asked(model: str, extra: dict[str, Any] | None = None, **options: Any) -> Asked:
    named = parse()
    vars(named).update(options)
    return read_request(named, model, extra or {})


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("Qwen/Qwen3-ASR-1.7B", "qwen3-asr"),
        ("Qwen/Qwen3-Omni-30B-A3B-Instruct", "qwen-omni"),
        ("Qwen/Qwen2.5-Omni-7B", "qwen-omni"),
        ("openbmb/MiniCPM-o-2_6", "minicpm-o"),
        ("google/gemma-3n-E4B-it", "gemma-3n"),
        ("google/gemma-4-E2B-it", "gemma-4"),
        ("microsoft/Phi-4-multimodal-instruct", "phi-4"),
        ("ibm-granite/granite-speech-3.3-8b", "granite"),
        ("zai-org/GLM-ASR-Nano-2512", "glm-asr"),
        ("OpenMOSS/MOSS-Transcribe-Diarize", "moss"),
        ("mistralai/Voxtral-Mini-3B-2507", "voxtral"),
        ("openai/whisper-large-v3-turbo", "whisper"),
        ("nvidia/parakeet-tdt-0.6b-v3", "parakeet"),
        ("moonshotai/Kimi-Audio-7B-Instruct", "kimi-audio"),
        ("FunAudioLLM/Fun-ASR-Nano-2512", "fun-asr"),
        ("my-own-finetune", None),
        ("default", None),
    ],
)
def test_preset_is_found_by_the_models_name(model: str, preset: str | None) -> None:
    found = preset_for("auto", model)
    assert (found and found[0]) == preset
    assert preset_for("none", model) is None


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    preset = PRESETS[name]
    found = asked("any", preset=name)
    assert (found.preset, found.body.api, found.body.prompt) == (name, preset.api, preset.prompt)
    assert LANGUAGE not in preset.prompt
    assert not preset.prompt_for_language or LANGUAGE in preset.prompt_for_language
    assert preset.text_format in TEXT_FORMATS
    assert re.compile(preset.models)
    assert asked("any", preset=name, api="transcriptions").body.api == "transcriptions"


def test_options_take_precedence_over_the_preset() -> None:
    given = {"prompt": "Write it down.", "prompt_position": "after", "api": "chat-input-audio", "text_format": "raw"}
    found = asked("openbmb/MiniCPM-o-2_6", {"top_p": 0.9}, system="Be brief.", temperature=0.2, **given)
    body = found.body
    assert (body.prompt, body.prompt_first, body.api, found.text_format) == (
        "Write it down.", False, "chat-input-audio", "raw",
    )  # fmt: skip
    assert (body.system, body.temperature, body.extra) == ("Be brief.", 0.2, {"top_p": 0.9})
    assert asked("Qwen/Qwen3-Omni", {"modalities": None}).body.extra == {"modalities": None}
    assert asked("Qwen/Qwen3-ASR", api="chat-input-audio").body.prompt == ""
    assert asked("Qwen/Qwen3-ASR", prompt="names: Ann").body.prompt == "names: Ann"
    assert asked("openai/whisper-1", api="chat").body.prompt == DEFAULT_PROMPT


def test_transcription_has_no_default_prompt() -> None:
    assert asked("any", api="transcriptions").body.prompt == ""
    assert asked("any", api="transcriptions", prompt="names: Ann").body.prompt == "names: Ann"
    assert asked("any").body.prompt == DEFAULT_PROMPT


def test_language_is_sent_in_the_form_of_the_model() -> None:
    assert asked("google/gemma-3n-E4B-it", language="de").body.prompt == "Transcribe this audio into German:"
    assert asked("google/gemma-3n-E4B-it", language="Swabian").body.prompt == "Transcribe this audio into Swabian:"
    assert asked("any", language="de-AT", prompt=f"In {LANGUAGE}:").body.prompt == "In German:"
    whisper = asked("openai/whisper-large-v3", language="de").body
    assert (whisper.language, whisper.prompt) == ("de", "")
    assert language_name("zh-CN") == "Chinese"


@pytest.mark.parametrize(
    ("model", "options", "line"),
    [
        ("Qwen/Qwen3-ASR-1.7B", {"language": "de"}, "--language de: the prompt does not contain {language}"),
        ("any", {"language": "de"}, "--language de: the prompt does not contain {language}"),
        (
            "any",
            {"language": "xx", "prompt": "In {language}"},
            "--language xx: unknown language. Give its name (German)",
        ),
        ("whisper", {"language": "Elvish"}, "--language Elvish: unknown language. Give its name (German)"),
        ("any", {"prompt": "In {language}"}, "--prompt contains {language}, but --language is missing"),
        ("whisper", {"system": "x"}, "--system only works in chat requests"),
        ("whisper", {"prompt_position": "before"}, "--prompt-position only works in chat requests"),
    ],
)
def test_invalid_request_options_are_refused(model: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        asked(model, **options)


def test_preset_is_printed_and_recorded(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        words = ("-u", "1", "--requests", "2", "--model", "openbmb/MiniCPM-o-2_6")
        done = run(host, clips, tmp_path / "r", *words, preflight=True)
        without = run(host, clips, tmp_path / "none", *words, "--preset", "none", preflight=True)
    prompt = PRESETS["minicpm-o"].prompt
    line = f"preset minicpm-o for openbmb/MiniCPM-o-2_6: --api chat, prompt '{prompt}', before the audio"
    assert done.err.count(line) == 1
    kept = json.loads((tmp_path / "r" / "run.json").read_text())
    assert (kept["preset"], kept["prompt"], kept["prompt_position"]) == ("minicpm-o", prompt, "before")
    assert "preset minicpm" not in without.err
    assert json.loads((tmp_path / "none" / "run.json").read_text())["prompt"] == DEFAULT_PROMPT


def table_row(name: str) -> str:
    preset = PRESETS[name]
    shown = [f"`{text.splitlines()[0]}`{' …' if len(text.splitlines()) > 1 else ''}" if text else "none" for text in (
        preset.prompt, preset.prompt_for_language.replace(LANGUAGE, "German"))]  # fmt: skip
    told = "the field `language`" if preset.api == "transcriptions" else shown[1]
    more = [
        *(["prompt before the audio"] if preset.prompt_position == "before" else []),
        *([f"`--text-format {preset.text_format}`"] if preset.text_format != "auto" else []),
        *([f"`{json.dumps(preset.extra_body)}`"] if preset.extra_body else []),
        *([f"clips of up to {preset.longest_s:g} s"] if preset.longest_s else []),
    ]
    models = preset.models.replace("|", "\\|")
    return f"| `{name}` | `{models}` | {preset.api} | {shown[0]} | {told} | {', '.join(more)} |"


def test_models_page_lists_all_presets() -> None:
    page = (CHECKOUT / "docs" / "models.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("| `")] == list(map(table_row, PRESETS))
