"""What --dataset may name, and the errors if it names no data set."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from asr_load.audio.open import open_source
from asr_load.audio.source import DatasetSpec, UniqueIds
from conftest import noise, write_folder
from harness.audio import encoded
from harness.datasets import recordings, refusal


def test_reading_resumes_from_a_state(tmp_path: Path) -> None:
    source = open_source(DatasetSpec(str(write_folder(tmp_path, {"a": 0.1, "b": 0.1, "c": 0.1}))))
    first = source.rows(None)
    assert next(iter(first)).id == "a"
    assert [row.id for row in source.rows(first.state())] == ["b", "c"]


def test_origin_depends_on_the_rows_and_not_on_the_path(tmp_path: Path) -> None:
    lengths = {"a": 0.1, "b": 0.2}
    here, there = (write_folder(tmp_path / place / "set", lengths) for place in ("here", "there"))
    assert open_source(DatasetSpec(str(here))).origin == open_source(DatasetSpec(str(there))).origin
    soundfile.write(there / "b.wav", noise(0.3), 16000)
    assert open_source(DatasetSpec(str(here))).origin != open_source(DatasetSpec(str(there))).origin


def test_invalid_data_set_gives_an_error_with_a_cure(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"a": 0.1})
    assert "no such file" in refusal("../not/here")
    assert "no text column 'speech'; the columns are file, text" in refusal(folder, text_column="speech")
    assert "remove --subset clean" in refusal(folder, subset="clean")
    assert "no column 'split'" in refusal(folder, split="test")
    (folder / "manifest.jsonl").write_text('{"file": "a.wav"}\nnot json\n')
    assert "line 2" in refusal(folder)
    (folder / "manifest.jsonl").write_text('{"sound": "a.wav"}\n')
    assert "has no audio column among sound" in refusal(folder)
    (folder / "manifest.jsonl").write_text("")
    assert "has no rows" in refusal(folder)
    (folder / "manifest.jsonl").write_bytes(b'{"file": "\xff.wav"}\n')
    assert "line 1" in refusal(folder)
    (tmp_path / "notes.txt").touch()
    assert "is not a data set" in refusal(tmp_path / "notes.txt")


def test_ids_are_made_unique() -> None:
    unique = UniqueIds()
    assert [unique(name) for name in ("a", "a", "a-2", "a", "b")] == ["a", "a-2", "a-2-2", "a-3", "b"]


CARD = """---
configs:
- config_name: clean
  data_files:
  - {split: test, path: clean/test-*.parquet}
- config_name: other
  data_files:
  - {split: test, path: other/test-*.parquet}
- config_name: all
  default: true
  data_files:
  - {split: test.clean, path: clean/test-*.parquet}
  - {split: test.other, path: other/test-*.parquet}
---
"""


class TestDatasetsFolder:
    """A folder that `datasets` reads, in the layout of openslr/librispeech_asr."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name, count in {"clean": 2, "other": 40}.items():
            rows = [
                {
                    "file": f"{name}-{number:04d}.flac",
                    "audio": {"bytes": encoded(noise(0.2, seed=number), format="FLAC"), "path": None},
                    "text": f"SENTENCE {number} OF {name.upper()}",
                    "speaker_id": 7,
                    "chapter_id": 11,
                    "id": f"{name}-{number:04d}",
                }
                for number in range(count)
            ]
            (tmp_path / name).mkdir()
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / "test-00000-of-00001.parquet")
        (tmp_path / "README.md").write_text(CARD)
        return tmp_path

    def test_first_subset_with_the_split_is_chosen_and_reported(self, folder: Path) -> None:
        source = open_source(DatasetSpec(str(folder), split="test"))
        assert source.origin["subset"] == "clean"
        assert "using 'clean'" in source.notes[0]
        assert "other, all" in source.notes[0]
        assert len(list(source.rows(None))) == 2

    def test_named_subset_is_read(self, folder: Path) -> None:
        found = recordings(folder, subset="other", split="test")
        assert len(found) == 40
        assert found[0].id == "other-0000"
        assert found[0].text == "SENTENCE 0 OF OTHER"
        assert isinstance(found[0].audio, bytes)
        assert found[0].audio.startswith(b"fLaC")

    def test_all_splits_of_the_default_subset_are_read_by_default(self, folder: Path) -> None:
        assert len(recordings(folder)) == 42

    def test_unknown_subset_or_split_lists_the_known_ones(self, folder: Path) -> None:
        assert "it has: all: test.clean, test.other; clean: test; other: test" in refusal(folder, split="train")
        assert "it has: clean, other, all" in refusal(folder, subset="cleaner")
        assert "other: test" in refusal(folder, subset="other", split="train")

    def test_single_parquet_file_is_read(self, folder: Path) -> None:
        assert len(recordings(folder / "other" / "test-00000-of-00001.parquet")) == 40

    def test_reading_resumes_from_a_state(self, folder: Path) -> None:
        source = open_source(DatasetSpec(str(folder), subset="other", split="test"))
        first = source.rows(None)
        begun = iter(first)
        taken = [next(begun).id for _ in range(7)]
        going_on = [
            row.id for row in open_source(DatasetSpec(str(folder), subset="other", split="test")).rows(first.state())
        ]
        assert len(going_on) == 33
        assert not set(taken) & set(going_on)


def test_another_segment_changes_the_origin(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", noise(3.0), 16000)
    states = set()
    for offset in (0, 1):
        line = {"audio_filepath": "long.wav", "offset": offset, "duration": 1}
        (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
        states.add(open_source(DatasetSpec(str(tmp_path))).origin["state"])
    assert len(states) == 2
