"""What a person did wrong, in one line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


class InputError(Exception):
    """Bad input. Its text is one line that says what is wrong and what would be right."""


def exits_on_bad_input(main: Callable[[], int]) -> Callable[[], int]:
    """Wrap a command: bad input prints its line to stderr and returns 2, Ctrl-C returns 130."""

    @functools.wraps(main)
    def wrapped() -> int:
        try:
            return main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130

    return wrapped
