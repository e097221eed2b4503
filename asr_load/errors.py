"""What a person did wrong, in one line."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from typing import NoReturn

from asr_load import signals
from asr_load.text import MAX_CHARS, shorten, visible


class InputError(Exception):
    """Bad input. Its text is one line that says what is wrong and what would be right; what it repeats of a server, a
    data set or a command line is shown as text."""

    def __init__(self, line: str) -> None:
        super().__init__(visible(line) if len(line) <= MAX_CHARS else _ends(line))


def _ends(line: str) -> str:
    """A long line's beginning, and its last whole words, which often say what is wrong with a long value."""
    half = MAX_CHARS // 2
    return f"{shorten(line, half)} {visible(line[-half:].partition(' ')[2])}".rstrip()


class OneLineParser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the usage before it, and takes no abbreviations."""

    def __init__(self, description: str, epilog: str | None = None) -> None:
        super().__init__(description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        print(f"error: {visible(message)} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


def exits_on_bad_input(main: Callable[[], int]) -> Callable[[], int]:
    """Wrap a command: bad input and what the system refuses print a line to stderr and return 2, a signal returns 128 +
    its number."""

    @functools.wraps(main)
    def wrapped() -> int:
        try:
            return main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except OSError as error:  # a full disk, a folder that may not be written to
            print(f"error: {visible(f'{error.filename}: ' if error.filename else '')}{error.strerror}", file=sys.stderr)
            return 2
        except MemoryError:
            print("error: there is not enough memory for this", file=sys.stderr)
            return 2
        except signals.Interrupted as stopped:
            return signals.exit_code(stopped.number)

    return wrapped
