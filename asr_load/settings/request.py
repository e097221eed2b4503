"""The content of requests, from the options and, where they leave it open, the model's preset."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from asr_load.apis import APIS
from asr_load.apis.api import Api, RequestFields
from asr_load.apis.presets import LANGUAGE, Preset, preset_for
from asr_load.decode import Malformed, decode
from asr_load.errors import InputError
from asr_load.languages import language_name, parse_language
from asr_load.options.table import DEFAULT_PROMPT
from asr_load.settings.host import api_of_path


@dataclass(frozen=True)
class RequestSettings:
    """The content of requests, and how to read their responses."""

    api: type[Api]
    fields: RequestFields
    text_format: str
    language: str
    """Language code from --language; empty without it."""
    preset: str
    """Name of the preset; empty without one."""
    longest_s: float | None
    """Longest clip that the model is known to accept, in seconds."""

    def in_format(self, audio_format: str = "wav") -> Api:
        """The requests with clips in one of AUDIO_FORMATS. Raises InputError if the API cannot send them, or if
        --extra-body sets a field that the measurement depends on."""
        return self.api(self.fields, audio_format)

    @property
    def line(self) -> str:
        """Describe the preset; empty without one."""
        if not self.preset:
            return ""
        fields = self.fields
        used = [f"--api {self.api.name}", f"prompt {fields.prompt!r}" if fields.prompt else "no prompt"]
        used += ["before the audio"] if fields.prompt and fields.prompt_first else []
        used += [f"--text-format {self.text_format}"] if self.text_format != "auto" else []
        return f"preset {self.preset} for {fields.model}: {', '.join(used)} (disable it with --preset none)"


def read_request(options: Namespace, model: str, extra: dict[str, Any]) -> RequestSettings:
    """Read the content of requests to a model. `extra`: the parsed --extra-body and --omit. Raises InputError."""
    name, preset = preset_for(options.preset, model) or ("", Preset(""))
    api = _api(options, preset)
    is_prompt_of_preset = name and "--prompt" in api.accepts and api.is_instructed is APIS[preset.api].is_instructed
    usual = preset.prompt if is_prompt_of_preset else DEFAULT_PROMPT if api.is_instructed else ""
    prompt = options.prompt if options.prompt != DEFAULT_PROMPT else usual
    _check_accepted(api, options, prompt)
    language = parse_language(options.language) if options.language.strip() else ""
    if language and api.is_instructed:
        naming = preset.prompt_for_language if prompt == usual else prompt
        if LANGUAGE not in naming:
            raise InputError(
                f"--language {options.language}: the prompt does not contain {LANGUAGE}: use --prompt"
                f" '… {LANGUAGE} …', or --api transcriptions"
            )
        prompt = naming.replace(LANGUAGE, language_name(language))
    elif LANGUAGE in prompt:
        raise InputError(f"--prompt contains {LANGUAGE}, but --language is missing")
    fields = RequestFields(
        model=model,
        prompt=prompt,
        max_tokens=options.max_tokens,
        extra={**(preset.extra_body if "--extra-body" in api.accepts else {}), **extra},
        system=options.system,
        temperature=options.temperature,
        prompt_first=(options.prompt_position or preset.prompt_position) == "before",
        language="" if api.is_instructed else language,
    )
    text_format = options.text_format if options.text_format != "auto" else preset.text_format
    return RequestSettings(api, fields, text_format, language, name, preset.longest_s)


def _api(options: Namespace, preset: Preset) -> type[Api]:
    """The API of --api, else that of the path in --endpoint, else the preset's."""
    if options.api != "auto":
        return APIS[options.api]
    api = APIS[preset.api]
    of_path = api_of_path(options.endpoint.partition("?")[0].rstrip("/"))
    return api if of_path is None or of_path.path == api.path else of_path


def _check_accepted(api: type[Api], options: Namespace, prompt: str) -> None:
    """Raise InputError for an option without an effect on the requests of this API."""
    given = {
        "--prompt": prompt,
        "--system": options.system,
        "--prompt-position": options.prompt_position,
        "--language": options.language.strip(),
        "--extra-body": options.extra_body,
        "--omit": options.omit,
    }
    for option, value in given.items():
        if value and option not in api.accepts:
            raise InputError(f"{option} has no effect with --api {api.name}; remove it")


def parse_extra_body(text: str, omit: str) -> dict[str, Any]:
    """Merge --extra-body and --omit: the fields to set, and None for those to remove. Raises InputError."""
    try:
        extra = decode(text, dict[str, Any]) if text else {}
    except Malformed as error:
        raise InputError(f"--extra-body is not a JSON object: {error}") from error
    for name in filter(None, map(str.strip, omit.split(","))):
        if extra.get(name) is not None:
            raise InputError(f"--omit removes {name!r}, but --extra-body sets it; use only one of them")
        extra[name] = None
    return extra
