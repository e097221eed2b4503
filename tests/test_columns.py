"""Columns of tables: audio, text and times under common names, in each kind of table."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from asr_load.audio.clip import Recording, Rules
from asr_load.audio.columns import normal, segment_columns, unused_times
from asr_load.audio.convert import convert
from asr_load.audio.open import open_source
from asr_load.audio.source import DatasetSpec, Source
from asr_load.errors import InputError
from conftest import CHECKOUT, noise, write_folder
from harness.datasets import recordings


def write_table(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a table in the format of its suffix."""
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with file.open("w", newline="") as data:
            writer = csv.DictWriter(data, rows[0], delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return file


def source(dataset: Path, **words: Any) -> Source:
    return open_source(DatasetSpec(str(dataset), **words))


TABLES = ("t.jsonl", "t.json", "t.csv", "t.tsv", "rows.parquet", "metadata.parquet", "metadata.csv", "metadata.jsonl")


@pytest.fixture
def long(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "long.wav", noise(6.0), 16000)
    return tmp_path / "long.wav"


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "times",
    [
        {"start": 1.5, "end": 3.5},
        {"start_time": 1.5, "end_time": 3.5},
        {"begin_time": "1.5", "end_time": "3.5"},
        {"start": 1.5, "duration": 2.0},
        {"offset": 1.5, "dur": 2},
        {"offset": 1.5, "duration": 2.0, "end": 9},
        {"start_ms": 1500, "end_ms": 3500},
        {"Start Time (ms)": 1500, "Duration (S)": 2},
        {"startTime": "00:00:01.500", "endTime": "0:03,5"},
        {"segment_start": 1.5, "segment_stop": 3.5, "duration": 6},
        {"xmin": 1.5, "xmax": 3.5},
        {"onset": 1.5, "offset": 3.5},
    ],
)
def test_rows_are_cut_by_time_columns(long: Path, table: str, times: dict[str, Any]) -> None:
    file = write_table(long.parent / table, [{"file_name": "long.wav", **times, "text": "a part"}])
    (row,) = recordings(file)
    assert row.offset_s == 1.5
    assert row.length_s == pytest.approx(2.0)
    (clip,) = convert(row, Rules())
    assert clip.duration_s == 2.0


def test_columns_used_for_cutting_are_reported(long: Path) -> None:
    rows = [{"file": "long.wav", "start": 0, "end": 1, "speaker": 7, "text": "it"}]
    for table in ("t.csv", "rows.parquet"):
        found = source(write_table(long.parent / table, rows))
        assert len(found.notes) == 1
        assert found.notes[0].endswith(
            "text from the column 'text', segments of files from the columns 'start' and 'end'"
        )
        assert found.warnings == []
        assert found.origin["segment_columns"] == ["start", "end"]


@pytest.mark.parametrize("table", TABLES)
def test_unused_columns_that_look_like_times_are_warned_about_once(long: Path, table: str) -> None:
    rows = [
        {"file": "long.wav", "from": n, "time_to": n + 1.0, "duration": 6, "created_at": "2024-05-01", "text": "it"}
        for n in range(3)
    ]
    file = write_table(long.parent / table, rows)
    command = [sys.executable, "scripts/prepare.py", "--dataset", str(file), "--out", str(long.parent / "out")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "look like times but are not used: 'from', 'time_to'. Each row is sent as its whole file" in warnings[0]


@pytest.mark.parametrize(
    "row",
    [
        {"file": "a.wav", "text": "it", "duration": 3.2, "sample_rate": 16000, "gender": 1, "text_length": 5},
        {"file": "a.wav", "text": "it", "timestamp": 1_700_000_000, "start_time": None, "is_end": True},
        {"file": "a.wav", "start": 0.5, "end": 2.0, "duration": 1.5},
    ],
)
def test_other_columns_do_not_look_like_times(row: dict[str, Any]) -> None:
    assert unused_times(row) == []


def test_embedded_audio_is_not_cut(long: Path) -> None:
    row = {"audio": {"bytes": long.read_bytes(), "path": "a.wav"}, "start": 1.5, "end": 3.5, "from": 1, "text": "it"}
    found = source(write_table(long.parent / "rows.parquet", [row]))
    assert (found.warnings, found.origin["segment_columns"]) == ([], [])
    (recording,) = found.rows(None)
    assert (recording.offset_s, recording.length_s) == (0.0, None)


def test_file_that_already_is_the_segment_is_not_cut_again(tmp_path: Path) -> None:
    """AMI is such a data set: its times are those of the meeting."""
    folder = write_folder(tmp_path, {"one": 2.0, "long": 6.0})
    rows: list[dict[str, Any]] = [
        {"file": "one.wav", "begin_time": 1.3, "end_time": 3.31, "text": "it"},
        {"file": "one.wav", "begin_time": 100.0, "end_time": 102.0, "text": "it"},
        {"file": "one.wav", "begin_time": 100.0, "end_time": 104.0, "text": "it is elsewhere"},
        {"file": "long.wav", "begin_time": 1.3, "end_time": 3.3, "text": "it is to be cut"},
    ]
    write_table(folder / "manifest.jsonl", rows)
    one, two, elsewhere, cut = recordings(folder)
    assert [next(convert(row, Rules())).duration_s for row in (one, two, cut)] == [2.0, 2.0, 2.0]
    with pytest.raises(Exception, match="empty"):
        next(convert(elsewhere, Rules()))


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ({"start": "soon", "end": 2}, "row 1: start 'soon' is not a time: use seconds or hours:minutes:seconds"),
        ({"start": 2, "end": -1}, "row 1: end -1 is not a time"),
        ({"start": 2.0, "end": 1.0}, "row 1: start 2.0 and end 1.0: a segment must be at least 0.01 s long"),
        ({"offset": 2.0, "duration": 0}, "row 1: offset 2.0 and duration 0: a segment must be at least 0.01 s long"),
    ],
)
def test_invalid_times_are_rejected_with_their_row(long: Path, times: dict[str, Any], said: str) -> None:
    for table in ("t.jsonl", "rows.parquet"):
        file = write_table(long.parent / table, [{"file": "long.wav", "text": "it", **times}])
        with pytest.raises(InputError) as caught:
            recordings(file)
        assert said in str(caught.value)


