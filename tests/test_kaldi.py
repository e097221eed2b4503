"""Kaldi folders: wav.scp, segments and text."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr_load.audio.clip import Recording
from asr_load.audio.open import open_source
from asr_load.audio.source import DatasetSpec
from harness.datasets import refusal, texts, write_audio


def kaldi(top: Path, *, segments: bool, scp: str = "{file}") -> Path:
    file = write_audio(top / "wav" / "call.wav", 3.0)
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
