"""Stored calibrations of a machine, and how the verdict uses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr_load.results import calibration
from asr_load.results.calibration import Calibration, GoodFor, read_calibration, write_calibration
from asr_load.results.runfile import WorkerInfo, on_master_clock
from asr_load.results.summary import summarise
from asr_load.results.verdict import peak_chunks_per_s
from asr_load.shipped import command
from asr_load.stream.record import Record
from harness.records import record, run_info, worker_info


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
    assert summarise(records, run_info(workers=on("a", 1, None))).validity.verdict == "valid"
    assert summarise(records, run_info(workers=on("a", 1, found(9)))).validity.verdict == "valid"
    validity = summarise(records, run_info(workers=on("a", 1, found(8)))).validity
    assert validity.verdict == "client-bound"
    assert validity.reasons == [
        f"1 worker on a carried the load of 9 streams of 50 chunks/s; its calibration allows 8 ({command('calibrate')})"
    ]
    validity = summarise(records, run_info(workers=on("a", 1, found(8, at_least=True)))).validity
    assert validity.verdict == "suspect"
    assert "allows at least 8" in validity.reasons[0]


def test_workers_are_summed_per_machine() -> None:
    two = found(8, workers=2)
    records = streams(5, 0) + streams(5, 1)
    assert summarise(records, run_info(workers=on("a", 2, two))).validity.verdict == "client-bound"
    assert (
        summarise(records, run_info(workers=on("a", 1, found(8)) + on("b", 1, found(8), first=1))).validity.verdict
        == "valid"
    )
    # For fewer workers than were tried, nothing is known. For more workers, only a lower bound is known.
    assert summarise(records, run_info(workers=on("a", 1, two) + on("b", 1, None, first=1))).validity.verdict == "valid"
    three = summarise(records + streams(5, 2), run_info(workers=on("a", 3, two))).validity
    assert (three.verdict, "at least 8" in three.reasons[0]) == ("suspect", True)


def test_busiest_second_is_found_on_the_masters_clock() -> None:
    records = streams(1, 0) + streams(1, 1, offset=3600.0)
    workers = [worker_info(worker=0), worker_info(worker=1, master_offset_s=-3600.0)]
    assert peak_chunks_per_s(on_master_clock(records, workers)) == 100
    assert peak_chunks_per_s(records) == 50
    assert peak_chunks_per_s([]) == 0
