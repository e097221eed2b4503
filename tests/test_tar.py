"""Tar files of recordings: WebDataset's, single and in folders, and NeMo's with their manifest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from asr_load.audio.clip import Rules
from asr_load.audio.convert import convert
from asr_load.audio.open import open_source
from asr_load.audio.source import DatasetSpec
from asr_load.audio.tar import in_order
from asr_load.errors import InputError
from conftest import CHECKOUT, noise
from harness.audio import encoded, write_tar
from harness.datasets import recordings, texts


def audio(seed: int, seconds: float = 0.5, format: str = "WAV") -> bytes:
    return encoded(noise(seconds, seed=seed), format=format)


SAMPLES: dict[str, bytes | str] = {
    "a.wav": audio(0),
    "a.txt": "the first\n",
    "b.flac": audio(1, format="FLAC"),
    "b.json": json.dumps({"text": "the second", "duration": 0.5, "start": 3.0, "end": 3.5}),
    "b.npy": b"\x93NUMPY",
    "deep/c.2024.mp3": audio(2, format="MP3"),
    "deep/c.2024.normalized.txt": "not this",
    "deep/c.2024.txt": "the third",
}


def test_webdataset_in_a_file_and_in_a_folder(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "set" / "train-000.tar", SAMPLES)
    assert texts(file, text_column="txt") == {"a": "the first", "b": "", "c.2024": "the third"}
    assert texts(file, text_column="text") == {"a": "", "b": "the second", "c.2024": ""}
    assert texts(tmp_path / "set", text_column="txt") == texts(file, text_column="txt")


def test_webdataset_text_in_json_or_a_separate_file(tmp_path: Path) -> None:
    for name, texted in (("x.json", json.dumps({"transcript": "it"})), ("x.txt", "it"), ("x.json", json.dumps("it"))):
        file = write_tar(tmp_path / "set.tar", {"x.wav": audio(0), name: texted})
        assert texts(file, text_column=None if "transcript" in texted or name == "x.txt" else "json") == {"x": "it"}
    write_tar(file, {"x.txt": "it", "x.wav": audio(0), "alone.txt": "no audio"})
    assert [(row.id, row.text, row.audio is None) for row in recordings(file)] == [
        ("x", "it", False),
        ("row-000001", "no audio", True),
    ]
    write_tar(file, {"x.cls": "it", "x.wav": audio(0)})
    assert texts(file, text_column="cls") == {"x": "it"}


def test_shards_are_read_in_numeric_order(tmp_path: Path) -> None:
    for number in (10, 2, 1, 0):
        write_tar(tmp_path / f"train_{number}.tar", {f"x{number}.wav": audio(number), f"x{number}.txt": str(number)})
    assert list(texts(tmp_path).values()) == ["0", "1", "2", "10"]
    assert in_order(["b-1", "a-10", "a-9", "a"]) == ["a", "a-9", "a-10", "b-1"]


def test_splits_of_tar_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_tar(tmp_path / f"{split}-000.tar", {f"{split}.wav": audio(0), f"{split}.txt": f"of {split}"})
    assert texts(tmp_path, split="test") == {"test": "of test"}
    with pytest.raises(InputError, match="no split 'dev'"):
        recordings(tmp_path, split="dev")


def test_tar_reading_resumes_from_a_state(tmp_path: Path) -> None:
    for shard in range(2):
        audios = {f"{shard}{number}.wav": audio(number) for number in range(3)}
        write_tar(tmp_path / f"train-{shard}.tar", audios)
    all_ids = [row.id for row in recordings(tmp_path)]
    assert len(all_ids) == 6
    for taken in range(1, 6):
        first = open_source(DatasetSpec(str(tmp_path))).rows(None)
        rows = iter(first)
        begun = [next(rows).id for _ in range(taken)]
        rest = [row.id for row in open_source(DatasetSpec(str(tmp_path))).rows(first.state())]
        assert begun + rest == all_ids


@pytest.mark.long
def test_prepare_of_tar_files_is_deterministic(tmp_path: Path) -> None:
    write_tar(tmp_path / "set" / "train-000.tar", SAMPLES)
    written = []
    for name in ("one", "two"):
        command = [sys.executable, "scripts/prepare.py", "--dataset", str(tmp_path / "set")]
        command += ["--out", str(tmp_path / name), "--text-column", "txt"]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "3 clips" in done.stdout
        written.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert written[0] == written[1]


def test_broken_tar_gives_a_one_line_error(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "set.tar", SAMPLES)
    file.write_bytes(file.read_bytes()[:-20000])
    with pytest.raises(InputError, match="cannot be read") as caught:
        recordings(file)
    assert "\n" not in str(caught.value)
    write_tar(file, {"x.wav": audio(0), "x.json": "{"})
    with pytest.raises(InputError, match=r"x\.json is not JSON"):
        recordings(file)


def nemo(folder: Path) -> Path:
    """Write a data set in the format of NeMo's convert_to_tarred_audio_dataset.py."""
    write_tar(folder / "audio_0.tar", {"one.wav": audio(0), "long.wav": audio(1, 3.0)})
    write_tar(folder / "audio_1.tar", {"./two.wav": audio(2)})
    rows = [
        {"audio_filepath": "two.wav", "duration": 0.5, "text": "in the second", "shard_id": 1},
        {"audio_filepath": "long.wav", "offset": 0.0, "duration": 1.0, "text": "a part", "shard_id": 0},
        {"audio_filepath": "long-sub1.wav", "offset": 1.5, "duration": 1.25, "text": "another", "shard_id": 0},
        {"audio_filepath": "one.wav", "duration": 0.5, "text": "in the first", "shard_id": 0},
        {"audio_filepath": "gone.wav", "duration": 0.5, "text": "in none", "shard_id": 0},
    ]
    manifest = folder / "tarred_audio_manifest.json"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metadata.yaml").write_text("num_shards: 2\n")
    return manifest


def test_nemo_tarred_data_set(tmp_path: Path) -> None:
    manifest = nemo(tmp_path / "set")
    for dataset in (manifest, manifest.parent):
        *rows, gone = recordings(dataset)
        clips = [next(convert(row, Rules())) for row in rows]
        assert [(clip.text, clip.duration_s) for clip in clips] == [
            ("in the second", 0.5),
            ("a part", 1.0),
            ("another", 1.25),
            ("in the first", 0.5),
        ]
        assert gone.text == "in none"
        with pytest.raises(Exception, match="no_audio"):
            next(convert(gone, Rules()))


def test_changed_tar_changes_the_origin(tmp_path: Path) -> None:
    here, there = (nemo(tmp_path / name / "set").parent for name in ("here", "there"))
    origins = [open_source(DatasetSpec(str(folder))).origin for folder in (here, there)]
    assert origins[0] == origins[1]
    write_tar(there / "audio_1.tar", {"two.wav": audio(7)})
    assert open_source(DatasetSpec(str(there))).origin != origins[0]
