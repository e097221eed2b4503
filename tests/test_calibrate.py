"""Calibration: what this machine can carry, and how the verdict uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asr_load.results import calibration
from asr_load.results.calibration import Calibration, CalibrationStep, GoodFor, read_calibration, write_calibration
from asr_load.results.runfile import WorkerInfo, on_master_clock
from asr_load.results.verdict import judge, peak_chunks_per_s
from asr_load.selftest.calibrate import FIRST, REFINEMENTS, climb, good_for, run_step
from asr_load.selftest.ground_truth import TTFT_S, share_cores
from asr_load.shipped import command
from asr_load.stream.record import Record
from conftest import CHECKOUT
from harness.records import record, run_info, worker_info


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


def test_calibration_is_stored_per_machine_cores_and_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert read_calibration(8, "compiled") is None
    made = found(780)
    path = write_calibration(made)
    assert path.is_relative_to(tmp_path)
    assert read_calibration(8, "compiled") == made
    assert read_calibration(4, "compiled") is None  # another machine with the same name, or fewer of its cores
    assert read_calibration(8, "python") is None
    path.write_text("{")
    assert read_calibration(8, "compiled") is None
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert calibration.calibration_file() != path


def found(streams: int, workers: int = 1, at_least: bool = False) -> Calibration:
    good = GoodFor(workers, {1: 1, 5: 2, 10: streams}, at_least)
    return Calibration(host="here", cores=8, reader="compiled", chunks_per_s=50, good_for=[good], trials=[])


def on(host: str, count: int, known: Calibration | None, first: int = 0) -> list[WorkerInfo]:
    return [worker_info(worker=first + number, host=host, calibration=known) for number in range(count)]


def streams(count: int, worker: int, offset: float = 0.0) -> list[Record]:
    """Streams of 50 chunks within one second."""
    one = {"ttft": 0.0, "itl": [0.02] * 49, "chunks": 50, "output_tokens": 50, "e2el": 0.98}
    return [record(n, worker=worker, user=n, started_at=1000.0 + offset, **one) for n in range(count)]


def test_load_beyond_the_calibration_is_client_bound() -> None:
    records = streams(9, 0)
    assert judge(records, run_info(workers=on("a", 1, None))).verdict == "valid"
    assert judge(records, run_info(workers=on("a", 1, found(9)))).verdict == "valid"
    validity = judge(records, run_info(workers=on("a", 1, found(8))))
    assert validity.verdict == "client-bound"
    assert validity.reasons == [
        f"1 worker on a carried the load of 9 streams of 50 chunks/s; its calibration allows 8 ({command('calibrate')})"
    ]
    validity = judge(records, run_info(workers=on("a", 1, found(8, at_least=True))))
    assert validity.verdict == "suspect"
    assert "allows at least 8" in validity.reasons[0]


def test_workers_are_summed_per_machine() -> None:
    two = found(8, workers=2)
    records = streams(5, 0) + streams(5, 1)
    assert judge(records, run_info(workers=on("a", 2, two))).verdict == "client-bound"
    assert judge(records, run_info(workers=on("a", 1, found(8)) + on("b", 1, found(8), first=1))).verdict == "valid"
    # For fewer workers than were tried, nothing is known. For more workers, only a lower bound is known.
    assert judge(records, run_info(workers=on("a", 1, two) + on("b", 1, None, first=1))).verdict == "valid"
    three = judge(records + streams(5, 2), run_info(workers=on("a", 3, two)))
    assert (three.verdict, "at least 8" in three.reasons[0]) == ("suspect", True)


def test_busiest_second_is_found_on_the_masters_clock() -> None:
    records = streams(1, 0) + streams(1, 1, offset=3600.0)
    workers = [worker_info(worker=0), worker_info(worker=1, master_offset_s=-3600.0)]
    assert peak_chunks_per_s(on_master_clock(records, workers)) == 100
    assert peak_chunks_per_s(records) == 50
    assert peak_chunks_per_s([]) == 0


@pytest.mark.long
def test_calibration_trial_measures_errors_against_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCUST_SKIP_MONKEY_PATCH")
    made, reader = run_step(4, 1, share_cores(), tmp_path / "trial")
    assert reader in ("compiled", "python")
    assert (made.workers, made.streams) == (1, 4)
    assert 150 <= made.chunks_per_s <= 250
    errors = np.array([made.ttft_p50, made.itl_p50, made.ttft_p99, made.itl_p99, made.upload_p99])
    assert (errors > 0).all()
    # A wrong clock offset or a misplaced stamp would give a far larger error.
    assert (errors[:2] < TTFT_S / 4).all()


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--what", 2)])
def test_calibrate_command_has_help_and_one_line_errors(option: str, code: int) -> None:
    command = [sys.executable, "scripts/calibrate.py", option]
    said = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert said.returncode == code
    assert said.stderr.count("\n") == 1 if code else "two minutes" in said.stdout
