"""The harness's options as arguments of Locust's parser, and single values from a form or a user class."""

from __future__ import annotations

import argparse
import copy
import re
from argparse import Action, Namespace
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import msgspec
from locust.argument_parser import LocustArgumentParser

from asr_load.errors import InputError
from asr_load.options.option import Option
from asr_load.options.table import GROUPS, PER_USER_CLASS

LOAD = "Load"
"""The group of the options that the shipped load shapes add."""


def add_options(parser: LocustArgumentParser) -> None:
    """Add the options of every test. All have plain types: Locust sends the values to workers and to pages."""
    for group in GROUPS:
        add_to_group(parser, group.title, group.options)


def add_to_group(parser: LocustArgumentParser, title: str, options: Iterable[Option]) -> None:
    """Add options to the group of this title, which is created if the parser lacks it."""
    present = next((group for group in parser._action_groups if group.title == title), None)
    summary = next(group.summary for group in GROUPS if group.title == title)
    arguments = present or parser.add_argument_group(title, summary)
    for option in options:
        action = arguments.add_argument(option.name, *option.aliases, help=option.help, **_keywords(option))
        # LocustArgumentParser.add_argument sets these, but it cannot add to a group.
        vars(action).update(
            include_in_web_ui=option.in_form, is_secret=option.secret, is_required=False, is_multiple=False
        )


def _keywords(option: Option) -> dict[str, Any]:
    if option.action == "store_true":
        return {"action": option.action}
    optional = {"action": option.action, "nargs": option.nargs, "choices": option.choices}
    given = {name: value for name, value in optional.items() if value}
    return {"default": option.default, "type": option.type, "metavar": option.metavar, **given}


def parse_value(action: Action, words: list[str]) -> Any:
    """Parse the words given for an option, as argparse does on the command line. Raises InputError."""
    if action.nargs == 0:  # a checkbox
        return words[-1] == "true"
    flag = action.option_strings[-1]
    if action.nargs is not None:
        values = re.split(r"[,\s]+", ",".join(words))
        arguments = [flag, *filter(None, values)]
    elif isinstance(action, argparse._AppendAction):
        # Only commas separate repeated values, because headers have spaces.
        values = [word.strip() for word in ",".join(words).split(",")]
        arguments = [f"{flag}={value}" for value in values if value]
    else:
        arguments = [f"{flag}={words[-1].strip()}"]
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser._add_action(copy.copy(action))
    return getattr(parser.parse_args(arguments if arguments != [flag] else []), action.dest)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))


def for_class(options: Namespace, name: str, values: Mapping[str, Any]) -> Namespace:
    """The options of a test for the users of one class. Raises InputError."""
    read = copy.copy(options)
    if "api" in values:
        read.endpoint = ""  # the path of another API
    add_options(parser := LocustArgumentParser())
    keys = [option.dest for option in PER_USER_CLASS]
    actions = {action.dest: action for action in parser._actions if action.dest in keys}
    for option, value in values.items():
        if option not in actions:
            raise InputError(f"{name}.options: a user class cannot set {option!r}; it can set {', '.join(keys)}")
        word = msgspec.json.encode(value).decode() if isinstance(value, Mapping) else str(value)
        try:
            setattr(read, option, parse_value(actions[option], [word]))
        except InputError as error:
            raise InputError(f"{name}.options: {error}") from None
    return read
