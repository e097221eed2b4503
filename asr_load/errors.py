"""Errors of the user's input, printed as one line."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from asr_load import signals
from asr_load.text import MAX_CHARS, shorten, visible


class InputError(Exception):
    """Bad input, described in one line: what is wrong and how to fix it. Control characters are escaped, because the
    line may quote a server, a data set or a command line."""

    def __init__(self, line: str) -> None:
        super().__init__(visible(line) if len(line) <= MAX_CHARS else _ends(line))


def _ends(line: str) -> str:
    """The beginning and the last whole words of a long line; the end often says what is wrong with a long value."""
    half = MAX_CHARS // 2
    return f"{shorten(line, half)} {visible(line[-half:].partition(' ')[2])}".rstrip()


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage, and accepts no abbreviations."""

    def __init__(self, description: str, epilog: str | None = None) -> None:
        super().__init__(description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        print(f"error: {visible(message)} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


def exits_on_bad_input(main: Callable[[], int]) -> Callable[[], int]:
    """Wrap a command: on bad input or a system error it prints one line to stderr and returns 2. On a signal, and when
    nobody reads its output any more (SIGPIPE), it returns 128 + the number of the signal."""

    @functools.wraps(main)
    def wrapped() -> int:
        try:
            code = main()
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # `| head` is no mistake
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
            return signals.exit_code(signal.SIGPIPE)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except OSError as error:  # such as a full disk or a read-only folder
            print(f"error: {visible(f'{error.filename}: ' if error.filename else '')}{error.strerror}", file=sys.stderr)
            return 2
        except MemoryError:
            print("error: out of memory", file=sys.stderr)
            return 2
        except signals.Interrupted as stopped:
            return signals.exit_code(stopped.number)

    return wrapped
