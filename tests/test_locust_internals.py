"""A Locust whose internals differ is refused with a one-line error before a test."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import locust
import pytest
from locust import argument_parser
from locust.env import Environment
from locust.runners import WorkerRunner
from locust.stats import RequestStats, StatsEntry

from asr_load.errors import InputError
from asr_load.load import locust_internals
from conftest import CHECKOUT
from harness.patience import PATIENCE_S

UNKNOWN = rf"Locust {re.escape(locust.__version__)} is not supported: "


def test_installed_locust_passes_the_check() -> None:
    locust_internals.check()
    environment = Environment()
    environment.create_local_runner()
    locust_internals.check_environment(environment)


def test_missing_or_changed_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def send(self: WorkerRunner, last: bool) -> None: ...

    monkeypatch.setattr(WorkerRunner, "_send_stats", send)
    with pytest.raises(InputError, match=UNKNOWN + "WorkerRunner._send_stats takes self last, not self. Install"):
        locust_internals.check()
    monkeypatch.delattr(WorkerRunner, "_send_stats")
    with pytest.raises(InputError, match=UNKNOWN + "it has no WorkerRunner._send_stats"):
        locust_internals.check()


def test_changed_statistics_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry(StatsEntry):
        def __init__(self, stats: RequestStats, name: str, method: str, cache: bool = False) -> None:
            super().__init__(stats, name, method, cache)
            self.squares = 0.0

        def log(self, response_time: Any, content_length: int) -> None:
            super().log(response_time, content_length)
            self.squares += response_time**2

    monkeypatch.setattr(locust_internals, "StatsEntry", Entry)
    with pytest.raises(InputError, match=UNKNOWN + "its statistics count differently"):
        locust_internals.check()


def test_runner_without_a_needed_attribute_is_refused() -> None:
    environment = Environment()
    runner = environment.create_local_runner()
    del runner.user_greenlets
    with pytest.raises(InputError, match=UNKNOWN + "its LocalRunner has no user_greenlets"):
        locust_internals.check_environment(environment)


def test_names_of_locusts_options_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locust's worker creates a parser for each option of a spawn message, which blocked its loop for 0.2 s."""
    monkeypatch.setattr(argument_parser, "default_args_dict", argument_parser.default_args_dict)
    whole = set(argument_parser.default_args_dict())
    locust_internals.remember_defaults()
    locust_internals.remember_defaults()
    assert argument_parser.default_args_dict() is argument_parser.default_args_dict()
    assert set(argument_parser.default_args_dict()) == whole
    locust_internals.check()


def test_only_listed_functions_may_be_replaced() -> None:
    with pytest.raises(AssertionError, match="clear_all"):
        locust_internals.replace(RequestStats(), "clear_all", lambda clear: clear)


def test_run_with_an_unknown_locust_sends_nothing(tmp_path: Path) -> None:
    file = tmp_path / "locustfile.py"
    change = "import locust.runners\nlocust.runners.WorkerRunner._send_stats = lambda self, last: None\n"
    file.write_text(change + (CHECKOUT / "locustfiles" / "transcribe.py").read_text())
    command = [sys.executable, "-m", "locust", "-f", str(file), "--headless", "-u", "1", "-t", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert re.fullmatch(f"error: {UNKNOWN}.*\n", done.stderr), done.stderr
    assert not (tmp_path / "results").exists()
