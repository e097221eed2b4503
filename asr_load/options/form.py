"""The web form that starts or edits a test. It checks each field like the option on the command line, every time.

Locust converts a field to the type of the value from the last test, sets fields one after the other, and keeps those
before an invalid one. This module reads all fields first, and then sets all of them or none.
"""

from __future__ import annotations

import copy
import functools
import math
import re
from argparse import SUPPRESS, Action, Namespace
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
from locust.argument_parser import default_args_dict, get_parser
from locust.util.timespan import parse_timespan
from werkzeug.datastructures import MultiDict

from asr_load.decode import Malformed, decode
from asr_load.errors import InputError
from asr_load.options.parser import parse_value
from asr_load.options.table import GROUPS, OPTIONS, SEARCH_OPTIONS, SHAPE_OPTIONS

Form = MultiDict[str, str]

LOCUSTS = ("user_count", "spawn_rate", "host", "user_classes", "shape_class", "profile")
"""Fields that Locust itself handles when a test starts."""

LOCUST_LABELS = {
    "host": "Server (URL)",
    "user_count": "Users (streams at the same time)",
    "spawn_rate": "Ramp-up (users/s)",
    "run_time": "Run time (such as 30s or 5m)",
}
"""Names of Locust's own fields in the form."""

FIRST = (
    *("data", "host", "model", "api", "slo"),
    *("user_count", "spawn_rate", "request_rate", "run_time", "shape", "stages", "stage_time", "step_time"),
)
"""The fields that the form always shows, in order; the others are folded."""

MOST_USERS, MOST_RUN_TIME_S = 1_000_000, 10 * 365 * 86400
"""Values above these are typing errors."""


class FieldError(InputError):
    """An invalid value of a field of the form."""

    def __init__(self, field: str, line: str) -> None:
        super().__init__(line)
        self.field = field


class Field(NamedTuple):
    """How the form shows a field. `group` is empty for fields that are not folded."""

    name: str
    label: str
    help: str
    group: str


def form_fields() -> list[Field]:
    """The fields of the form, in order: first those that it always shows, then the others by group."""
    options = {option.dest: option for option in (*OPTIONS, *SHAPE_OPTIONS, *SEARCH_OPTIONS)}
    labels = {name: option.label or name.replace("_", " ") for name, option in options.items()} | LOCUST_LABELS
    groups = {name: title for title, names in form_groups().items() for name in names}

    def field(name: str, group: str) -> Field:
        return Field(name, labels[name], options[name].help if name in options else "", group)

    first = [field(name, "") for name in FIRST if name in groups or name in LOCUST_LABELS]
    return [*first, *(field(name, group) for name, group in groups.items() if name not in FIRST)]


def field_of(error: InputError, host: str = "") -> str:
    """The field that an error is about: that of the first option that it names, or `host` if it names the server's
    address; empty if it names neither."""
    if isinstance(error, FieldError):
        return error.field
    named = (flag[2:].replace("-", "_") for flag in re.findall(r"--[a-z][a-z-]*[a-z]", str(error)))
    known = {*_shown(), "host"}
    return next((name for name in named if name in known), "host" if host and host in str(error) else "")


def read_form(form: Form, options: Namespace) -> Namespace:
    """A copy of the options with the form's values. Raises FieldError for the first invalid field."""
    read = copy.copy(options)
    for name in form:
        try:
            _read_field(read, name, form.getlist(name))
        except InputError as error:
            raise FieldError(name, str(error)) from None
    return read


def _read_field(read: Namespace, name: str, words: list[str]) -> None:
    word = words[0].strip()
    match name:
        case "user_count":
            read.num_users = _users(word)
        case "spawn_rate":
            read.spawn_rate = _spawn_rate(word)
        case "host":
            read.host = word
        case "run_time":
            read.run_time = _run_time(word)
        case _ if name in LOCUSTS:  # fields of Locust's class picker, which reports unknown values itself
            pass
        case _:
            setattr(read, name, _option(name, words))


def changed(read: Namespace, options: Namespace) -> list[str]:
    """The fields of asr-load whose values differ from the options."""
    return [name for name in _shown() if getattr(read, name) != getattr(options, name)]


def form_groups() -> dict[str, list[str]]:
    """The groups that the web form shows, in order, with their fields."""
    actions = {group.title: group._group_actions for group in get_parser()._action_groups}
    shown = {
        group.title: [action.dest for action in actions.get(group.title, []) if vars(action)["include_in_web_ui"]]
        for group in GROUPS
    }
    return {title: fields for title, fields in shown.items() if fields}


class _UserClass(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of a user class that Locust's picker edits."""

    user_class_name: str
    tasks: list[str] = []
    weight: Annotated[int, msgspec.Meta(ge=0, le=MOST_USERS)] = 1
    fixed_count: Annotated[int, msgspec.Meta(ge=0, le=MOST_USERS)] = 0
    host: str | None = None


def check_user_class(body: bytes, classes: Mapping[str, Any], tasks: Mapping[str, Any]) -> None:
    """Raise InputError if this request cannot come from the picker of user classes, because Locust sets any value."""
    try:
        edited = decode(body, _UserClass)
    except Malformed as error:
        raise InputError(f"invalid edit of a user class: {error}") from None
    if edited.user_class_name not in classes:
        known = ", ".join(classes) or "none"
        raise InputError(f"there is no user class {edited.user_class_name[:80]!r}; user classes: {known}")
    names = [task.__name__ for task in tasks.get(edited.user_class_name, ())]
    if unknown := [task for task in edited.tasks if task not in names]:
        raise InputError(f"{edited.user_class_name} has no task {unknown[0][:80]!r}")
    if edited.host not in (None, "", getattr(classes[edited.user_class_name], "host", None)):
        raise InputError("a user class uses the host of the test; set it there")


def check_classes(form: Form, classes: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    """Raise InputError if a form selects a class that the picker does not show."""
    for field, names in (("user_classes", classes), ("shape_class", {"Default": None, **shapes})):
        for name in form.getlist(field):
            if name not in names:
                known = ", ".join(names) or "none"
                raise InputError(f"{field.replace('_', ' ')}: unknown value {name[:80]!r}; use one of {known}")


@functools.cache
def _shown() -> dict[str, Action]:
    """The options of asr-load in the form, by field."""
    locusts, shown = default_args_dict(), get_parser().args_included_in_web_ui
    return {name: action for name, action in shown.items() if name not in locusts and action.default != SUPPRESS}


def _option(name: str, words: list[str]) -> Any:
    action = _shown().get(name)
    if action is None:
        raise InputError(f"the form has no field {name[:40]!r}: set it on the command line")
    return parse_value(action, words)


def _users(word: str) -> int:
    try:
        users = int(word)
    except ValueError:
        users = 0
    if not 1 <= users <= MOST_USERS:
        raise InputError(f"the number of users must be a whole number from 1 to {MOST_USERS}, not {word[:40]!r}")
    return users


def _spawn_rate(word: str) -> float:
    try:
        rate = float(word)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise InputError(f"the spawn rate must be a number above 0, not {word[:40]!r}")
    return rate


def _run_time(word: str) -> int | None:
    """Seconds; None for an empty field, which means no limit."""
    if not word:
        return None
    try:
        seconds = parse_timespan(word)
    except (ValueError, OverflowError):
        seconds = 0
    if not 0 < seconds < MOST_RUN_TIME_S:
        raise InputError(f"the run time must be a duration such as 20, 20s, 3m, 2h or 1h20m, not {word[:40]!r}")
    return seconds
