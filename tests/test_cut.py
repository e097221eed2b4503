"""Long recordings in parts: where they are cut, and how they are scored."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_load.audio.clip import Recording, Rules, parent_of, part_id
from asr_load.audio.convert import convert
from asr_load.audio.loudness import cuts
from asr_load.audio.shard import Shards
from asr_load.report.breakdown import Breakdown
from asr_load.report.tables import lengths
from asr_load.report.transcripts import worst
from asr_load.results.accuracy import recordings_of, reference_pairs
from asr_load.results.normalizers import Scoring
from asr_load.results.summary import Finished, summarise
from asr_load.stream.record import Record
from conftest import CHECKOUT, noise
from harness.records import in_parts, record, run_info
from harness.runs import run
from harness.serving import serve

SAMPLE = CHECKOUT / "asr_data" / "sample"


def wav_of(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def pcm_of(audio_b64: bytes | memoryview) -> bytes:
    return base64.b64decode(bytes(audio_b64))[44:]


def test_long_recording_is_cut_where_it_is_quiet() -> None:
    loud = (noise(30.0, seed=1) * 20000).astype("<i2")
    for quiet_at in (8.0, 16.0, 24.5):
        loud[int(quiet_at * 16000) : int((quiet_at + 0.3) * 16000)] = 1
    ends = cuts(loud, 16000, 10.0)
    assert ends[-1] == len(loud)
    assert [end / 16000 for end in ends[:3]] == pytest.approx([8.15, 16.15, 24.65], abs=0.1)
    assert max(np.diff([0, *ends])) <= 160_000
    assert cuts(loud, 16000, 30.0) == [len(loud)]


@pytest.mark.parametrize("seconds", [1.01, 9.99, 10.01, 29.0, 61.7])
@pytest.mark.parametrize("longest", [1.0, 10.0])
def test_parts_have_at_most_the_given_length_and_lose_nothing(seconds: float, longest: float) -> None:
    audio = wav_of(noise(seconds))
    parts = list(convert(Recording("a", "all of it", audio), Rules(None, chunk_long=longest)))
    whole = next(convert(Recording("a", "", audio), Rules(None)))
    assert all(part.duration_s <= longest for part in parts)
    assert b"".join(pcm_of(part.audio_b64) for part in parts) == pcm_of(whole.audio_b64)
    assert [part.text for part in parts] == ["all of it", *[""] * (len(parts) - 1)]
    if len(parts) > 1:
        assert [parent_of(part.id) for part in parts] == [("a", number, len(parts)) for number in range(len(parts))]


def test_long_silence_is_not_a_part() -> None:
    samples = np.concatenate((noise(2.0), np.zeros(5 * 16000), noise(2.0)))
    parts = list(convert(Recording("a", "", wav_of(samples)), Rules(None, chunk_long=1.0)))
    assert sum(part.duration_s for part in parts) < 8
    assert [parent_of(part.id) for part in parts] == [("a", number, len(parts)) for number in range(len(parts))]


def test_part_ids_are_made_and_parsed() -> None:
    assert parent_of(part_id("a~b", 3, 12)) == ("a~b", 3, 12)
    assert parent_of("plain") == ("plain", 0, 1)


def part(number: int, turn: int, text: str) -> Record:
    reference = "red green blue white black" if number == 0 else ""
    at = 1000.0 + 10 * turn + number
    return record(number + 10 * turn, clip=part_id("a", number, 3), reference=reference, text=text, started_at=at)


def test_accuracy_is_scored_on_whole_recordings() -> None:
    scoring = Scoring("en", "whisper", in_parts=True)
    once = [part(2, 0, "black"), part(0, 0, "red green"), part(1, 0, "blue white")]
    assert reference_pairs(once, scoring) == [("red green blue white black", "red green blue white black")]
    twice = [*once, part(0, 1, "red green"), part(1, 1, "blue"), part(2, 1, "black")]
    assert [heard for _, heard in reference_pairs(twice, scoring)] == [
        "red green blue white black",
        "red green blue black",
    ]
    assert reference_pairs([part(0, 0, "red green"), part(2, 0, "black")], scoring) == []
    summary = summarise([*twice, record(99, reference="plain", text="plain")], run_info(in_parts=True))
    assert summary.references == 3
    assert summary.wer == pytest.approx(1 / 11)


def test_parts_of_chinese_are_joined_without_a_space() -> None:
    texts = ("今天天气很好", "我们去公园散步", "晚上一起吃饭")
    parts = in_parts(*texts, reference="".join(texts))
    for language in ("zh", "Chinese"):
        scoring = Scoring(language, "whisper", in_parts=True)
        assert reference_pairs(parts, scoring) == [(parts[0].reference, parts[0].reference)]
        assert worst(parts, scoring, "cer") == []
    summary = summarise(parts, run_info(language="zh", in_parts=True))
    assert (summary.wer, summary.cer, summary.looping) == (0, 0, 0)


@pytest.mark.parametrize(
    ("language", "texts", "whole"),
    [
        ("zh", ["我用 Python", "code 写。", "好的"], "我用 Python code 写。好的"),
        ("en", ["你好", "世界"], "你好世界"),
        ("en", ["red", "green"], "red green"),
    ],
)
def test_parts_are_joined_as_their_script_requires(language: str, texts: list[str], whole: str) -> None:
    (found,) = recordings_of(in_parts(*texts, reference=whole), Scoring(language, "whisper", in_parts=True))
    assert found.text == whole


def test_accuracy_by_length_is_that_of_whole_recordings() -> None:
    parts = in_parts("red green", "blue brown", "black", reference="red green blue white black")
    summary = summarise(parts, run_info(in_parts=True))
    assert [(row.from_s, row.n, row.wer) for row in summary.by_duration] == [(10, 3, None), (30, 0, 0.2)]
    assert [row[-1] for row in lengths(summary).rows] == ["n/a", "20.0%"]


def test_repetition_loops_are_counted_per_whole_recording() -> None:
    reference = "no no no no no no"
    info = run_info(in_parts=True)
    assert summarise(in_parts("no no no", "no no no", reference=reference), info).looping == 0
    assert summarise(in_parts("thank you " * 4, "thank you " * 4, reference=reference), info).looping == 1


def test_recording_counts_in_the_slice_that_completed_it() -> None:
    parts = in_parts("red green", "blue white", reference="red green blue white")
    parts += in_parts("red green", "blue brown", reference="red green blue white", turn=2, clip="late")
    info = run_info(in_parts=True)
    table = Breakdown(Finished(info, parts)).over_time(1.0)
    assert [(row[0], row[-1]) for row in table.rows] == [
        ("0 to 1", "n/a"),
        ("1 to 2", "0.0%"),
        ("4 to 5.41", "25.0%"),
    ]


@pytest.mark.long
def test_parts_of_a_speech_have_a_low_wer_end_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    pieces, texts = [], []
    for number in range(8):
        clip = Shards(SAMPLE)[number]
        samples, _ = soundfile.read(io.BytesIO(base64.b64decode(bytes(clip.audio_b64))))
        pieces += [samples, noise(0.5, seed=number) * 0.01]
        texts.append(clip.text)
    (folder / "speech.wav").write_bytes(wav_of(np.concatenate(pieces)))
    (folder / "manifest.jsonl").write_text(json.dumps({"file": "speech.wav", "text": " ".join(texts)}))
    command = [sys.executable, "scripts/prepare.py", "--dataset", str(folder), "--out", str(tmp_path / "out")]

    def prepare(seconds: str) -> subprocess.CompletedProcess[str]:
        words = [*command, "--chunk-long", seconds]
        return subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=False)

    made = prepare("10")
    assert made.returncode == 0, made.stderr
    assert "recordings over 10 s in parts" in made.stdout
    parts = len(Shards(tmp_path / "out"))
    assert parts >= 3
    with serve() as host:
        done = run(host, tmp_path / "out", tmp_path / "r", "-u", "1", "--requests", str(2 * parts))
    assert done.code == 0, done.err
    assert done.summary["references"] == 2
    assert done.summary["wer"] < 0.25
    refused = prepare("0.5")
    assert (refused.returncode, "--chunk-long must be at least 1 s, not 0.5" in refused.stderr) == (2, True)
