"""Which modules a process of Locust imports before its options are checked, and before its trial request."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from locust.env import Environment

from asr_load.load.lifecycle import _quit_once
from conftest import CHECKOUT
from harness.runs import check_in_new_process

LARGE = {
    *("datasets", "jiwer", "kaldialign", "pandas", "rich", "whisper_normalizer"),
    *("asr_load.report.page", "asr_load.load.lifecycle", "asr_load.load.run", "asr_load.web.webui"),
}
"""Modules that no process needs before its trial request has been answered."""

OF_DATA = {
    *("langcodes", "numpy", "pyarrow", "soundfile", "soxr", "websockets"),
    *("asr_load.audio.shard", "asr_load.http.exchange", "asr_load.load.preflight"),
}
"""Modules that a trial request needs, but not the options."""

NO_TIMER = """
import asr_load
from asr_load.load import preflight

preflight.TRIAL_ALONE_S = 600.0

class User(asr_load.SpeechUser):
    pass
"""
"""A locustfile with which a trial request on a busy machine is not mistaken for one that waits for the server."""


def imported(*words: str | Path) -> set[str]:
    """The modules that a command line imports until it fails with one line."""
    command = [sys.executable, "-X", "importtime", "-m", "asr_load.cli.main", *map(str, words)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    (error,) = (line for line in lines if line.startswith("error: "))
    assert done.returncode == 2, error
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


@pytest.mark.parametrize(
    "words",
    [
        ("--bogus",),
        ("-u", "0"),
        ("-u", "1", "--unique", "foo"),
        ("-u", "1", "--slo", "foo"),
        ("-u", "1", "--mix", "foo"),
        ("-u", "1", "--rate-stages", "foo"),
        ("-u", "1", "--arrival-trace", "/nonexistent.csv"),
        ("-u", "1", "--data", "/nonexistent"),
        ("-u", "1", "--host", "nowhere"),
    ],
)
def test_options_are_checked_before_large_modules_are_imported(words: tuple[str, ...]) -> None:
    modules = imported("run", "--headless", *words)
    assert "asr_load.load.startup" in modules
    assert modules & (LARGE | OF_DATA) == set()


def test_search_without_limits_is_refused_before_large_modules_are_imported() -> None:
    assert imported("capacity", "--headless", "-u", "4") & (LARGE | OF_DATA) == set()


def test_refused_trial_request_imports_nothing_of_the_test(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "locustfile.py").write_text(NO_TIMER)
    words = ("-f", tmp_path / "locustfile.py", "--headless", "-u", "1", "--data", clips)
    modules = imported("locust", *words, "--host", "http://127.0.0.1:9")
    assert modules >= OF_DATA
    assert modules & LARGE == set()


def test_runner_quits_once() -> None:
    runner = Environment().create_local_runner()
    stops: list[None] = []
    runner.stop = lambda: stops.append(None)  # type: ignore[method-assign]
    _quit_once(runner)
    for _ in range(3):
        runner.quit()
    assert stops == [None]


def test_reading_results_imports_neither_locust_nor_an_http_client() -> None:
    """Locust patches sockets when it is imported. A program that has imported requests before can no longer use TLS."""
    check_in_new_process(
        "import sys\n"
        "import asr_load\n"
        "for name in asr_load.__all__:\n"
        "    if name != 'SpeechUser':\n"
        "        getattr(asr_load, name)\n"
        "assert not {'locust', 'gevent', 'requests', 'urllib3'} & set(sys.modules), sorted(sys.modules)\n"
        "asr_load.SpeechUser\n"
    )
