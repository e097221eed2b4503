"""The verbs of asr-load."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from asr_load.cli.main import VERBS
from conftest import CHECKOUT
from harness.runs import asr_load, environment


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(verb: str) -> None:
    done = asr_load(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout


def test_version_is_printed() -> None:
    done = asr_load("--version")
    assert re.fullmatch(r"asr-load \d\S+ \(Locust \d\S+, Python \d\S+\)\n", done.stdout)
    assert (done.returncode, done.stderr) == (0, "")


def test_unknown_verb_is_refused() -> None:
    done = asr_load("brew")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown command 'brew'; the commands are demo, prepare, run")
    assert "prepare" in asr_load().stdout


def test_missing_locustfile_is_refused() -> None:
    """For `asr-load run`. Locust itself reports the error before it imports our code."""
    command = [sys.executable, "-m", "asr_load.cli.main", "run", "-f", "nosuch.py"]
    env = environment()
    done = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: -f nosuch.py does not exist: use a locustfile that ends in .py, or omit -f")
