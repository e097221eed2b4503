"""The web form that starts or edits a test. It checks each field like the option on the command line, every time.

Locust converts a field to the type of the value from the last test, sets fields one after the other, and keeps those
before an invalid one. This module reads all fields first, and then sets all of them or none.
"""

from __future__ import annotations

import copy
import functools
import math
from argparse import SUPPRESS, Action, Namespace
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from locust.argument_parser import default_args_dict, get_parser
from locust.util.timespan import parse_timespan
from werkzeug.datastructures import MultiDict

from asr_load.decode import Malformed, decode
from asr_load.errors import InputError
from asr_load.options.parser import parse_value
from asr_load.options.table import GROUPS

Form = MultiDict[str, str]

LOCUSTS = ("user_count", "spawn_rate", "host", "user_classes", "shape_class", "profile")
"""Fields that Locust itself handles when a test starts."""

MOST_USERS, MOST_RUN_TIME_S = 1_000_000, 10 * 365 * 86400
"""Values above these are typing errors."""


def read_form(form: Form, options: Namespace) -> Namespace:
    """A copy of the options with the form's values. Raises InputError for the first invalid field."""
    read = copy.copy(options)
    for name in form:
        word = form[name].strip()
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
                setattr(read, name, _option(name, form.getlist(name)))
    return read


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
