"""Resources that this machine may run out of: the server is not blamed, and written files stay intact."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from harness.fleets import processes
from harness.runs import Run, locust
from harness.serving import serve

SERVER = ("--engine", "scripted", "--tokens", "20", "--ttft-ms", "50", "--itl-ms", "5")


def limited(limit: str, host: str, clips: Path, results: Path, *words: str | Path) -> Run:
    """A run under a limit of the shell (ulimit)."""
    results.mkdir()
    files = ("--data", clips, "--results", results, "--json-file", results / "locust", "--spawn-rate", "100")
    on = ("sh", "-c", f'ulimit {limit}; exec "$@"', "sh")
    return Run(locust("--host", host, *files, *words, on=on), results)


@pytest.mark.long
@pytest.mark.parametrize("reader", ["compiled", "python"])
def test_fewer_descriptors_than_users_is_a_client_failure(clips: Path, tmp_path: Path, reader: str) -> None:
    with serve(*SERVER) as host:
        words = ("-u", "60", "-t", "3", "--stop-timeout", "5", "--reader", reader)
        done = limited("-n 60", host, clips, tmp_path / "r", *words)
    outcomes = Counter(record["outcome"] for record in done.records)
    assert set(outcomes) <= {"ok", "client", "unfinished"}
    assert outcomes["client"]
    wants = {record["error"] for record in done.records if record["outcome"] == "client"}
    assert wants == {"too many open files: raise ulimit -n, or lower -u"}
    # They wait before they retry.
    assert max(Counter(record["user"] for record in done.records if record["outcome"] == "client").values()) <= 5
    assert done.summary["validity"]["client"] == "too slow"
    assert "60 users need up to 184 file descriptors, but this process may open only 60" in done.err
    # Locust's own look at the memory, each five seconds, finds no descriptor either.
    assert done.err.count("Traceback") == done.err.count("in monitor_cpu_and_memory\n")
    assert done.code == 1


@pytest.mark.long
@pytest.mark.parametrize("fleet", [False, True])
def test_full_disk_ends_the_run_and_truncates_no_line(clips: Path, tmp_path: Path, fleet: bool) -> None:
    with serve(*SERVER) as host:
        words = ("-u", "4", "-t", "600", *(processes(2) if fleet else ()))
        done = limited("-f 24", host, clips, tmp_path / "r", *words)  # in blocks of 512 bytes
    assert done.code == 2
    assert done.summary["wall_s"] < 600
    assert "=== ASR Benchmark Summary ===" in done.out
    assert "records.jsonl cannot be written (File too large): stopping the test" in done.err
    assert "could not be written: File too large" in done.err
    assert "Traceback" not in done.err
    lines = (tmp_path / "r" / "records.jsonl").read_bytes().splitlines()
    assert len(lines) > 3
    assert all(json.loads(line)["outcome"] for line in lines)
    assert done.summary["lost_workers"] or fleet  # a worker's own file may have records that the master's lacks
