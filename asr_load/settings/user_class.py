"""Options that a user class sets for itself in a locustfile."""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import msgspec
from locust.argument_parser import LocustArgumentParser

from asr_load.errors import InputError
from asr_load.options.form import parse_value
from asr_load.options.parser import add_options
from asr_load.options.table import PER_USER_CLASS


def for_class(options: Namespace, name: str, own: Mapping[str, Any]) -> Namespace:
    """The options of a test for the users of one class. Raises InputError."""
    read = copy.copy(options)
    if "api" in own:
        read.endpoint = ""  # the path of another API
    add_options(parser := LocustArgumentParser())
    keys = [option.dest for option in PER_USER_CLASS]
    actions = {action.dest: action for action in parser._actions if action.dest in keys}
    for option, value in own.items():
        if option not in actions:
            raise InputError(f"{name}.options: a user class cannot set {option!r}; it can set {', '.join(keys)}")
        word = msgspec.json.encode(value).decode() if isinstance(value, Mapping) else str(value)
        try:
            setattr(read, option, parse_value(actions[option], [word]))
        except InputError as error:
            raise InputError(f"{name}.options: {error}") from None
    return read
