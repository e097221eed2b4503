"""Folders of speech in common layouts: each gives clips with their texts, or a one-line error."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from asr_load.audio.clip import Recording, Rules
from asr_load.audio.convert import convert
from asr_load.audio.source import DatasetSpec, open_source
from asr_load.errors import InputError
from conftest import noise


def write(file: Path, seconds: float = 0.1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, noise(seconds), 16000, format="WAV" if file.suffix == "" else None)
    return file


def texts(dataset: Path, **words: Any) -> dict[str, str]:
    """The text of each recording of a data set, by its id. Check that all of them have audio."""
    rows = list(open_source(DatasetSpec(str(dataset), **words)).rows(None))
    assert all(next(convert(row, Rules())).duration_s >= 0.05 for row in rows)
    return {row.id: row.text for row in rows}


def refusal(dataset: Path | str, **words: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(open_source(DatasetSpec(str(dataset), **words)).rows(None))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def librispeech(top: Path) -> None:
    for split, speaker, chapter in (("test-clean", "61", "70968"), ("dev-other", "116", "288045")):
        place = top / "LibriSpeech" / split / speaker / chapter
        lines = []
        for number in range(2):
            name = f"{speaker}-{chapter}-{number:04d}"
            write(place / f"{name}.flac")
            lines.append(f"{name} {split.upper()} SENTENCE {number}\n")
        (place / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    (top / "LibriSpeech" / "SPEAKERS.TXT").write_text("; no manifest\n")


def test_unpacked_librispeech(tmp_path: Path) -> None:
    librispeech(tmp_path)
    one = {f"61-70968-000{n}": f"TEST-CLEAN SENTENCE {n}" for n in range(2)}
    assert texts(tmp_path, split="test-clean") == one
    assert texts(tmp_path / "LibriSpeech" / "test-clean") == one
    assert len(texts(tmp_path)) == 4
    assert "no split 'test'; it has: dev-other, test-clean" in refusal(tmp_path / "LibriSpeech", split="test")


def kaldi(top: Path, *, segments: bool, scp: str = "{file}") -> Path:
    file = write(top / "wav" / "call.wav", 3.0)
    data = top / "data" / "test"
    data.mkdir(parents=True)
    relative = file.relative_to(top)
    (data / "wav.scp").write_text("call " + scp.format(file=relative) + "\n")
    if segments:
        (data / "segments").write_text("call-1 call 0.5 1.5\ncall-2 call 2.0 -1\n")
        (data / "text").write_text("call-1 the first\ncall-2 the second part\n")
    else:
        (data / "text").write_text("call all of it\n")
    (data / "utt2spk").write_text("call-1 a\n")
    return data


def test_kaldi_folder_with_and_without_segments(tmp_path: Path) -> None:
    data = kaldi(tmp_path / "whole", segments=False)
    assert texts(data) == texts(tmp_path / "whole" / "data", split="test") == {"call": "all of it"}
    data = kaldi(tmp_path / "cut", segments=True)
    file = tmp_path / "cut" / "wav" / "call.wav"
    assert list(open_source(DatasetSpec(str(data))).rows(None)) == [
        Recording("call-1", "the first", file, 0.5, 1.0),
        Recording("call-2", "the second part", file, 2.0, None),
    ]
    assert "no split 'train'; it has: test" in refusal(tmp_path / "cut" / "data", split="train")


def test_kaldi_commands_are_not_run(tmp_path: Path) -> None:
    data = kaldi(tmp_path / "read", segments=False, scp="flac -c -d -s {file} |")
    assert texts(data) == {"call": "all of it"}
    for number, command in enumerate(
        ("touch was-run; cat {file} |", "sox {file} -r 8000 -t wav - |", "'{file} |", "|")
    ):
        data = kaldi(tmp_path / str(number), segments=False, scp=command)
        assert "call is the output of a command, which prepare does not run" in refusal(data)
    assert not list(tmp_path.rglob("was-run"))


@pytest.mark.parametrize(
    ("segment", "said"),
    [
        ("call-1 call 1.5 0.5", "begins at 1.5 s and ends at 0.5 s"),
        ("call-1 call nan 2", "begins at nan s"),
        ("call-1 call", "must have the form RECORDING BEGIN END"),
        ("call-1 other 0 1", "refers to 'other', which is not in wav.scp"),
    ],
)
def test_invalid_kaldi_segments_are_rejected(tmp_path: Path, segment: str, said: str) -> None:
    data = kaldi(tmp_path, segments=True)
    (data / "segments").write_text(segment + "\n")
    assert said in refusal(data)


def test_audiofolder_with_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / split / "one.wav")
        write(tmp_path / split / "deep" / "two.wav")
        table = f"file_name,transcription\none.wav,{split} one\ndeep/two.wav,{split} two\n"
        (tmp_path / split / "metadata.CSV").write_text(table)
    assert texts(tmp_path, split="train") == texts(tmp_path / "train") == {"one": "train one", "two": "train two"}
    source = open_source(DatasetSpec(str(tmp_path)))
    assert len(list(source.rows(None))) == 4
    assert source.notes == [
        "read test/metadata.CSV, train/metadata.CSV",
        "audio from the column 'file_name', text from the column 'transcription'",
    ]
    assert "no split 'dev'; it has: test, train" in refusal(tmp_path, split="dev")
    (tmp_path / "test" / "metadata.CSV").write_text("file_name,text\none.wav,other\n")
    assert "in different columns" in refusal(tmp_path)


def test_splits_of_audio_files_without_a_manifest(tmp_path: Path) -> None:
    write(tmp_path / "test" / "a" / "x.wav")
    (tmp_path / "test" / "a" / "x.txt").write_text("its text\n")
    write(tmp_path / "train" / "y.wav")
    source = open_source(DatasetSpec(str(tmp_path), split="test"))
    assert [(row.id, row.text) for row in source.rows(None)] == [("x", "its text")]
    assert source.notes == ["no manifest; read the text of 1 of 1 files from the .txt next to each"]
    assert texts(tmp_path) == {"x": "its text", "y": ""}
    assert texts(tmp_path / "test" / "a" / "x.wav") == {"x": "its text"}
    assert "no split 'dev'; it has: test, train" in refusal(tmp_path, split="dev")


def test_common_voice_folder_of_one_version(tmp_path: Path) -> None:
    place = tmp_path / "cv-corpus-17.0" / "en"
    write(place / "clips" / "a.mp3")
    (place / "test.tsv").write_text('client_id\tpath\tsentence\nx\ta.mp3\tHe said "no\n')
    (place / "reported.tsv").write_text("sentence_id\treason\n1\tnone\n")
    assert texts(tmp_path, split="test") == {"a": 'He said "no'}


def test_hidden_files_and_link_loops_are_skipped(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    for name in ("._a.wav", ".cache/b.wav", "__MACOSX/c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no audio")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path.parent / f"{tmp_path.name}-linked" / "d.wav")
    (tmp_path / "linked").symlink_to(tmp_path.parent / f"{tmp_path.name}-linked")
    assert list(texts(tmp_path, allow_outside=True)) == ["a", "d"]
    assert "--allow-outside" in refusal(tmp_path)


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
    write(tmp_path / "a.wav")
    (tmp_path / name).write_bytes(data)
    assert texts(tmp_path) == texts(tmp_path / name) == {"a": "Grüße, „Welt“"}


def test_broken_tables_are_rejected_with_their_line(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
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
    write(tmp_path / "a.wav")
    (tmp_path / "t.csv").write_text("file_name,words\na.wav,said\n")
    notes = open_source(DatasetSpec(str(tmp_path))).notes
    assert notes == [
        "no text column among file_name, words, so no WER; set --text-column to change this",
        "audio from the column 'file_name'",
    ]
    assert texts(tmp_path, text_column="words") == {"a": "said"}


@pytest.mark.parametrize(
    "name",
    [
        "a b.wav",
        "file://{folder}/a%20b.wav",
        "{folder}/a b.wav",
        "sub\\a b.wav",
        "sub/a b",
        "clip.wav",
        "in wavs",
    ],
)
def test_file_names_of_every_form_are_found(tmp_path: Path, name: str) -> None:
    for file in ("a b.wav", "sub/a b.wav", "clips/clip.wav", "wavs/in wavs.wav"):
        write(tmp_path / file)
    line = {"audio": name.format(folder=tmp_path), "text": "it"}
    for cell in (
        line["audio"],
        {"path": line["audio"]},
        {"bytes": None, "path": line["audio"], "sampling_rate": 16000},
    ):
        (tmp_path / "manifest.jsonl").write_text(json.dumps(line | {"audio": cell}) + "\n")
        assert list(texts(tmp_path).values()) == ["it"]


SAMPLES = (noise(0.5) * 30000).astype("<i2")


@pytest.mark.parametrize(
    ("cell", "beside"),
    [
        ({"array": (SAMPLES / 32768).tolist(), "sampling_rate": 16000, "path": "said.wav"}, {}),
        ({"array": SAMPLES.tolist(), "sampling_rate": 16000, "path": "said.wav"}, {}),
        ((SAMPLES / 32768).tolist(), {"sampling_rate": 16000, "id": "said"}),
        ({"array": [(SAMPLES / 32768).tolist()] * 2, "sample_rate": 16000.0, "path": "said.wav"}, {}),
        ({"array": (SAMPLES.astype(int) * 65536).tolist(), "sampling_rate": 16000, "path": "said.wav"}, {}),
    ],
)
def test_decoded_arrays_are_read(tmp_path: Path, cell: Any, beside: dict[str, Any]) -> None:
    """They may be in JSON, and in parquet as lists in a struct."""
    row = {"audio": cell, "text": "it", **beside}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    for dataset in (tmp_path, tmp_path / "rows.parquet"):
        (recording,) = open_source(DatasetSpec(str(dataset))).rows(None)
        assert (recording.id, recording.text) == ("said", "it")
        clip = next(convert(recording, Rules()))
        pcm = np.frombuffer(base64.b64decode(clip.audio_b64)[44:], "<i2")
        assert np.array_equal(pcm, SAMPLES)


def test_base64_audio_in_json_is_read(tmp_path: Path) -> None:
    data = base64.b64encode(write(tmp_path / "x.wav").read_bytes()).decode()
    for number, word in enumerate((data, f"data:audio/wav;base64,{data}")):
        (tmp_path / "m.jsonl").write_text(json.dumps({"audio": {"bytes": word}, "id": number, "text": "it"}) + "\n")
        assert texts(tmp_path / "m.jsonl") == {str(number): "it"}
    for cell, said in (
        ({"bytes": "no base64!"}, "bytes that are not base64"),
        ({"array": [0.1, 0.2]}, "samples without a sampling_rate"),
        ({"array": ["x"], "sampling_rate": 16000}, "malformed samples"),
        ([[[1.0]]], "samples"),
    ):
        (tmp_path / "m.jsonl").write_text(json.dumps({"audio": cell}) + "\n")
        assert said in refusal(tmp_path / "m.jsonl")


def test_audio_urls_in_rows_are_fetched(tmp_path: Path) -> None:
    """In a manifest and in parquet: each URL is fetched, 404 skips the row, and a dead server is a one-line error."""
    write(tmp_path / "web" / "a.wav")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path / "web"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    rows = [{"audio": f"{url}/a.wav", "text": "it"}, {"audio": f"{url}/gone.wav", "text": "gone"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    for name in ("m.jsonl", "m.parquet"):
        here, gone = open_source(DatasetSpec(str(tmp_path / name), allow_outside=True)).rows(None)
        assert (here.id, here.text) == ("a", "it")
        assert here.audio == (tmp_path / "web" / "a.wav").read_bytes()
        assert (gone.id, gone.audio) == ("gone", None)
    server.shutdown()
    server.server_close()
    for name in ("m.jsonl", "m.parquet"):
        assert f"row 1: {url}/a.wav cannot be downloaded" in refusal(tmp_path / name, allow_outside=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_metadata_in_parquet_is_read(tmp_path: Path) -> None:
    write(tmp_path / "audio" / "a.wav")
    pq.write_table(pa.Table.from_pylist([{"file_name": "audio/a.wav", "text": "it"}]), tmp_path / "metadata.parquet")
    assert texts(tmp_path) == {"a": "it"}
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 and no more")
    assert "metadata.parquet cannot be read" in refusal(tmp_path)


def test_broken_parquet_is_rejected(tmp_path: Path) -> None:
    """It may be truncated or broken in the middle. The error is one line and names the row."""
    wav = write(tmp_path / "x.wav").read_bytes()
    rows = [{"audio": {"bytes": wav + os.urandom(2000), "path": f"{n}.wav"}, "text": str(n)} for n in range(200)]
    file = tmp_path / "set" / "train-00000-of-00001.parquet"
    file.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=50, use_dictionary=False)
    assert len(texts(file.parent)) == 200
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    for dataset in (file, file.parent):
        assert "cannot be read" in refusal(dataset)
    broken = bytearray(whole)
    broken[len(whole) // 2 : len(whole) // 2 + 50_000] = bytes(50_000)
    file.write_bytes(broken)
    for dataset in (file, file.parent):
        assert "cannot be read" in refusal(dataset)


def test_dictionary_encoded_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    """The file has few MB, but its rows would take gigabytes if all were decoded at once."""
    wav = BytesIO()
    soundfile.write(wav, np.zeros(8_000_000, "<i2") + 9, 16000, format="WAV")
    audio = pa.DictionaryArray.from_arrays(pa.array([0] * 300), [wav.getvalue()])
    pq.write_table(pa.table({"audio": audio, "text": ["it"] * 300}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1_000_000
    rows = iter(open_source(DatasetSpec(str(tmp_path / "bomb.parquet"))).rows(None))
    before = pa.total_allocated_bytes()
    assert next(rows).text == "it"
    assert pa.total_allocated_bytes() - before < 1_000_000_000


def unreadable(folder: Path) -> None:
    for suffix in (".m4a", ".aac", ".webm", ".mp4", ".amr"):
        (folder / f"other{suffix}").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(500))


def test_files_that_need_ffmpeg_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    unreadable(tmp_path)
    assert len(list(open_source(DatasetSpec(str(tmp_path))).rows(None))) == 6


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda top: (top / "readme.txt").write_text("x"), "have no audio files, manifest"),
        (lambda top: (top / "test.tar.gz").write_bytes(b"x"), "unpack test.tar.gz first"),
        (lambda top: (top / "state.json").write_text("{}"), "cannot be read"),
        (lambda top: (top / "x.arrow").write_bytes(b"x"), "cannot be read"),
        (lambda top: (top / "x.tar").write_bytes(b"x" * 600), "cannot be read"),
        (lambda top: (top / "x.tar").write_bytes(bytes(10240)), "no audio column"),
    ],
)
def test_folders_without_a_data_set_are_refused(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    make(tmp_path)
    assert said in refusal(tmp_path)


def test_files_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    for name, said in (("a.zip", "unpack it"), ("a.doc", "is not a data set"), ("a.parquet", "cannot be read")):
        (tmp_path / name).write_bytes(b"x" * 100)
        assert said in refusal(tmp_path / name)
    assert "remove --text-column x" in refusal(write(tmp_path / "a.wav"), text_column="x")


def test_parquet_rows_are_read_like_table_rows(tmp_path: Path) -> None:
    """Segments are cut out of the files that rows name. Audio within a row has already been cut."""
    wav = write(tmp_path / "long.wav", 3.0)
    rows = [{"audio": "long.wav", "text": "a part", "offset": 0.5, "duration": 1.0}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (row,) = open_source(DatasetSpec(str(tmp_path / "rows.parquet"))).rows(None)
    assert row == Recording("long", "a part", wav, 0.5, 1.0)
    inside = [{"audio": {"bytes": wav.read_bytes(), "path": "a.wav"}, "text": "it", "offset": 0.5, "duration": 1.0}]
    pq.write_table(pa.Table.from_pylist(inside), tmp_path / "rows.parquet")
    (row,) = open_source(DatasetSpec(str(tmp_path / "rows.parquet"))).rows(None)
    assert (row.offset_s, row.length_s) == (0.0, None)
    pq.write_table(pa.Table.from_pylist([{"audio": "long.wav", "text": ["a", "b"]}]), tmp_path / "rows.parquet")
    assert "row 1: the column 'text' does not hold text" in refusal(tmp_path / "rows.parquet")


def test_system_errors_give_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be read: File name too long" in refusal("x" * 5000)

    def refuse(_: Path) -> str:
        raise PermissionError(13, "Permission denied")

    write(tmp_path / "a.wav")
    monkeypatch.setattr("asr_load.audio.folder.fingerprint", refuse)
    assert "cannot be read: Permission denied" in refusal(tmp_path)
