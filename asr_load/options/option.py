"""What an option is: everything that any part of the program knows about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from asr_load.errors import InputError

Check = Callable[[Any], str]
"""Takes an option's value and returns what it must be; an empty string accepts the value."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of the harness. The parser, the checks, the web form, the options of a user class, run.json,
    --resume, comparisons and docs/options.md are all derived from it."""

    name: str = field(kw_only=False)
    """With its dashes."""
    aliases: tuple[str, ...] = ()
    """Names of the same option in the serving benchmarks of vLLM, SGLang or NVIDIA."""
    help: str
    """One line for --help and the web form."""
    explanation: str = ""
    """Markdown that docs/options.md prints after `help`."""
    type: Callable[[str], Any] = str
    default: Any = ""
    choices: Sequence[str] = ()
    metavar: str | None = None
    action: str = ""
    """argparse's `append`, for a value each time the option is given, or `store_true`; empty for `store`."""
    nargs: str = ""
    """argparse's `+`, for several values; empty for one."""
    check: Check = lambda _: ""
    in_form: bool = False
    """Whether the web form shows it."""
    label: str = ""
    """Name in the web form, with the unit."""
    per_user_class: bool = False
    """Whether a user class may set it for its own requests."""
    in_run_json: str = ""
    """The field of run.json that holds its value; empty without one, or if one field holds several options, as
    `timeouts`, `loop` and `realtime` do."""
    json_type: Any = str
    """The type of that field, with the bounds that a reader checks."""
    json_default: Any = None
    """The field's value in files that lack it; None: that of `default`."""
    comparable: bool = False
    """Whether runs must have equal values for their difference to be the server's, and a resumed search those of the
    search that it continues."""
    secret: bool = False
    """Whether its value may be a secret, which no page, file or message shows."""

    @property
    def dest(self) -> str:
        """The attribute of the parsed options, and the key in a user class's `options`."""
        return self.name.removeprefix("--").replace("-", "_")

    def verify(self, value: Any) -> None:
        """Raise InputError if a value is not one that the option takes. The command line has checked the choices; a
        master's values and the web form's have not been."""
        if self.choices and value is not None and value not in self.choices:
            raise InputError(f"{self.name} {value!r} is unknown; use one of {', '.join(self.choices)}")
        if must := self.check(value):
            raise InputError(f"{self.name} must be {must}, not {value}")


@dataclass(frozen=True)
class Group:
    """Options that --help, the web form and docs/options.md show under one title."""

    title: str
    summary: str
    options: tuple[Option, ...]


def at_least(least: int, meaning: str = "") -> Check:
    """Accept numbers from `least` on; `meaning` explains that number."""
    note = f" ({meaning})" if meaning else ""
    return lambda value: "" if value >= least else f"{least}{note} or more"


def seconds(value: float) -> str:
    """Accept a finite time, 0 included."""
    return "" if 0 <= value < math.inf else "0 seconds or more"


def positive_seconds(value: float) -> str:
    """Accept a finite time above 0."""
    return "" if 0 < value < math.inf else "above 0 seconds"


def between(least: float, most: float, unit: str = "") -> Check:
    """Accept numbers from `least` to `most`."""
    return lambda value: "" if least <= value <= most else f"from {least:g} to {most:g}{unit}"
