"""Options that a user class sets for itself in a locustfile."""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import msgspec
from locust.argument_parser import LocustArgumentParser

from asr_load.errors import InputError
from asr_load.options.form import convert_words
from asr_load.options.parser import add_options

OF_A_CLASS = (
    "data", "api", "endpoint", "model", "preset", "prompt", "prompt_position", "system", "language", "temperature",
    "max_tokens", "unique", "text_format", "extra_body", "omit", "realtime_dialect", "packet_ms", "pace",
    "trailing_silence", "turn_detection", "utterances_per_session",
)  # fmt: skip


def for_class(options: Namespace, name: str, own: Mapping[str, Any]) -> Namespace:
    """The options of a test for the users of one class. Raises InputError."""
    read = copy.copy(options)
    if "api" in own:
        read.endpoint = ""  # the path of another API
    add_options(parser := LocustArgumentParser())
    actions = {action.dest: action for action in parser._actions}
    for option, value in own.items():
        if option not in OF_A_CLASS:
            known = ", ".join(OF_A_CLASS)
            raise InputError(f"{name}.options: a user class cannot set {option!r}; it can set {known}")
        word = msgspec.json.encode(value).decode() if isinstance(value, Mapping) else str(value)
        try:
            setattr(read, option, convert_words(actions[option], [word]))
        except InputError as error:
            raise InputError(f"{name}.options: {error}") from None
    return read
