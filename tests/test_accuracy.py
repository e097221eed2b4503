"""WER and CER: what is normalised away, and how counts are summed."""

from __future__ import annotations

import pytest

from asr_load.results.accuracy import counts, measure, rate_for
from asr_load.results.summary import rates_line, summarise
from harness.records import record, run_info


def test_spelling_case_and_punctuation_are_no_errors() -> None:
    accuracy = measure([("MISTER BROWN'S COLOUR, TWENTY TWO", "Mr. Brown's color: 22.")], "en")
    assert (accuracy.wer, accuracy.cer, accuracy.references) == (0.0, 0.0, 1)


def test_counts_are_summed_before_they_are_divided() -> None:
    # One error in two words, none in eight: 10 %, not the mean of 50 % and 0 %.
    eight = "one dog saw two cats in the garden"
    assert measure([("big house", "big horse"), (eight, eight)], "en").wer == pytest.approx(0.1)


def test_all_kinds_of_errors_count() -> None:
    assert measure([("a quick brown fox ran", "quick brown dog ran away")], "en").wer == pytest.approx(3 / 5)


def test_a_pair_without_a_reference_is_left_out_and_one_without_text_counts() -> None:
    assert measure([("", "noise"), ("[laughs]", "noise")], "en").wer is None
    assert measure([("two words", "")], "en").wer == 1.0


def test_another_language_keeps_its_letters() -> None:
    accuracy = measure([("Die Tür ist zwölf", "die Tür ist zwölf!")], "de")
    assert accuracy.wer == 0.0
    assert measure([("广州市", "广州市。")], "en").cer == 0.0


def test_a_transcript_that_has_nothing_to_do_with_its_reference_is_scored_at_once() -> None:
    endless = "la " * 400_000
    # To align the two would take minutes.
    found = counts("he said", endless, "en")
    assert (found.wer_errors, found.wer_units) == (400_000, 2)
    assert found.cer_errors > found.cer_units == 7


@pytest.mark.parametrize(
    ("language", "rate"),
    [("en", "wer"), ("de", "wer"), ("zh", "cer"), ("zh-CN", "cer"), ("ja_JP", "cer"), ("ko", "wer"), ("cmn", "cer")],
)
def test_which_rate_says_how_true_a_language_is(language: str, rate: str) -> None:
    assert rate_for(language) == rate


def test_one_wrong_character_of_chinese() -> None:
    records = [record(n, reference="今天天气很好", text="今天天汽很好") for n in range(5)]
    summary = summarise(records, run_info(language="zh"))
    assert (summary.wer, summary.cer, summary.rate) == (1.0, 1 / 6, "cer")
    assert summary.server == "errors 0.0%, CER 16.7%"
    assert rates_line(summary).startswith("CER 16.7%, WER 100.0% (of a language without spaces")
    assert [row.cer for row in summary.by_duration] == [1 / 6]
