"""The content of requests, from the options and, where they leave it open, the model's preset."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from asr_load.apis.presets import LANGUAGE, Preset, preset_for
from asr_load.audio.payload import APIS, REALTIME, BodyOptions
from asr_load.errors import InputError
from asr_load.languages import language_name, parse_language
from asr_load.options.table import DEFAULT_PROMPT
from asr_load.settings.host_path import api_of_path

TRANSCRIPTIONS = "transcriptions"


@dataclass(frozen=True)
class Asked:
    """The content of requests, and how to read their responses."""

    body: BodyOptions
    text_format: str
    language: str
    """Language code from --language; empty without it."""
    preset: str
    """Name of the preset; empty without one."""
    longest_s: float | None
    """Longest clip that the model is known to accept, in seconds."""

    @property
    def line(self) -> str:
        """Describe the preset; empty without one."""
        if not self.preset:
            return ""
        body = self.body
        said = [f"--api {body.api}", f"prompt {body.prompt!r}" if body.prompt else "no prompt"]
        said += ["before the audio"] if body.prompt and body.prompt_first else []
        said += [f"--text-format {self.text_format}"] if self.text_format != "auto" else []
        return f"preset {self.preset} for {body.model}: {', '.join(said)} (disable it with --preset none)"


def read_request(options: Namespace, model: str, extra: dict[str, Any]) -> Asked:
    """Read the content of requests to a model. `extra`: the parsed --extra-body and --omit. Raises InputError."""
    name, preset = preset_for(options.preset, model) or ("", Preset(""))
    api = options.api
    if api == "auto":
        named = api_of_path(options.endpoint.partition("?")[0].rstrip("/"))
        api = named if named and APIS[named] != APIS[preset.api] else preset.api
    # The prompt of a transcription is the preceding text, not an instruction.
    is_chat = api not in (TRANSCRIPTIONS, REALTIME)
    of_preset = bool(name) and api != REALTIME and is_chat is (preset.api != TRANSCRIPTIONS)
    usual = preset.prompt if of_preset else DEFAULT_PROMPT if is_chat else ""
    prompt = options.prompt if options.prompt != DEFAULT_PROMPT else usual
    language = parse_language(options.language) if options.language.strip() else ""
    if api == REALTIME and prompt:
        raise InputError("--prompt has no effect in realtime sessions; remove it")
    if language and is_chat:
        named = preset.prompt_for_language if prompt == usual else prompt
        if LANGUAGE not in named:
            raise InputError(
                f"--language {options.language}: the prompt does not contain {LANGUAGE}: use --prompt"
                f" '… {LANGUAGE} …', or --api transcriptions"
            )
        prompt = named.replace(LANGUAGE, language_name(language))
    elif LANGUAGE in prompt:
        raise InputError(f"--prompt contains {LANGUAGE}, but --language is missing")
    if options.system and not is_chat:
        raise InputError(f"--system only works in chat requests, not with --api {api}")
    position = options.prompt_position or preset.prompt_position
    if options.prompt_position and not is_chat:
        raise InputError(f"--prompt-position only works in chat requests, not with --api {api}")
    body = BodyOptions(
        api=api,
        model=model,
        prompt=prompt,
        max_tokens=options.max_tokens,
        extra={**({} if api == REALTIME else preset.extra_body), **extra},
        system=options.system,
        temperature=options.temperature,
        prompt_first=position == "before",
        language="" if is_chat else language,
    )
    text_format = options.text_format if options.text_format != "auto" else preset.text_format
    return Asked(body, text_format, language, name, preset.longest_s)
