"""How a run was started: in run.json, summary.json and on the console, without secrets."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from functools import partial
from pathlib import Path

import pytest

from asr_load.errors import InputError
from asr_load.results.runfile import read_run
from conftest import CHECKOUT
from harness.runs import FAST, answer, canned, run
from harness.serving import serve, wait_until
from harness.ui import ui

PASSWORD = "very-hush-4711"


def test_run_files_record_options_and_metadata(clips: Path, tmp_path: Path) -> None:
    words = ("-u", "3", "--requests", "6", "--metadata", "gpu=H100", "--metadata", "tp=2", "--api-key", PASSWORD)
    report = ("--html", str(tmp_path / "report.html"))
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", *words, *report)
    assert done.code == 0, done.err
    info, summary = (json.loads((done.results / f"{name}.json").read_text()) for name in ("run", "summary"))
    assert info["format"] == summary["format"] == 1
    assert info["metadata"] == summary["metadata"] == {"gpu": "H100", "tp": "2"}
    assert "Run: gpu=H100, tp=2" in done.out
    assert "<dd>gpu=H100, tp=2</dd>" in (tmp_path / "report.html").read_text()
    assert (info["num_users"], info["spawn_rate"], info["run_time"], info["shape"]) == (3, 100, None, "none")
    assert info["command"][info["command"].index("--api-key") + 1] == "***"
    assert info["command"][info["command"].index("-u") + 1] == "3"
    assert re.fullmatch(r"[+-]\d\d:\d\d", info["time_zone"])
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", info["git"]) or not (CHECKOUT / ".git").exists()
    assert PASSWORD not in done.out + done.err + "".join(file.read_text() for file in done.results.iterdir())


def test_run_of_a_later_format_is_refused(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "1")
    file = done.results / "run.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(InputError, match="has format 2, but this version reads only up to 1"):
        read_run(done.results)


def test_endpoint_of_a_gateway_is_requested(clips: Path, tmp_path: Path) -> None:
    with canned([answer("a", length=True)] * 2) as (host, asked):
        words = ("-u", "1", "--requests", "2", "--endpoint", "/speech/v1/chat/completions?api-version=2")
        done = run(host, clips, tmp_path / "r", *words)
    assert done.code == 0, done.err
    assert all(request.startswith(b"POST /speech/v1/chat/completions?api-version=2 HTTP/1.1\r\n") for request in asked)
    assert ("POST", "/speech/v1/chat/completions") in done.rows


def test_password_in_host_is_sent_as_a_header_and_stored_nowhere(clips: Path, tmp_path: Path) -> None:
    body = json.dumps({"error": {"message": f"no such user: {PASSWORD}"}})
    refusal = f"HTTP/1.1 401 Unauthorized\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    with canned([refusal] * 2) as (host, asked):
        address = host.replace("://", f"://me:{PASSWORD}@")
        report = tmp_path / "report.html"
        done = run(address, clips, tmp_path / "r", "-u", "1", "--requests", "2", "--html", report)
    basic = base64.b64encode(f"me:{PASSWORD}".encode())
    assert all(b"Authorization: Basic " + basic in request for request in asked)
    said = done.out + done.err + "".join(file.read_text() for file in done.results.iterdir())
    said += report.read_text()
    assert PASSWORD not in said
    assert basic.decode() not in said
    assert json.loads((done.results / "run.json").read_text())["host"] == host


@pytest.mark.long
@pytest.mark.parametrize("kind", ["one process", "master and workers"])
def test_password_of_a_host_is_kept_for_that_host_between_tests(clips: Path, tmp_path: Path, kind: str) -> None:
    """The page shows the host without it, so the form sends it that way for the second test. Another host gets none."""
    with serve(*FAST, "--api-key", "sk-x") as host:
        address = host.replace("://", f"://me:{PASSWORD}@")
        with ui(kind, address, clips, tmp_path, workers=("--host", address)) as page:
            for number, where in enumerate((address, host, host.replace("127.0.0.1", "localhost")), 1):
                page.start(host=where, run_time="1s")
                wait_until(partial(page.ended, number), f"test {number}")
            pages = page.text_of("/") + page.text_of("/stats/report")
            assert PASSWORD not in pages
        headers = [json.loads((page.folder(number) / "run.json").read_text())["header_names"] for number in (1, 2, 3)]
    assert headers == [["Authorization"], ["Authorization"], []]


def test_streaming_csv_has_metadata_in_each_row(clips: Path, tmp_path: Path) -> None:
    with (
        serve(*FAST) as host,
        ui("one process", host, clips, tmp_path, "--metadata", "gpu=H100", "--requests", "4") as page,
    ):
        page.start()
        wait_until((page.results / "summary.json").exists, "the end of the test")
        rows = list(csv.DictReader(io.StringIO(page.text_of("/streaming/csv"))))
    assert {row["gpu"] for row in rows} == {"H100"}


@pytest.mark.long
def test_worker_without_the_secrets_takes_no_part(clips: Path, tmp_path: Path) -> None:
    """This holds for each test: the master sends its key to no worker, and nobody measures 401 responses."""
    with (
        serve(*FAST, "--api-key", PASSWORD) as host,
        ui("master and workers", host, clips, tmp_path, "--api-key", PASSWORD, "--loglevel", "DEBUG") as page,
    ):
        for number in (1, 2):
            page.start(run_time="5s")
            wait_until(partial(page.ended, number), f"test {number}")
        said = page.post("/swarm", user_count=2, spawn_rate=2, host=host, api_key="sk-of-the-form")
        assert "a fleet's workers need the API key themselves" in said["message"]
        log = page.said
    assert "lacks the header Authorization of the master's requests" in log
    assert PASSWORD not in log
    assert not (page.results / "records.jsonl").read_bytes()
