"""WER and CER: what normalization removes, and how errors are summed."""

from __future__ import annotations

import pytest

from asr_load.report.view import view_finished
from asr_load.report.words import rates_line
from asr_load.results.accuracy import Accuracy, counts, measure, rate_for
from asr_load.results.normalizers import Scoring
from asr_load.results.summary import summarise
from harness.records import record, run_info


def test_spelling_case_and_punctuation_are_not_errors() -> None:
    accuracy = measure([("MISTER BROWN'S COLOUR, TWENTY TWO", "Mr. Brown's color: 22.")], Scoring())
    assert (accuracy.wer, accuracy.cer, accuracy.references) == (0.0, 0.0, 1)


def test_wer_sums_errors_and_words_before_dividing() -> None:
    # One error in two words and none in eight: 10 %, not the mean of 50 % and 0 %.
    eight = "one dog saw two cats in the garden"
    assert measure([("big house", "big horse"), (eight, eight)], Scoring()).wer == pytest.approx(0.1)


def test_wer_counts_insertions_deletions_and_substitutions() -> None:
    assert measure([("a quick brown fox ran", "quick brown dog ran away")], Scoring()).wer == pytest.approx(3 / 5)


def test_pair_without_reference_is_excluded_and_empty_transcript_counts() -> None:
    assert measure([("", "noise"), ("[laughs]", "noise")], Scoring()).wer is None
    assert measure([("two words", "")], Scoring()).wer == 1.0


def test_letters_of_other_languages_are_kept() -> None:
    accuracy = measure([("Die Tür ist zwölf", "die Tür ist zwölf!")], Scoring("de"))
    assert accuracy.wer == 0.0
    assert measure([("广州市", "广州市。")], Scoring()).cer == 0.0


def test_long_unrelated_transcript_is_scored_without_alignment() -> None:
    endless = "la " * 400_000
    # Aligning the two would take minutes.
    found = counts("he said", endless, Scoring())
    assert (found.wer.errors, found.wer.units) == (400_000, 2)
    assert found.cer.errors > found.cer.units == 7


@pytest.mark.parametrize(
    ("language", "rate"),
    [("en", "wer"), ("de", "wer"), ("zh", "cer"), ("zh-CN", "cer"), ("ja_JP", "cer"), ("ko", "wer"), ("cmn", "cer")],
)
def test_rate_for_language_is_wer_or_cer(language: str, rate: str) -> None:
    assert rate_for(language) == rate


def test_summary_of_chinese_uses_cer() -> None:
    records = [record(n, reference="今天天气很好", text="今天天汽很好") for n in range(5)]
    summary = summarise(records, run_info(language="zh"))
    assert (summary.wer, summary.cer, summary.rate) == (1.0, 1 / 6, "cer")
    assert view_finished(summary).server == "errors 0.0%, CER 16.7%"
    assert rates_line(summary).startswith("CER 16.7%, WER 100.0% (CER first: this language is written without spaces")
    assert [row.cer for row in summary.by_duration] == [1 / 6]


def test_transcript_of_only_punctuation_has_no_words() -> None:
    assert measure([("two words", "..."), ("one", "¿?")], Scoring()) == Accuracy(1.0, 1.0, 2)


@pytest.mark.parametrize(
    ("reference", "heard", "language", "looping"),
    [
        ("he said so", "thank you. " * 20, "en", True),
        ("he said so", "He said so." + " I'm going to go to the store." * 5, "en", True),
        ("he said so", "He said so." + " I'm going to go to the store." * 4, "en", False),
        ("no no no no no no", "No, no, no, no, no, no!", "en", False),  # as in the reference
        ("no no no no no no", "No, " * 9, "en", True),
        ("今天天气很好", "今天" * 9, "zh", True),
        ("今天天气很好", "今天天气很好", "zh", False),
        ("he said so", "", "en", False),
        ("he said so", "la " * 400_000, "en", True),
    ],
)
def test_transcripts_with_repetition_loops_are_counted(
    reference: str, heard: str, language: str, looping: bool
) -> None:
    records = [record(0, reference=reference, text=heard), record(1, reference="all good", text="all good")]
    assert summarise(records, run_info(language=language)).looping == looping
