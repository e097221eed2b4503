"""scripts/report.py on folders of other people: links, pipes, broken files, and impossible values."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asr_load.errors import InputError
from asr_load.report.main import main
from asr_load.report.page import make_report
from asr_load.report.summary import print_summary
from asr_load.results.record_file import RECORDS
from asr_load.results.summary import read_finished, summarise
from asr_load.stream.record import encode_record
from harness.records import record, run_folder, run_info
from harness.runs import FAST, run
from harness.serving import serve

EXPORTS = ("parquet", "csv", "markdown", "junit")
WRITTEN = (
    "summary.json", "report.html", "comparison.json", "comparison.html", "comparison.md",
    "records.parquet", "records.csv", "summary.md", "junit.xml",
)  # fmt: skip


@dataclass
class Report:
    """The report command on a folder with three records."""

    folder: Path
    patch: pytest.MonkeyPatch

    def __call__(self, *words: str) -> int:
        self.patch.setattr("sys.argv", ["report.py", str(self.folder), *words])
        return main()


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    return Report(run_folder(tmp_path / "run", (record(n) for n in range(3)), run_info()), monkeypatch)


def test_report_writes_nothing_through_a_link(report: Report, tmp_path: Path) -> None:
    other, folder = tmp_path / "others-file", report.folder
    other.write_text("mine")
    for name in WRITTEN:
        (folder / name).symlink_to(other)
        (folder / f"{name}.tmp").symlink_to(other)
    run_folder(tmp_path / "baseline", (record(n) for n in range(3)), run_info())
    before = {file.name for file in folder.iterdir()}
    exports = [word for form in EXPORTS for word in ("--export", form)]
    assert report("--baseline", str(tmp_path / "baseline"), *exports) == 0
    assert other.read_text() == "mine"
    assert not any((folder / name).is_symlink() for name in WRITTEN)
    assert {file.name for file in folder.iterdir()} == before  # no temporary file is left


def test_no_record_is_appended_through_a_link(report: Report, tmp_path: Path) -> None:
    records, other = report.folder / "records.jsonl", tmp_path / "others-file"
    records.rename(other)
    records.symlink_to(other)
    before = other.read_bytes()
    (report.folder / "worker-000.jsonl").write_bytes(encode_record(record(9)) + b"\n")
    assert report() == 2
    assert other.read_bytes() == before


DEEP = b'{"other":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def with_fields(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(json.loads(data) | fields).encode()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [  # a path: the file is a link to it
        ("run.json", "/dev/null", "not a regular file"),
        ("records.jsonl", "/dev/null", "not a regular file"),
        ("worker-000.jsonl", "/dev/null", "not a regular file"),
        ("capacity.json", "/dev/null", "not a regular file"),
        ("records.jsonl", lambda data: data.replace(b"{", b"{\xff"), "line 1: not a record"),
        ("records.jsonl", lambda _: DEEP + b"\n", "line 1: not a record"),
        ("run.json", lambda _: DEEP, "is not the output of a run"),
        ("capacity.json", lambda _: DEEP, "is not the output of a search"),
        ("run.json", lambda data: data.replace(b'"http:', b'"\xff:'), "is not the output of a run"),
        ("run.json", with_fields(began_at=1e300), "$.began_at"),
        ("run.json", with_fields(trim_start=-1e300), "$.trim_start"),
        ("run.json", with_fields(data_clips=0), "$.data_clips"),
        ("run.json", with_fields(loop={"stages": 5}), "$.loop.stages"),
        ("run.json", with_fields(realtime={"pace": [1]}), "$.realtime.pace"),
        ("run.json", with_fields(users=[[1e300, 1]]), "$.users"),
    ],
)
def test_broken_file_gives_a_one_line_error(
    report: Report,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | Callable[[bytes], bytes],
    said: str,
) -> None:
    file = report.folder / name
    data = file.read_bytes() if file.exists() else b""
    file.unlink(missing_ok=True)
    if isinstance(content, str):
        file.symlink_to(content)
    else:
        file.write_bytes(content(data))
    assert report() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("worker", [{"host": "a\x1b[31m"}, {"cores": -1}, {"health": {"late": 1}}])
def test_worker_fields_in_run_json_are_checked_like_those_of_a_fleet(
    report: Report, capsys: pytest.CaptureFixture[str], worker: dict[str, Any]
) -> None:
    file = report.folder / "run.json"
    info = json.loads(file.read_bytes())
    info["workers"][0] |= worker
    file.write_text(json.dumps(info))
    assert report() == 2
    assert "run.json" in capsys.readouterr().err


def test_run_with_thousands_of_replicas_is_summarised_in_a_few_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This took quadratic time once, and rich needs milliseconds per row."""
    records = [record(n, replica=f"10.0.0.1:{n}", started_at=1000.0) for n in range(3000)]
    info = run_info()
    summary = summarise(records, info)
    assert len(summary.by_replica) == 3000
    print_summary(tmp_path, info, summary, records, sys.stdout)
    out = capsys.readouterr().out
    assert "… 2800 more" in out
    assert len(out.splitlines()) < 400


def test_full_disk_gives_a_one_line_error_and_keeps_the_old_page(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    page = report.folder / "report.html"
    page.write_text("the page of before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert report() == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err == f"error: {page}: File too large\n"
    assert page.read_text() == "the page of before"
    assert not list(page.parent.glob(".*"))


def test_unwritable_page_at_the_end_gives_exit_code_2(clips: Path, tmp_path: Path) -> None:
    page = tmp_path / "r" / "report.html"
    page.mkdir(parents=True)  # a folder in the way prevents writing, as a full disk would
    with serve(*FAST) as host:
        done = run(host, clips, page.parent, "-u", "1", "--requests", "2")
    assert done.code == 2
    assert "report.html was not written: " in done.err
    assert "Traceback" not in done.err
    assert done.summary["requests"]["success"] == 2


def test_report_command_writes_pages_with_slices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [run_folder(tmp_path / name, [record(n) for n in range(5)], run_info()) for name in ("a", "b")]
    monkeypatch.setattr("sys.argv", ["report.py", *map(str, folders), "--slice", "2s"])
    assert main() == 0
    assert capsys.readouterr().out.count("=== ASR Benchmark Summary ===") == 2
    page = (folders[1] / "report.html").read_text()
    assert "2 to 4" in page
    again = main()
    assert again == 0
    assert (folders[1] / "report.html").read_text() == page
    monkeypatch.setattr("sys.argv", ["report.py", str(folders[0]), "--slice", "soon"])
    assert main() == 2
    assert "--slice must be a time such as 60s" in capsys.readouterr().err


def test_truncated_records_file_is_read_and_a_broken_one_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", [record(n) for n in range(5)], run_info())
    lines = (folder / RECORDS).read_bytes()
    (folder / RECORDS).write_bytes(lines[:-20])
    finished = read_finished(folder)
    assert finished.summary.requests.total == 4
    assert "By outcome" in make_report(finished)
    (folder / RECORDS).write_bytes(lines[:50] + b"\n" + lines)
    assert read_finished(folder).summary.requests.total == 5
    (folder / RECORDS).write_bytes(lines[:50] + b"\n")
    with pytest.raises(InputError, match="line 1: not a record"):
        read_finished(folder)
