"""List asr-load's options: `locust --help` does not show them, because it exits before reading a locustfile."""

from __future__ import annotations

import importlib
import signal
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Iterator

from locust import events
from locust.argument_parser import LocustArgumentParser

from asr_load.errors import OneLineParser
from asr_load.options.explanations import EXPLANATIONS
from asr_load.options.parser import GROUPS

HOMES = ("lifecycle", "shapes", "capacity_shape")
"""The modules that add options on import, in the order of the page."""

INTRODUCTION = """asr-load adds these options to Locust's (`locust --help`). `asr-load options` prints them, and
    `asr-load options --markdown` prints this page. You can also set them in `locust.conf`, without the dashes."""

LONGEST_VALUE = 80
"""The page lists choices longer than this after the help text instead of after the option's name."""


def make_parser() -> LocustArgumentParser:
    """A parser with only asr-load's options, including those of its locustfiles."""
    for module in HOMES:
        importlib.import_module(f"asr_load.load.{module}")
    parser = LocustArgumentParser(add_help=False, prog="locust", usage=SUPPRESS)
    events.init_command_line_parser.fire(parser=parser)
    return parser


def options_by_group(parser: LocustArgumentParser) -> dict[str, list[Action]]:
    """The options of a parser, in the groups and the order of GROUPS."""
    groups = {group.title: group._group_actions for group in parser._action_groups}
    return {title: groups[title] for title in GROUPS}


def default_of(action: Action) -> str:
    """An option's default as typed on the command line; empty without one."""
    empty = action.default in (None, "", [], False) or action.default == SUPPRESS
    return "" if empty else str(action.default)


def markdown(parser: LocustArgumentParser) -> str:
    """The text of docs/options.md."""
    return "\n".join(_lines(parser)) + "\n"


def _lines(parser: LocustArgumentParser) -> Iterator[str]:
    yield "# Options"
    yield ""
    yield from _wrapped(INTRODUCTION)
    for title, actions in options_by_group(parser).items():
        yield ""
        yield f"## {title}: {GROUPS[title]}"
        yield ""
        for action in actions:
            yield from _entry(action)


def _entry(action: Action) -> list[str]:
    value, more = _value(action), EXPLANATIONS.get(action.option_strings[0], "")
    if len(value) > LONGEST_VALUE:
        more = f"One of `{value.replace('|', '`, `')}`. {more}"
        value = action.dest.upper()
    name = " ".join(filter(None, (", ".join(action.option_strings), value)))
    default = f" (default: `{default_of(action)}`)" if default_of(action) else ""
    return _wrapped(f"- **`{name}`**{default}: {action.help}. {more}", "  ")


def _wrapped(text: str, indent: str = "") -> list[str]:
    words = " ".join(text.split())
    return textwrap.wrap(words, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _value(action: Action) -> str:
    if action.nargs == 0:
        return ""
    choices = "|".join(map(str, action.choices)) if action.choices else ""
    return choices or str(action.metavar or action.dest.upper())


def main() -> int:
    """Command line of asr-load options."""
    arguments = OneLineParser("List the options that asr-load adds to Locust's.")
    arguments.add_argument("--markdown", action="store_true", help="print the page docs/options.md")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # so that `| head` is not an error
    as_page = arguments.parse_args().markdown
    parser = make_parser()
    if as_page:
        print(markdown(parser), end="")
        return 0
    for title, actions in options_by_group(parser).items():
        print(f"\n{title}: {GROUPS[title]}")
        for action in actions:
            value = "" if action.nargs == 0 else f" {_value(action)}"
            default = f" (default: {default_of(action)})" if default_of(action) else ""
            print(f"  {', '.join(action.option_strings)}{value}\n      {action.help}{default}")
    return 0
