"""Comparison of two stored results of the benchmarks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from asr_load.stream.record import Record
from benchmarks import Row
from benchmarks.compare import Kept, read, verdict
from benchmarks.run import LONG, SUITE
from benchmarks.soak import Sample, Watched, judge
from conftest import CHECKOUT
from harness.records import record, run_folder, run_info, worker_info


def row(value: float, spread: float = 0.1, *, better: str = "less", what: str = "reading") -> Row:
    return Row(what, "", "", value, value - spread, value + spread, "times", better=better)


@pytest.mark.parametrize(
    ("before", "after", "better", "said"),
    [
        (1.0, 1.05, "less", "same"),
        (1.0, 1.5, "less", "WORSE"),
        (1.0, 0.5, "less", "better"),
        (1.0, 1.5, "more", "better"),
        (1.0, 0.5, "more", "WORSE"),
    ],
)
def test_benchmark_row_is_same_worse_or_better(before: float, after: float, better: str, said: str) -> None:
    assert verdict(row(before, better=better), row(after, better=better)) == said


def keep(path: Path, *rows: Row) -> Path:
    path.write_bytes(msgspec.json.encode(Kept("machine", "3.11", list(rows))))
    return path


def compare(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "bench-compare", *map(str, words)]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)


def test_make_bench_compare_compares_two_results(tmp_path: Path) -> None:
    old = keep(tmp_path / "old.json", row(1.0), row(2.0, what="gone"))
    new = keep(tmp_path / "new.json", row(1.5), row(3.0, what="new one"))
    assert [one.value for one in read(new).rows] == [1.5, 3.0]
    done = compare(f"A={old}", f"B={new}")
    assert "WORSE" in done.stdout
    assert "not run" in done.stdout
    assert done.returncode == 2  # make's exit code when a command fails
    assert compare(f"A={new}", f"B={new}").returncode == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["A=/nowhere.json", "B=/nowhere.json"],
            "error: not a benchmark result: nowhere.json cannot be read (No such file or directory)",
        ),
        ([], "error: the following arguments are required: before, after"),
    ],
)
def test_bench_compare_refuses_invalid_results(words: list[str], line: str) -> None:
    done = compare(*words)
    assert line in done.stderr
    assert done.returncode == 2


def test_every_benchmark_is_in_the_suite() -> None:
    others = {"__init__", "bare", "bare_speech", "clips", "compare", "run", "send_client", "sink", "soak", "tls"}
    others |= {"flood_client", "flood_server"}
    files = {path.stem for path in (CHECKOUT / "benchmarks").glob("*.py")}
    assert files - others == set(SUITE | LONG)


def watched(memory: Callable[[int], float], descriptors: Callable[[int], float]) -> Watched:
    """A process sampled for ten minutes."""
    samples = [Sample(float(at), memory(at), descriptors(at)) for at in range(0, 600, 10)]
    return Watched("the master", 1, samples)


@pytest.mark.parametrize(
    ("memory", "descriptors", "steady"),
    [
        (lambda at: 80.0 + at % 7, lambda at: 50.0 + at % 9, True),
        (lambda at: min(80.0 + at, 200.0), lambda _: 50.0, True),  # settles within the first third
        (lambda at: 80.0 + at / 20, lambda _: 50.0, False),
        (lambda _: 80.0, lambda at: 50.0 + at / 2, False),
    ],
    ids=["steady", "settles", "memory", "descriptors"],
)
def test_soak_detects_a_process_that_grows(
    memory: Callable[[int], float], descriptors: Callable[[int], float], steady: bool
) -> None:
    assert watched(memory, descriptors).is_steady == steady


def test_soak_detects_lost_requests_and_stuck_workers(tmp_path: Path) -> None:
    stamps = tmp_path / "stamps"
    lines = [{"request_id": id} for id in ("abc-0-0", "abc-0-1", "abc-1-0", "another-0-9")]
    stamps.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    workers = [worker_info(started=2, recorded=2), worker_info(worker=1, ended=False)]  # the second one was killed

    def found(*records: Record) -> list[str]:
        folder = run_folder(tmp_path / "r", records, run_info(workers=workers))
        figures, troubles = judge(folder, stamps, [])
        assert figures.startswith(f"3 requests at the server, {len(records)} records")
        return troubles

    assert found(record(0), record(1)) == []
    assert found(record(0)) == ["requests lost: 1"]
    assert found(record(0), record(1), record(2)) == ["records of requests that the server did not receive: 1"]
    workers[0] = worker_info(started=3, recorded=2)
    assert found(record(0), record(1)) == ["workers stuck: 1"]
