"""The worst transcripts of a run, and their errors."""

from __future__ import annotations

import pytest

from asr_load.report.transcripts import errors_of, worst
from asr_load.results.normalizers import Scoring
from harness.records import in_parts, record, run_info


def test_errors_are_split_by_kind_and_capped_for_loops() -> None:
    looping = record(1, reference="a b", text="x " * 200)
    records = [record(0, reference="red green blue black", text="red grey black white"), looping]
    info = run_info()
    found = errors_of(records[:1], info.scoring)
    assert found.words.errors == found.words.substitutions + found.words.deletions + found.words.insertions == 3
    assert found.capped is None
    both = errors_of(records, info.scoring)
    assert both.capped == pytest.approx((3 + 2) / 6)
    assert both.words.errors / both.words.units > 10
    first, second = worst(records, info.scoring, "wer")
    assert (first.clip, second.clip) == ("clip1", "clip0")
    assert first.cut
    assert [piece.kind for piece in second.pieces if piece.kind != "equal"]
    assert " ".join(piece.reference for piece in second.pieces).split() == ["red", "green", "blue", "black"]


def test_worst_transcripts_are_of_whole_recordings() -> None:
    scoring = Scoring("en", "whisper", in_parts=True)
    right = in_parts("red green", "blue white", reference="red green blue white", clip="right")
    wrong = in_parts("red green", "blue brown", reference="red green blue white", clip="wrong")
    (found,) = worst([*right, *wrong], scoring, "wer")
    assert (found.clip, found.rate) == ("wrong", 0.25)
    assert [(piece.kind, piece.reference, piece.transcript) for piece in found.pieces] == [
        ("equal", "red green blue", "red green blue"),
        ("substitute", "white", "brown"),
    ]
