"""Folders of speech in common layouts: each gives clips with their texts, or a one-line error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from asr_load.audio.clip import Recording
from asr_load.audio.open import open_source
from asr_load.audio.source import DatasetSpec
from conftest import noise, write_folder
from harness.audio import encoded
from harness.datasets import recordings, refusal, texts, write_audio


def librispeech(top: Path) -> None:
    for split, speaker, chapter in (("test-clean", "61", "70968"), ("dev-other", "116", "288045")):
        place = top / "LibriSpeech" / split / speaker / chapter
        lines = []
        for number in range(2):
            name = f"{speaker}-{chapter}-{number:04d}"
            write_audio(place / f"{name}.flac")
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


def test_audiofolder_with_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_audio(tmp_path / split / "one.wav")
        write_audio(tmp_path / split / "deep" / "two.wav")
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
    write_audio(tmp_path / "test" / "a" / "x.wav")
    (tmp_path / "test" / "a" / "x.txt").write_text("its text\n")
    write_audio(tmp_path / "train" / "y.wav")
    source = open_source(DatasetSpec(str(tmp_path), split="test"))
    assert [(row.id, row.text) for row in source.rows(None)] == [("x", "its text")]
    assert source.notes == ["no manifest; read the text of 1 of 1 files from the .txt next to each"]
    assert texts(tmp_path) == {"x": "its text", "y": ""}
    assert texts(tmp_path / "test" / "a" / "x.wav") == {"x": "its text"}
    assert "no split 'dev'; it has: test, train" in refusal(tmp_path, split="dev")


def test_common_voice_folder_of_one_version(tmp_path: Path) -> None:
    place = tmp_path / "cv-corpus-17.0" / "en"
    write_audio(place / "clips" / "a.mp3")
    (place / "test.tsv").write_text('client_id\tpath\tsentence\nx\ta.mp3\tHe said "no\n')
    (place / "reported.tsv").write_text("sentence_id\treason\n1\tnone\n")
    assert texts(tmp_path, split="test") == {"a": 'He said "no'}


def test_hidden_files_and_link_loops_are_skipped(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    for name in ("._a.wav", ".cache/b.wav", "__MACOSX/c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no audio")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    write_audio(tmp_path.parent / f"{tmp_path.name}-linked" / "d.wav")
    (tmp_path / "linked").symlink_to(tmp_path.parent / f"{tmp_path.name}-linked")
    assert list(texts(tmp_path, allow_outside=True)) == ["a", "d"]
    assert "--allow-outside" in refusal(tmp_path)


def test_metadata_in_parquet_is_read(tmp_path: Path) -> None:
    write_audio(tmp_path / "audio" / "a.wav")
    pq.write_table(pa.Table.from_pylist([{"file_name": "audio/a.wav", "text": "it"}]), tmp_path / "metadata.parquet")
    assert texts(tmp_path) == {"a": "it"}
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 and no more")
    assert "metadata.parquet cannot be read" in refusal(tmp_path)


def test_broken_parquet_is_rejected(tmp_path: Path) -> None:
    """It may be truncated or broken in the middle. The error is one line and names the row."""
    wav = write_audio(tmp_path / "x.wav").read_bytes()
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
    write_audio(tmp_path / "a.wav")
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
    assert "remove --text-column x" in refusal(write_audio(tmp_path / "a.wav"), text_column="x")


def test_parquet_rows_are_read_like_table_rows(tmp_path: Path) -> None:
    """Segments are cut out of the files that rows name. Audio within a row has already been cut."""
    wav = write_audio(tmp_path / "long.wav", 3.0)
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

    write_audio(tmp_path / "a.wav")
    monkeypatch.setattr("asr_load.audio.folder.fingerprint", refuse)
    assert "cannot be read: Permission denied" in refusal(tmp_path)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "private.wav").write_bytes(encoded(noise(0.5)))
    return folder / "private.wav"


def as_manifest(folder: Path, name: str) -> Path:
    (folder / "manifest.jsonl").write_text(json.dumps({"audio_filepath": name, "text": "it"}) + "\n")
    return folder


def as_csv(folder: Path, name: str) -> Path:
    (folder / "metadata.csv").write_text(f"file_name,text\n{name},it\n")
    return folder


def as_kaldi(folder: Path, name: str) -> Path:
    (folder / "wav.scp").write_text(f"one {name}\n")
    (folder / "text").write_text("one it\n")
    return folder


def as_parquet(folder: Path, name: str) -> Path:
    pq.write_table(pa.Table.from_pylist([{"audio": {"path": name}, "text": "it"}]), folder / "rows.parquet")
    return folder / "rows.parquet"


def as_link(folder: Path, name: str) -> Path:
    (folder / "one.wav").symlink_to(folder / name)
    return folder


@pytest.mark.parametrize("written", [as_manifest, as_csv, as_kaldi, as_parquet, as_link])
@pytest.mark.parametrize("spelling", ["absolute", "relative", "file://"])
def test_files_outside_need_allow_outside(
    tmp_path: Path, outside: Path, written: Callable[[Path, str], Path], spelling: str
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    name = {"absolute": str(outside), "relative": "../elsewhere/private.wav", "file://": outside.as_uri()}[spelling]
    if spelling == "file://" and written in (as_kaldi, as_link):
        pytest.skip("no spelling of this layout")
    dataset = written(folder, name)
    said = refusal(dataset)
    assert "is outside of" in said
    assert "--allow-outside" in said
    (row,) = recordings(dataset, allow_outside=True)
    assert isinstance(row.audio, Path)
    assert row.audio.resolve() == outside
    # A file in the folder is accepted, however it is named.
    inside = tmp_path / "inner"
    inside.mkdir()
    (inside / "private.wav").write_bytes(encoded(noise(0.5)))
    if written is not as_link:
        (row,) = recordings(written(inside, str(inside / "private.wav")))
        assert row.audio == inside / "private.wav"


@pytest.mark.parametrize("written", [as_manifest, as_parquet])
@pytest.mark.parametrize("url", ["http://user:pw@127.0.0.1:9/a.wav?token=1", "s3://bucket/a.wav", "ftp://h/a.wav"])
def test_urls_need_allow_outside(
    tmp_path: Path, written: Callable[[Path, str], Path], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(f"asr_load.audio.{'folder' if written is as_manifest else 'hub'}.fetch", asked.append)
    dataset = written(tmp_path, url)
    said = refusal(dataset)
    assert "is a URL outside of the data set; to allow this, add --allow-outside" in said
    assert "pw" not in said
    assert "token" not in said
    assert not asked
    recordings(dataset, allow_outside=True)
    assert asked == [url]


def test_common_voice_layout(tmp_path: Path) -> None:
    write_folder(tmp_path / "clips", {"cv": 0.1})
    for split in ("test", "dev"):
        (tmp_path / f"{split}.tsv").write_text(f"path\tsentence\ncv.wav\t{split} sentence\n")
    assert recordings(tmp_path, split="test") == [Recording("cv", "test sentence", tmp_path / "clips" / "cv.wav")]
    assert "dev.tsv, test.tsv" in refusal(tmp_path)


def test_folder_of_audio_without_a_manifest(tmp_path: Path) -> None:
    write_folder(tmp_path, {"b": 0.1, "a": 0.1})
    (tmp_path / "manifest.jsonl").unlink()
    source = open_source(DatasetSpec(str(tmp_path)))
    assert [(row.id, row.text) for row in source.rows(None)] == [("a", ""), ("b", "")]
    assert "no WER" in source.notes[0]
