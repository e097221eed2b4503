"""The checks of a command line before a test, in the test's own process: much quicker than a process of Locust."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from locust.argument_parser import get_parser
from locust.env import Environment

import asr_load
from asr_load.errors import InputError
from asr_load.load.checks import Checks
from asr_load.settings import commandline
from asr_load.settings.credentials import Credentials
from conftest import CHECKOUT


def error_of(*words: str | Path, users: Sequence[type[asr_load.SpeechUser]] = (asr_load.SpeechUser,)) -> str:
    """The one-line error for a headless test with these options and user classes, without "error: " in front."""
    printed = StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(printed):
        patch.chdir(CHECKOUT)
        patch.setattr(sys, "argv", ["locust", "--headless", *map(str, words)])
        patch.setattr(commandline, "_given", None)
        try:
            options = get_parser([str(CHECKOUT / "locust.conf")]).parse_args()
            environment = Environment(user_classes=list(users), parsed_options=options, host=options.host)
            Checks(environment, Credentials(options)).check(options, options.host)
        except SystemExit as end:
            assert end.code == 2
            (line,) = printed.getvalue().splitlines()
            assert line.startswith("error: ")
            return line.removeprefix("error: ")
        except InputError as error:
            assert "\n" not in str(error)
            return str(error)
    raise AssertionError(f"{words} are accepted")