@pytest.mark.parametrize("table", ["t.csv", "t.jsonl", "rows.parquet"])
@pytest.mark.parametrize("start", ["2024-05-01 10:15:00", "2024-05-01T10:15:00Z", "01.05.2024", 1_714_558_500])
def test_dates_of_recordings_do_not_cut(long: Path, table: str, start: str | int) -> None:
    row = {"file": "long.wav", "start_time": start, "end_time": start, "duration": 6.0, "text": "it"}
    found = source(write_table(long.parent / table, [row]))
    assert (found.warnings, found.origin["segment_columns"]) == ([], [])
    assert [(row.offset_s, row.length_s) for row in found.rows(None)] == [(0.0, None)]


def test_row_without_times_among_others_is_the_whole_file(long: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"file": "long.wav", "start": 1, "end": 2},
        {"file": "long.wav", "start": None, "end": None},
    ]
    write_table(long.parent / "t.csv", rows)
    assert [(row.offset_s, row.length_s) for row in recordings(long.parent)] == [(1.0, 1.0), (0.0, None)]


@pytest.mark.parametrize("table", ["t.jsonl", "t.json", "t.csv", "t.tsv", "rows.parquet"])
@pytest.mark.parametrize(
    ("audio", "text"),
    [
        ("filename", "transcript"),
        ("wav_path", "text"),
        ("audio_path", "sentence"),
        ("wav_filename", "transcript"),
        ("path", "sentence"),
        ("File Name", "Text"),
        ("audioPath", "Transcription"),
        ("file-path", "raw_text"),
    ],
)
def test_common_names_of_audio_and_text_columns(tmp_path: Path, table: str, audio: str, text: str) -> None:
    soundfile.write(tmp_path / "a.wav", noise(0.1), 16000)
    row = {audio: "a.wav", "wav_filesize": 3244, text: "it"}
    file = write_table(tmp_path / table, [row])
    assert recordings(file) == [Recording("a", "it", tmp_path / "a.wav")]
    if table != "rows.parquet":
        assert recordings(tmp_path) == recordings(file)


def test_column_names_are_normalized() -> None:
    names = ("file_name", "File Name", "fileName", "FileName", "file-name", " file name ")
    assert {normal(name) for name in names} == {"file_name"}


def test_seconds_take_precedence_over_milliseconds() -> None:
    found = segment_columns(("end_ms", "start_ms", "start", "end"))
    assert found is not None
    assert found.names == ["start", "end"]


def test_missing_times_mean_the_whole_file_in_each_notation() -> None:
    for missing in (None, "", float("nan")):
        row = {"start": missing, "end": missing}
        columns = segment_columns(tuple(row))
        assert columns is not None
        assert not columns.cut(row)
        assert columns.segment(row) == (0.0, None)
        assert columns.segment({"start": 1.5, "end": missing}) == (1.5, None)
