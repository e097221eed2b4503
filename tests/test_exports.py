"""Exports contain what the records contain, and files match their published schemas."""

from __future__ import annotations

import csv
import io
from array import array
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pyarrow.parquet as pq

from asr_load.report.exports import FORMS, export
from asr_load.results.summary import Finished
from harness.records import failure, record, run_info

RECORDS = [record(n, clip=f"=clip|{n}") for n in range(3)] + [failure(3, "http_503", error="<b>\x1b[31m")]
RECORDS[1].itl = array("d", RECORDS[1].itl)  # type: ignore[assignment] # as read from a results folder
INFO = run_info(slos=["ttft:p95:100", "errors:rate:0.5"], metadata={"gpu": "H100"})
FINISHED = Finished(INFO, RECORDS)


def written(folder: Path, form: str) -> bytes:
    return export(folder, FINISHED, form).read_bytes()


def test_parquet_has_the_fields_of_the_records(tmp_path: Path) -> None:
    table = pq.read_table(io.BytesIO(written(tmp_path, "parquet")))
    plain = [msgspec.structs.replace(one, itl=list(one.itl)) for one in RECORDS]
    assert table.to_pylist() == [msgspec.to_builtins(one) | {"counted": True} for one in plain]


def test_csv_export(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(written(tmp_path, "csv").decode())))
    assert [float(row["ttft"]) for row in rows[:3]] == [0.2] * 3
    assert rows[0]["itl"] == "0.1 0.1"
    assert rows[3]["ttft"] == ""
    # A spreadsheet must not take it for a formula.
    assert rows[0]["clip"] == "'=clip|0"


def test_markdown_export(tmp_path: Path) -> None:
    text = written(tmp_path, "markdown").decode()
    assert text.startswith("## m on http://127.0.0.1:1\n\nHeld 1 stream for ")
    assert "| TTFT | 200.0 | 200.0 |" in text
    assert "gpu=H100" in text
    assert "\x1b" not in text


def test_junit_export(tmp_path: Path) -> None:
    suite = ElementTree.fromstring(written(tmp_path, "junit"))
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    broken = [case.get("name") for case in suite if case.find("failure") is not None]
    assert broken == ["ttft:p95"]


def test_every_export_format_is_tested() -> None:
    assert set(FORMS) == {"parquet", "csv", "markdown", "junit"}
