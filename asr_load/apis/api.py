"""What an API is: its path, the options that have an effect on its requests, and their bodies.

`json.dumps` of a 30 s clip blocks the event loop, and so every stream of the process, for 3 ms; joining bytes takes a
fiftieth of that. So an API builds the text around the audio once, and inserts the shard's base64 unchanged.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

from asr_load.audio.clip import AUDIO_FORMATS, Clip
from asr_load.audio.dither import Pieces
from asr_load.errors import InputError

MODELS = "/v1/models"
"""Path at which a server lists its models."""


@dataclass(frozen=True)
class RequestFields:
    """The fields of a request other than its audio."""

    model: str
    prompt: str
    """Instruction for the model, or the text before the clip; not sent if empty."""
    max_tokens: int
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields merged into the top level of the body; None removes a field."""
    system: str = ""
    """System message; not sent if empty."""
    temperature: float = 0.0
    prompt_first: bool = False
    """Whether the prompt precedes the audio."""
    language: str = ""
    """Code of the language; not sent if empty."""


class Api:
    """The requests of one API with the same fields and audio format. A subclass is registered in APIS."""

    name: ClassVar[str]
    """Value of --api."""
    path: ClassVar[str]
    """Path of its requests, with /v1."""
    summary: ClassVar[str]
    """What it does with a clip: Markdown that continues its name in docs/options.md."""
    accepts: ClassVar[Collection[str]] = ()
    """Options that have an effect on its requests, of --prompt, --prompt-position, --system, --language, --extra-body
    and --omit."""
    is_instructed: ClassVar[bool] = False
    """Whether the prompt is an instruction, without which a model does not transcribe, and which names the language.
    Otherwise, the prompt is the text before the clip, and the language is a field with its code."""
    token_limits: ClassVar[tuple[str, ...]] = ("max_tokens",)
    """Fields that limit a response's tokens. The first one is sent, and --extra-body can set the others."""
    audio_formats: ClassVar[Collection[str]] = tuple(AUDIO_FORMATS)
    is_websocket: ClassVar[bool] = False
    """Whether clips are sent over WebSocket sessions (realtime/), in which requests have no body."""
    query: ClassVar[str] = ""
    """Query that requests add to a path without one."""
    content_type: str = "application/json"
    """Media type of the body; an instance may have its own, such as one with a boundary."""

    def __init__(self, fields: RequestFields, audio_format: str = "wav") -> None:
        """Raises InputError if clips in `audio_format` cannot be sent, or if `fields.extra` sets a field that the
        measurement depends on."""
        if audio_format not in self.audio_formats:
            raise InputError(
                f"--api {self.name} supports only {' and '.join(self.audio_formats)}, but --data has {audio_format}:"
                f" prepare it with --audio-format {' or '.join(self.audio_formats)}, or use another --api"
            )
        self.fields, self.audio_format = fields, audio_format

    def body(self, clip: Clip, nonce: bytes) -> Pieces:
        """The body for a clip and eight bytes of dither (`audio.dither.dithered`)."""
        raise NotImplementedError

    @property
    def headers(self) -> dict[str, str]:
        """The headers that all requests share."""
        return {
            "Accept": "text/event-stream",
            # A compressed stream would arrive in blocks instead of tokens.
            "Accept-Encoding": "identity",
            "Content-Type": self.content_type,
        }

    @classmethod
    def token_limit(cls, fields: RequestFields) -> int | None:
        """The limit of a response's tokens that requests with these fields set; None without one."""
        sent = {**dict.fromkeys(cls.token_limits[:1], fields.max_tokens), **fields.extra}
        limits = (sent.get(name) for name in cls.token_limits)
        return min((limit for limit in limits if isinstance(limit, int)), default=None)


def merge_extra(body: dict[str, Any], extra: dict[str, Any], fixed: dict[str, str]) -> dict[str, Any]:
    """Merge `extra` into the fields of a body; a value of None removes the field. `fixed`: fields that it must not
    change, each with the reason. Raises InputError."""
    if extra.get("n") not in (None, 1):
        raise InputError(f"--extra-body 'n': {extra['n']}: a request must have exactly one response; remove 'n'")
    for name, value in extra.items():
        if name in fixed:
            refusal = f"{name!r} cannot be removed" if value is None else f"--extra-body cannot set {name!r}"
            raise InputError(f"{refusal}: {fixed[name]}")
        if value is None and name not in body:
            names = ", ".join(known for known in body if known not in fixed)
            raise InputError(f"{name!r} cannot be removed, because this --api does not send it; it can remove {names}")
    return {name: value for name, value in (body | extra).items() if value is not None}


def json_number(value: float) -> float:
    """A number as JSON writes it: a whole one without a decimal point."""
    return int(value) if value.is_integer() else value
