"""Calibration: what this machine can carry, and how the verdict uses it."""

from __future__ import annotations

import subprocess
import sys
import tempfile

import pytest

from asr_load import signals
from asr_load.results.calibration import CalibrationStep, GoodFor
from asr_load.selftest.calibrate import FIRST, REFINEMENTS, climb, good_for, main
from conftest import CHECKOUT


def trial(
    streams: int,
    error_ms: float = 0.5,
    late_ms: float = 0.1,
    *,
    workers: int = 1,
    wait_ms: float = 0.3,
    share: float = 1,
) -> CalibrationStep:
    error, chunks = error_ms / 1e3, share * streams * 50
    return CalibrationStep(
        workers, streams, chunks, error / 10, error, error / 10, error, 0.001, 0.5, late_ms / 1e3, wait_ms / 1e3
    )


@pytest.mark.parametrize("limit", [60, 100, 777, 5000])
def test_climb_ends_near_the_capacity_of_the_client(limit: int) -> None:
    trials = list(climb(FIRST, lambda streams: trial(streams, 0.5 if streams <= limit else 30)))
    good = good_for(trials)
    assert good.within_ms[10] <= limit
    assert not good.at_least
    # After doubling, it halves the step twice: the result is accurate to a quarter of the last step.
    assert limit - good.within_ms[10] <= good.within_ms[10] / 2**REFINEMENTS + 1
    assert len(trials) <= 9 + REFINEMENTS


def test_climb_ends_at_a_full_server_with_a_lower_bound_for_the_client() -> None:
    trials = list(
        climb(FIRST, lambda streams: trial(streams, 0.5 if streams < 200 else 50, 0.1 if streams < 200 else 30))
    )
    assert [each.streams for each in trials] == [25, 50, 100, 200]
    assert good_for(trials) == GoodFor(1, {1: 100, 5: 100, 10: 100}, at_least=True)


def test_missing_streams_count_against_the_client_unless_the_server_is_late() -> None:
    def climbed(wait_ms: float) -> list[CalibrationStep]:
        return list(climb(FIRST, lambda streams: trial(streams, wait_ms=wait_ms, share=1 if streams <= 400 else 0.7)))

    assert good_for(climbed(wait_ms=9)) == GoodFor(1, {1: 400, 5: 400, 10: 400}, at_least=False)
    assert good_for(climbed(wait_ms=11)) == GoodFor(1, {1: 400, 5: 400, 10: 400}, at_least=True)
    # A server that accepted requests slowly but sent all streams concurrently is good enough.
    assert good_for([trial(400, wait_ms=50)]) == GoodFor(1, {1: 400, 5: 400, 10: 400}, at_least=True)


def test_each_bound_has_its_own_streams_and_ignores_lucky_later_trials() -> None:
    found = good_for([trial(100, 0.9), trial(200, 4), trial(400, 11), trial(300, 6), trial(800, 0.1)])
    assert found == GoodFor(1, {1: 100, 5: 200, 10: 300}, at_least=False)
    assert good_for([trial(25, 11)]) == GoodFor(1, {1: 0, 5: 0, 10: 0}, at_least=False)


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--what", 2)])
def test_calibrate_command_has_help_and_one_line_errors(option: str, code: int) -> None:
    command = [sys.executable, "scripts/calibrate.py", option]
    said = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert said.returncode == code
    assert said.stderr.count("\n") == 1 if code else "two minutes" in said.stdout


def test_signal_before_the_first_trial_is_reported(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise signals.Interrupted(2)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", interrupt)
    monkeypatch.setattr(sys, "argv", ["calibrate.py"])
    assert main() == 130
    assert capfd.readouterr().err == "stopped; no result was written (SIGINT)\n"
