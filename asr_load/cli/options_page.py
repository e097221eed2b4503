"""The harness's options, as a page: `locust --help` ends before it has read a locustfile."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from string import Template

from asr_load.errors import OneLineParser
from asr_load.options.option import Option
from asr_load.options.parser import LOAD
from asr_load.options.table import GROUPS, SEARCH_OPTIONS, SHAPE_OPTIONS
from asr_load.results.slo import GOODPUT, OF_VALUES

INTRODUCTION = """asr-load adds these options to Locust's (`locust --help`). `asr-load options` prints them, and
    `asr-load options --markdown` prints this page. You can also set them in `locust.conf`, without the dashes."""

LONGEST_VALUE = 80
"""The page lists choices of more characters than this after the help text, not after the option's name."""


def groups() -> Iterator[tuple[str, tuple[Option, ...]]]:
    """The heading and the options of each group, with those of the load shapes."""
    for group in GROUPS:
        more = (*SHAPE_OPTIONS, *SEARCH_OPTIONS) if group.title == LOAD else ()
        yield f"{group.title}: {group.summary}", (*group.options, *more)


def markdown() -> str:
    """The page docs/options.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Options"
    yield ""
    yield from _wrapped(INTRODUCTION)
    for heading, options in groups():
        yield ""
        yield f"## {heading}"
        yield ""
        for option in options:
            yield from _entry(option)


def _entry(option: Option) -> list[str]:
    value, more = _value(option), explanation(option)
    if len(value) > LONGEST_VALUE:
        more = f"One of `{value.replace('|', '`, `')}`. {more}"
        value = option.dest.upper()
    name = " ".join(filter(None, (_names(option), value)))
    default = f" (default: `{default_of(option)}`)" if default_of(option) else ""
    return _wrapped(f"- **`{name}`**{default}: {option.help}. {more}", "  ")


def explanation(option: Option) -> str:
    """An option's explanation, with the names of the metrics where it lists them."""
    return Template(option.explanation).safe_substitute(slo_metrics=_code(OF_VALUES), goodput_metrics=_code(GOODPUT))


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def default_of(option: Option) -> str:
    """An option's default as a person would type it; empty if it has none."""
    return "" if option.default in (None, "", [], False) else str(option.default)


def _names(option: Option) -> str:
    return ", ".join((option.name, *option.aliases))


def _value(option: Option) -> str:
    if option.action == "store_true":
        return ""
    return "|".join(option.choices) or option.metavar or option.dest.upper()


def _wrapped(text: str, indent: str = "") -> list[str]:
    words = " ".join(text.split())
    return textwrap.wrap(words, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    """Command line of asr-load options."""
    arguments = OneLineParser("List the options that asr-load adds to Locust's.")
    arguments.add_argument("--markdown", action="store_true", help="print the page docs/options.md")
    if arguments.parse_args().markdown:
        print(markdown(), end="")
        return 0
    for heading, options in groups():
        print(f"\n{heading}")
        for option in options:
            value = f" {_value(option)}" if _value(option) else ""
            default = f" (default: {default_of(option)})" if default_of(option) else ""
            print(f"  {_names(option)}{value}\n      {option.help}{default}")
    return 0
