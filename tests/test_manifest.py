"""Manifests and tables next to audio files: formats, encodings, and the columns that are read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import soundfile

from asr_load.audio.clip import Recording
from asr_load.audio.open import open_source
from asr_load.audio.source import DatasetSpec
from conftest import noise
from harness.datasets import recordings, refusal, texts, write_audio


def table(encoding: str, delimiter: str = ",", end: str = "\n") -> bytes:
    rows = (("path", "sentence"), ("a.wav", "Grüße, „Welt“"))
    quote = '"' if delimiter == "," else ""
    return "".join(delimiter.join(f"{quote}{cell}{quote}" for cell in row) + end for row in rows).encode(encoding)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("bom.csv", table("utf-8-sig")),
        ("excel.csv", table("utf-16")),
        ("excel.tsv", table("utf-16", "\t", "\r\n")),
        ("german.csv", table("utf-8-sig", ";", "\r\n")),
        ("bars.csv", table("utf-8", "|")),
        ("tabs.csv", table("utf-8", "\t")),
        ("commas.tsv", table("utf-8", ",")),
        ("bom.jsonl", json.dumps({"path": "a.wav", "sentence": "Grüße, „Welt“"}).encode("utf-8-sig")),
        ("wide.jsonl", json.dumps({"path": "a.wav", "sentence": "Grüße, „Welt“"}).encode("utf-16")),
        ("array.json", json.dumps([{"path": "a.wav", "sentence": "Grüße, „Welt“"}], indent=1).encode()),
        ("upper.JSONL", json.dumps({"path": "a.wav", "sentence": "Grüße, „Welt“"}).encode()),
    ],
)
def test_tables_in_every_encoding_and_delimiter(tmp_path: Path, name: str, data: bytes) -> None:
    write_audio(tmp_path / "a.wav")
    (tmp_path / name).write_bytes(data)
    assert texts(tmp_path) == texts(tmp_path / name) == {"a": "Grüße, „Welt“"}


def test_broken_tables_are_rejected_with_their_line(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    file = tmp_path / "t.csv"
    file.write_bytes("path,sentence\na.wav,fine\nb.wav,Grüße\n".encode("latin-1"))
    assert "line 3: not UTF-8" in refusal(tmp_path)
    file.write_text('path,sentence\na.wav,"' + "x" * 200_000 + '"\n')
    assert "t.csv, line 2: field larger than field limit" in refusal(tmp_path)
    file.unlink()
    (tmp_path / "t.jsonl").write_text('{"path": "a.wav", "text": ["a", "b"]}\n')
    assert "row 1: the column 'text' does not hold text" in refusal(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"path": 5}\n')
    assert "row 1: '5' is not audio" in refusal(tmp_path)


def test_detected_columns_are_reported(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    (tmp_path / "t.csv").write_text("file_name,words\na.wav,said\n")
    notes = open_source(DatasetSpec(str(tmp_path))).notes
    assert notes == [
        "no text column among file_name, words, so no WER; set --text-column to change this",
        "audio from the column 'file_name'",
    ]
    assert texts(tmp_path, text_column="words") == {"a": "said"}


@pytest.mark.parametrize("name", ["manifest.jsonl", "metadata.csv", "anything.tsv"])
@pytest.mark.parametrize("file_key", ["file", "file_name", "path", "audio", "audio_filepath"])
def test_manifest_in_each_format_is_read(tmp_path: Path, name: str, file_key: str) -> None:
    soundfile.write(tmp_path / "one.wav", noise(0.1), 16000)
    row = {file_key: "one.wav", "transcription": 'He said "no", twice'}
    with (tmp_path / name).open("w", newline="") as file:
        if name.endswith("jsonl"):
            file.write(json.dumps(row) + "\n")
        elif name.endswith("csv"):
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row)
        else:
            file.write("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    assert recordings(tmp_path) == [Recording("one", 'He said "no", twice', tmp_path / "one.wav")]
    assert recordings(tmp_path / name) == recordings(tmp_path)


def test_id_comes_from_the_manifest_or_the_file_name(tmp_path: Path) -> None:
    lines = [{"file": "a/x.wav", "id": "first"}, {"file": "b/x.wav"}, {"text": "no file at all"}]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [row.id for row in recordings(tmp_path)] == ["first", "x", "row-000002"]
    assert recordings(tmp_path)[2].audio is None


@pytest.mark.parametrize("name", ["manifest.jsonl", "train_manifest.json"])
def test_nemo_manifest_with_segments(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / "long.wav", noise(3.0), 16000)
    lines = [
        {"audio_filepath": "long.wav", "duration": 3.0, "text": "all"},
        {"audio_filepath": "long.wav", "offset": 0.5, "duration": 1.0, "text": "a part"},
        {"audio_filepath": "long.wav", "offset": 2, "text": "the rest"},
    ]
    (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "other.json").write_text('{"shards": []}')
    long = tmp_path / "long.wav"
    for dataset in (tmp_path, tmp_path / name):
        assert recordings(dataset) == [
            Recording("long", "all", long),
            Recording("long", "a part", long, 0.5, 1.0),
            Recording("long", "the rest", long, 2.0, None),
        ]
    for bad in (-1, "soon", "nan"):
        (tmp_path / name).write_text(json.dumps({"audio_filepath": "long.wav", "offset": bad}) + "\n")
        assert f"row 1: offset {bad!r} is not a time: use seconds" in refusal(tmp_path)
