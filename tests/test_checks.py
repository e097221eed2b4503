"""Checks of a test's options and data before anything is sent."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.runs import FAST, run
from harness.serving import serve


def test_finished_run_is_not_overwritten(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        first = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "1")
        before = (first.results / "records.jsonl").read_bytes()
        second = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "1")
    assert second.code == 2
    assert "already holds a run" in second.err
    assert (first.results / "records.jsonl").read_bytes() == before


def test_run_with_a_changed_shard_does_not_start(clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path / "data")
    file = next((tmp_path / "data").glob("*.arrow"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with serve(*FAST) as host:
        done = run(host, tmp_path / "data", tmp_path / "r", "-u", "1", "--requests", "1")
        assert done.code == 2
        assert done.err.count("has changed since it was prepared") == 1
        assert "Traceback" not in done.err
