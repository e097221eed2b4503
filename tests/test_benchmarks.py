"""Two kept results of the benchmarks, held against each other."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from benchmarks import Row
from benchmarks.compare import Kept, read, verdict
from benchmarks.run import LONG, SUITE
from conftest import CHECKOUT


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
def test_what_became_of_a_row(before: float, after: float, better: str, said: str) -> None:
    assert verdict(row(before, better=better), row(after, better=better)) == said


def keep(path: Path, *rows: Row) -> Path:
    path.write_bytes(msgspec.json.encode(Kept("machine", "3.11", list(rows))))
    return path


def compare(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "bench-compare", *map(str, words)]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)


def test_two_results_are_compared_by_make(tmp_path: Path) -> None:
    old = keep(tmp_path / "old.json", row(1.0), row(2.0, what="gone"))
    new = keep(tmp_path / "new.json", row(1.5), row(3.0, what="new one"))
    assert [one.value for one in read(new).rows] == [1.5, 3.0]
    done = compare(f"A={old}", f"B={new}")
    assert "WORSE" in done.stdout
    assert "not run" in done.stdout
    assert done.returncode == 2  # make's word for a command that failed
    assert compare(f"A={new}", f"B={new}").returncode == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["A=/nowhere.json", "B=/nowhere.json"],
            "error: no result of benchmarks: nowhere.json cannot be read (No such file or directory)",
        ),
        ([], "error: the following arguments are required: before, after"),
    ],
)
def test_what_is_no_result_is_refused(words: list[str], line: str) -> None:
    done = compare(*words)
    assert line in done.stderr
    assert done.returncode == 2


def test_every_benchmark_is_in_the_suite() -> None:
    helpers = {"__init__", "bare", "bare_speech", "clips", "compare", "run", "send_client", "sink", "tls"}
    helpers |= {"flood_client", "flood_server"}
    files = {path.stem for path in (CHECKOUT / "benchmarks").glob("*.py")}
    assert files - helpers == set(SUITE | LONG)
