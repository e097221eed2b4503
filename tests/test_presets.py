"""Presets: how each family of models is prompted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from asr_load.apis.envelopes import TEXT_FORMATS
from asr_load.apis.presets import LANGUAGE, PRESETS, preset_for
from asr_load.options.table import DEFAULT_PROMPT
from conftest import CHECKOUT
from harness.options import request
from harness.runs import FAST, run
from harness.serving import serve


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
    found = request("any", preset=name)
    assert (found.preset, found.api.name, found.fields.prompt) == (name, preset.api, preset.prompt)
    assert LANGUAGE not in preset.prompt
    assert not preset.prompt_for_language or LANGUAGE in preset.prompt_for_language
    assert preset.text_format in TEXT_FORMATS
    assert re.compile(preset.models)
    assert request("any", preset=name, api="transcriptions").api.name == "transcriptions"


@pytest.mark.long
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
