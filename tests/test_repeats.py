"""--repeats: each run has its folder, and the spread of the metrics is printed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asr_load.cli import repeats
from asr_load.cli.repeats import take_repeats
from asr_load.errors import InputError
from asr_load.results.summary import summarise_folder
from conftest import prepare_clips
from harness.patience import PATIENCE_S
from harness.records import failure, record, run_folder, run_info
from harness.serving import serve


@pytest.mark.parametrize(
    ("words", "times", "left"),
    [
        ([], 1, []),
        (["-u", "3"], 1, ["-u", "3"]),
        (["--repeats", "3", "-u", "3"], 3, ["-u", "3"]),
        (["-u", "3", "--repeats=2"], 2, ["-u", "3"]),
    ],
)
def test_repeats_option_is_removed_from_the_command(words: list[str], times: int, left: list[str]) -> None:
    assert take_repeats(words) == (times, left)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "1000", ""])
def test_invalid_number_of_repeats_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="--repeats must be a whole number"):
        take_repeats(["--repeats", value])


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--model", "a/whisper", "-u", "8"], "whisper_8-streams-run1"),
        (["--users=2", "--api", "realtime"], "2-sessions-run1"),
        (["-f", "locustfiles/capacity.py", "-u", "64"], "search-run1"),
        (["--model=m", "--request-rate", "2.5", "-u", "64"], "m_2.5-requests-per-s-run1"),
        ([], "1-stream-run1"),
    ],
)
def test_folders_of_a_series_are_named_by_what_the_command_says(
    words: list[str], name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(repeats, "run_once", lambda _: (2, 0))
    repeats.run_repeatedly(["locust", *words], 2)
    folder = Path(capsys.readouterr().out.split()[-1])
    assert folder.parent == Path("results")
    assert folder.name.partition("_")[2] == name


def test_signal_after_the_end_of_a_run_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(repeats, "run_once", lambda _: (0, signal.SIGTERM))
    assert repeats.run_repeatedly(["locust", "--results", str(tmp_path / "r")], 2) == 128 + signal.SIGTERM
    assert capfd.readouterr().err == "stopped after run 1 of 2 (SIGTERM)\n"


class Ended(NamedTuple):
    """How the runs of a series end (exit code and files), and whether the series continues."""

    code: int
    changes: dict[str, Any]
    goes_on: bool


@pytest.mark.parametrize(
    "ended",
    [
        Ended(7, {"exit_code_on_error": 7}, True),
        Ended(1, {}, True),
        Ended(2, {}, False),
        Ended(2, {"unwritten": "the disk is full"}, False),
    ],
    ids=["--exit-code-on-error", "failures", "other exit code", "missing records"],
)
def test_series_continues_if_the_exit_code_is_that_of_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ended: Ended
) -> None:
    def run_once(command: Sequence[str]) -> tuple[int, int]:
        summarise_folder(run_folder(Path(command[-1]), [record(0), failure(1, "http_500")], run_info(**ended.changes)))
        return ended.code, 0

    monkeypatch.setattr(repeats, "run_once", run_once)
    assert repeats.run_repeatedly(["locust", "--results", str(tmp_path / "r")], 2) == ended.code
    out = capsys.readouterr().out
    assert ("run 2 of 2" in out, "Spread over 2 runs" in out) == (ended.goes_on, ended.goes_on)


@pytest.mark.long
@pytest.mark.parametrize("fleet", [(), ("--processes", "2")], ids=["one process", "fleet"])
def test_two_runs_print_their_spread(tmp_path: Path, fleet: tuple[str, ...]) -> None:
    clips = prepare_clips(tmp_path / "clips", {f"clip{n}": 0.5 for n in range(4)})
    words = ("--headless", "-u", "2", "--requests", "20", "--only-summary", "--no-preflight", "--data", str(clips))
    with serve("--engine", "scripted", "--tokens", "3", "--ttft-ms", "20", "--itl-ms", "5") as host:
        env = {**os.environ, "LOCUST_SKIP_MONKEY_PATCH": ""}  # the import of Locust in this process set it
        command = [sys.executable, "-m", "asr_load.cli.main", "run", "--repeats", "2", *words, *fleet]
        command += ["--host", host, "--results", str(tmp_path / "r")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert "Spread over 2 runs" in done.stdout
    assert "ttft_p95, ms" in done.stdout
    for turn in (1, 2):
        assert (tmp_path / f"r-run{turn}" / "report.html").exists()
