"""Numbers that servers send: taken where they can be, else None, whichever way they came."""

from __future__ import annotations

from typing import Any

LIMIT = 1 << 31
"""Of tokens, of milliseconds, of events: no answer has as many."""


def number_in(value: Any) -> float | None:
    """The number in a field, from 0 to below LIMIT; None where it holds none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 <= value < LIMIT else None


def count_in(value: Any) -> int | None:
    """The whole number in a field, as `number_in`."""
    number = number_in(value)
    return int(number) if number is not None and int(number) == number else None
