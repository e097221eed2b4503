"""--repeats: each run has a folder of its own, and the spread of their figures is printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asr_load.errors import InputError
from asr_load.repeats import take_repeats
from conftest import prepare_clips
from harness.patience import PATIENCE_S
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
def test_the_option_is_taken_out(words: list[str], times: int, left: list[str]) -> None:
    assert take_repeats(words) == (times, left)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "1000", ""])
def test_a_number_that_is_none(value: str) -> None:
    with pytest.raises(InputError, match="--repeats takes a whole number"):
        take_repeats(["--repeats", value])


@pytest.mark.long
@pytest.mark.parametrize("fleet", [(), ("--processes", "2")], ids=["one process", "fleet"])
def test_two_runs_and_their_spread(tmp_path: Path, fleet: tuple[str, ...]) -> None:
    clips = prepare_clips(tmp_path / "clips", {f"clip{n}": 0.5 for n in range(4)})
    words = ("--headless", "-u", "2", "--requests", "20", "--only-summary", "--no-preflight", "--data", str(clips))
    with serve("--engine", "scripted", "--tokens", "3", "--ttft-ms", "20", "--itl-ms", "5") as host:
        env = {**os.environ, "LOCUST_SKIP_MONKEY_PATCH": ""}  # which importing Locust here has set
        command = [sys.executable, "-m", "asr_load.main", "run", "--repeats", "2", *words, *fleet]
        command += ["--host", host, "--results", str(tmp_path / "r")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert "Spread over 2 runs" in done.stdout
    assert "ttft_p95, ms" in done.stdout
    for turn in (1, 2):
        assert (tmp_path / f"r-run{turn}" / "report.html").exists()
