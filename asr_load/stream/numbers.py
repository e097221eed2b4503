"""Validate numbers from servers: a plausible number, else None."""

from __future__ import annotations

from typing import Any

LIMIT = 1 << 31
"""Numbers of tokens, milliseconds and events are below this."""


def number_in(value: Any) -> float | None:
    """The number in a field if it is from 0 to below LIMIT, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 <= value < LIMIT else None


def count_in(value: Any) -> int | None:
    """The number in a field if it is also whole, else None."""
    number = number_in(value)
    return int(number) if number is not None and int(number) == number else None
