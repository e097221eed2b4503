"""Records in their file: written under a lock, and read back."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from asr_load.errors import InputError
from asr_load.results.record_file import RECORDS, RecordFile, append_lines, read_records
from asr_load.results.runfile import Refused, write_run
from asr_load.results.schemas import schema
from asr_load.results.summary import read_finished
from asr_load.stream.record import REALTIME, RealtimeRecord, decode_record, encode_record
from harness.realtime import speak
from harness.records import record, run_info


def test_process_that_writes_records_locks_the_file(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / RECORDS)
    assert not append_lines(tmp_path / RECORDS, [b"{}"])
    file.close()
    assert append_lines(tmp_path / RECORDS, [b"{}"])
    assert (tmp_path / RECORDS).read_bytes() == b"{}\n"


def test_records_are_read_back_and_a_truncated_line_is_skipped(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.write(record(0, text="zwölf „Ü“"))
    file.close()
    with (tmp_path / "records.jsonl").open("ab") as raw:
        raw.write(b'{"clip": "half')
    assert list(read_records(tmp_path)) == [record(0, text="zwölf „Ü“")]
    with (tmp_path / "records.jsonl").open("ab") as raw:
        raw.write(b'\n{"clip": 1}\n')
    assert list(read_records(tmp_path)) == [record(0, text="zwölf „Ü“")]


def test_unreadable_line_is_skipped_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    lines = [encode_record(record(number)) for number in range(3)]
    odd = [b"", b"\xff", b"[" * 5000, lines[0].replace(b'"seq":0', b'"seq":true')]
    file.write_bytes(b"\n".join([*lines, *odd, b""]))
    write_run(tmp_path, run_info())
    finished = read_finished(tmp_path)
    assert [each.seq for each in finished.records] == [0, 1, 2]
    assert finished.info.refused == [
        Refused(None, "it is malformed", 3),
        Refused(None, "its seq is invalid: Expected `int`, got `bool`", 1),
    ]
    assert finished.summary.refused == 4
    assert any("skipped 3 lines of records.jsonl" in reason for reason in finished.summary.validity.reasons)
    file.write_bytes(b"\n".join([*odd, b""]))
    with pytest.raises(InputError, match="line 1: not a record"):
        read_finished(tmp_path)


def test_realtime_records_are_read_back_unchanged(clips: Path, tmp_path: Path) -> None:
    lines = speak(clips, tmp_path / "run", "vllm", "-u", "1", "--requests", "1").results / "records.jsonl"
    line = lines.read_bytes().rstrip(b"\n")
    record = decode_record(line)
    assert isinstance(record, RealtimeRecord)
    jsonschema.validate(json.loads(line), schema("realtime-record"))
    assert encode_record(record) == line
    hostile = json.dumps({**json.loads(line), "api": "chat", "text": REALTIME.decode()}, separators=(",", ":")).encode()
    assert not isinstance(decode_record(hostile), RealtimeRecord)
