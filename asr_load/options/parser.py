"""The harness's options as arguments of Locust's parser."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from locust.argument_parser import LocustArgumentParser

from asr_load.options.option import Option, Values
from asr_load.options.table import GROUPS

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
    match option.values:
        case Values.FLAG:
            return {"action": "store_true"}
        case Values.REPEATED:
            values = {"action": "append"}
        case Values.SEVERAL:
            values = {"nargs": "+"}
        case Values.ONE:
            values = {}
    choices = {"choices": option.choices} if option.choices else {}
    return {"default": option.default, "type": option.type, "metavar": option.metavar, **choices, **values}
