"""SIGINT and SIGTERM in a process of Locust: every request has a record."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from harness.runs import FAST, POST, Run, locust, run
from harness.serving import running_streams, serve, wait_until


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_complete_files(clips: Path, tmp_path: Path, stop: signal.Signals) -> None:
    results = tmp_path / "r"
    results.mkdir()
    without_end = [word for clip in ("03", "04", "05") for word in ("--fault", f"stall@clip{clip}")]
    with serve(*FAST, *without_end) as host:
        words = ("--data", clips, "--results", results, "--stop-timeout", "0", "--json-file", results / "locust")
        process = locust("--host", host, *words, "-u", "3", "-r", "100")
        _wait_for_lines(results / "records.jsonl", 3)
        wait_until(lambda: running_streams(host) == 3, "a stream without an end for each user")
        process.send_signal(stop)
        done = Run(process, results)
    outcomes = Counter(record["outcome"] for record in done.records)
    assert sorted(record["seq"] for record in done.records) == list(range(len(done.records)))
    assert outcomes == {"ok": 3, "unfinished": 3}
    assert done.summary["requests"]["total"] == len(done.records) == done.rows[POST]["num_requests"]
    # Requests cut off by the end of the test are not failures of the server.
    assert done.rows[POST]["num_failures"] == done.summary["requests"]["fail"] == 0
    assert done.summary["requests"]["unfinished"] == 3
    assert f"Total: {len(done.records)}, Success: {outcomes['ok']}, Fail: 0" in done.out
    assert "Cut off by the end of the test: 3 (" in done.out
    assert done.code == 0


INTERRUPTED_AT_WORK = """
import os, signal
from locust import events
from locustfiles.transcribe import SpeechUser

@events.request.add_listener
def on_request(request_type, **_):
    on_request.posts += request_type == "POST"
    if on_request.posts == 5:
        os.kill(os.getpid(), signal.SIGINT)
on_request.posts = 0
"""


def test_ctrl_c_while_a_user_works_loses_nothing(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED_AT_WORK)
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", "-u", "2", "-f", tmp_path / "interrupted.py")
    records = done.records
    assert sorted(record["seq"] for record in records) == list(range(len(records)))
    assert done.rows[POST]["num_requests"] == len(records) == done.summary["requests"]["total"]


def _wait_for_lines(file: Path, lines: int) -> None:
    wait_until(lambda: file.exists() and file.read_bytes().count(b"\n") >= lines, f"{lines} lines in {file}")


def cut_short(process: subprocess.Popen[str], host: str) -> None:
    """Press Ctrl-C while streams drain. Repeat it, as two presses may count as one, until no stream is left."""
    time.sleep(0.5)
    while running_streams(host):
        process.send_signal(signal.SIGINT)
        time.sleep(2)


@pytest.mark.long
def test_ctrl_c_twice_loses_nothing(clips: Path, tmp_path: Path) -> None:
    results = tmp_path / "r"
    results.mkdir()
    with serve("--engine", "scripted", "--tokens", "500", "--itl-ms", "50") as host:
        words = ("--data", clips, "--results", results, "--stop-timeout", "60", "--json-file", results / "locust")
        process = locust("--host", host, *words, "-u", "4", "-r", "100")
        wait_until(lambda: running_streams(host) == 4, "four streams")
        process.send_signal(signal.SIGINT)
        cut_short(process, host)
        done = Run(process, results)
    assert [record["outcome"] for record in done.records] == ["unfinished"] * 4
    assert done.summary["requests"]["fail"] == done.rows[POST]["num_failures"] == 0
    assert "Total: 4, Success: 0, Fail: 0" in done.out
    assert done.code == 1  # no request succeeded


@pytest.mark.long
def test_ctrl_c_ends_a_drain_early(clips: Path, tmp_path: Path) -> None:
    results = tmp_path / "r"
    results.mkdir()
    with serve("--engine", "scripted", "--tokens", "500", "--itl-ms", "50") as host:
        words = ("--data", clips, "--results", results, "-t", "4", "--stop-timeout", "60")
        process = locust("--host", host, *words, "-u", "3", "-r", "100")
        wait_until(lambda: running_streams(host) == 3, "three streams")
        time.sleep(4)  # past the run time: streams drain
        cut_short(process, host)
        done = Run(process, results)
    assert [record["outcome"] for record in done.records] == ["unfinished"] * 3
    assert done.summary["requests"]["unfinished"] == 3
