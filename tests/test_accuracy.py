"""WER and CER: what normalization removes, and how errors are summed."""

# ruff: noqa: RUF001  # Chinese and Japanese punctuation

from __future__ import annotations

import unicodedata
from fractions import Fraction

import pytest

from asr_load.report.transcripts import worst
from asr_load.report.view import view_finished
from asr_load.report.words import rates_line
from asr_load.results.accuracy import Accuracy, Sample, counts, measure, rate_for, variants
from asr_load.results.compare import compare
from asr_load.results.decide import decide
from asr_load.results.judge_slos import judge_slos
from asr_load.results.normalizers import NORMALIZERS, Scoring, normalise
from asr_load.results.slo import parse_slos
from asr_load.results.summary import Finished, summarise
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


UNSPACED = [
    # language, reference, transcript, wrong characters, characters
    ("zh", "而 对 楼市 成交 抑制 作用 最 大 的 限 购", "而对楼市成交抑制作用最大的限购。", 0, 15),
    ("zh", "而 对 楼市 成交 抑制 作用 最 大 的 限 购", "而对楼市成交抑制作用最大的限够。", 1, 15),
    ("zh", "他 说 明 天 会 下 雨", "他说：“明天会下雨！”", 0, 7),
    ("zh", "我想买 iPhone 手机", "我 想买iPhone手机。", 0, 11),
    ("zh", "我想买 iPhone 手机", "我想买 iPhon 手机", 1, 11),
    ("zh", "hello world", "helloworld", 0, 10),
    ("yue", "我哋 聽日 去", "我哋，聽日去。", 0, 5),
    ("ja", "今日は天気がいいので公園に行きます", "今日は、天気がいいので、公園に行きます。", 0, 17),
    ("ja", "今日は天気がいいので公園に行きます", "今日は天気がいいので公園に行きました。", 2, 17),  # す: した
    ("ja", "ガギグ", unicodedata.normalize("NFD", "ガギグ") + "。", 0, 3),
    ("th", "สวัสดีครับ วันนี้อากาศดี", "สวัสดีครับวันนี้อากาศดี", 0, 23),
    ("th", "สวัสดีครับ วันนี้อากาศดี", "สวัสดีครับ วันนีอากาศดี", 1, 23),  # a tone mark
    ("km", "ខ្ញុំ\u200bទៅ\u200bផ្ទះ", "ខ្ញុំទៅផ្ទះ។", 0, 11),
    ("en", "今天天气很好", "今天天气，很好。", 0, 6),  # whatever the data set's language is
]


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("case", UNSPACED)
def test_cer_of_languages_without_spaces_counts_only_letters(
    case: tuple[str, str, str, int, int], normalizer: str
) -> None:
    language, said, heard, wrong, of = case
    found = counts(said, heard, Scoring(language, normalizer)).cer
    assert (found.errors, found.units) == (wrong, of)


SPACED = [
    # language, reference, transcript, WER, CER
    ("ml", "മലയാളം ഭാഷ", "മലയാളി ഭാഷ", Fraction(1, 2), Fraction(1, 10)),  # m + i for anusvara
    ("ta", "தமிழ் மொழி", "தமிழ் மொழ", Fraction(1, 2), Fraction(1, 10)),  # a vowel sign is missing
    ("hi", "हिन्दी में", "हन्दी में", Fraction(1, 2), Fraction(1, 10)),
    ("hi", "हिन्दी में।", "हिन्दी में", Fraction(0), Fraction(0)),
    ("bn", "আমি ভাত খাই", "আমি ভাত খাই।", Fraction(0), Fraction(0)),
    ("ar", "كتب الولد", "كتب البلد", Fraction(1, 2), Fraction(1, 9)),
    ("ar", "كَتَبَ الوَلَدُ", "كتب الولد", Fraction(0), Fraction(0)),
    ("ar", "كتب الولد", "كتـــب، الوَلَد؟", Fraction(0), Fraction(0)),
    ("he", "שָׁלוֹם עוֹלָם", "שלום עולם", Fraction(0), Fraction(0)),
    ("fa", "می\u200cروم", "میروم", Fraction(0), Fraction(0)),
    ("ko", "안녕하세요 여러분", "안녕하세요, 여러분!", Fraction(0), Fraction(0)),
    ("ko", "안녕하세요 여러분", "안녕하세요 여러운", Fraction(1, 2), Fraction(1, 9)),
    ("de", "die Tür ist zu", "Die Tur ist zu.", Fraction(1, 4), Fraction(1, 14)),
    ("vi", "tiếng Việt", "tiếng Viêt", Fraction(1, 2), Fraction(1, 10)),
    ("tr", "İstanbul güzel", "İstanbul güzel.", Fraction(0), Fraction(0)),
    ("en", "the café is open", "The café is open.", Fraction(0), Fraction(0)),
    ("en", "the café is open", "the cafe was open", Fraction(1, 4), Fraction(2, 16)),
]  # fmt: skip


@pytest.mark.parametrize("normalizer", NORMALIZERS[:3])
@pytest.mark.parametrize("case", SPACED)
def test_wrong_vowel_signs_count_and_optional_ones_do_not(
    case: tuple[str, str, str, Fraction, Fraction], normalizer: str
) -> None:
    language, said, heard, wer, cer = case
    if language == "en" and normalizer == "basic" and "cafe " in heard:
        wer, cer = Fraction(2, 4), Fraction(3, 16)  # the basic normalizer keeps accents in alphabets
    found = counts(said, heard, Scoring(language, normalizer))
    assert (Fraction(found.wer.errors, found.wer.units), Fraction(found.cer.errors, found.cer.units)) == (wer, cer)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ta", "மொழி"), ("hi", "क़लम"), ("bn", "ড়া"), ("ml", "കൊച്ചി"), ("ko", "안녕하세요"), ("de", "Tür"),
        ("vi", "tiếng Việt"), ("ja", "ガラス"), ("ar", "آدم"), ("fr", "élève"), ("en", "café"),
    ],
)  # fmt: skip
def test_composed_and_decomposed_text_is_equal(language: str, text: str, normalizer: str) -> None:
    apart = unicodedata.normalize("NFD", text)
    for said, heard in ((text, apart), (apart, text)):
        assert measure([(said, heard)], Scoring(language, normalizer)).cer == 0


@pytest.mark.parametrize("normalizer", ["whisper", "basic"])
@pytest.mark.parametrize(
    "text", ["Crème brûlée, s'il vous plaît!", "Živjeli [smijeh] đak", "за́мок", "İzmir", "ọ̀rọ̀", "ok 👍️"]
)
def test_text_in_alphabets_is_normalised_as_by_whisper(text: str, normalizer: str) -> None:
    from whisper_normalizer.basic import BasicTextNormalizer

    assert normalise(text, text, Scoring("fr", normalizer)) == " ".join(BasicTextNormalizer()(text).split())


@pytest.mark.parametrize(
    ("language", "reference", "normalizer", "variant"),
    [
        ("en", "he said", "whisper", "English"),
        ("en", "he said", "open-asr", "English"),
        ("en", "he said", "basic", "basic"),
        ("de", "er sagte", "whisper", "basic"),
        ("ml", "മലയാളം", "whisper", "basic with vowel signs"),
        ("en", "മലയാളം office", "whisper", "basic with vowel signs"),
        ("ar", "كتب", "open-asr", "basic without optional vowel marks"),
        ("he", "שלום", "whisper", "basic without optional vowel marks"),
        ("zh", "今天", "whisper", "basic"),
    ],
)
def test_normalizer_variant_is_named(language: str, reference: str, normalizer: str, variant: str) -> None:
    assert variants([reference, reference, "..."], Scoring(language, normalizer)) == {variant: 2}
    assert variants([reference], Scoring(language, "none")) == {}
    records = [record(n, reference=reference, text=reference) for n in range(2)]
    summary = summarise(records, run_info(language=language, normalizer=normalizer))
    assert summary.normalizer_variants == {variant: 2}
    assert rates_line(summary).endswith(f"over 2 transcripts (normalizer: {normalizer}); variant: {variant}")


def test_several_normalizer_variants_are_counted() -> None:
    pairs = ["he said", "今天天气很好", "she said"]
    summary = summarise([record(n, reference=text, text=text) for n, text in enumerate(pairs)], run_info())
    assert rates_line(summary).endswith("(normalizer: whisper); variants: English (2), basic (1)")


def test_slos_search_comparison_and_live_sample_count_only_letters() -> None:
    scoring = Scoring("Chinese")
    pairs = [("他 说 明 天 会 下 雨", "他说：明天会下雨！"), ("今天天气很好", "今天天气真好。")]  # 1 wrong of 13
    records = [record(n, clip=f"clip{n % 2}", reference=said, text=heard) for n, (said, heard) in enumerate(pairs * 20)]
    (slo,) = parse_slos(["cer:mean:0.08"])
    assert judge_slos([slo], records, scoring)[0].value == pytest.approx(1 / 13)
    assert decide(slo, records, scoring).value == pytest.approx(1 / 13)
    sample = Sample(scoring)
    for one in records[:2]:
        sample.add(one)
    sample.score()
    assert sample.name == "cer"
    assert sample.rate == pytest.approx(1 / 13)
    info = run_info(language="zh")
    many = [
        record(n, clip=f"clip{n}", reference=f"他 说 {said}", text=f"他说：{said}！")
        for n, said in enumerate("一二三四五六七八九十")
    ]
    runs = [Finished(info, many) for _ in range(2)]
    found = {figure.name: figure for figure in compare(runs[:1], runs[1:]).figures}
    assert (found["cer"].value, found["cer"].baseline) == (0, 0)
    (shown,) = worst(records, scoring, "cer")
    assert shown.clip == "clip1"
    assert [(piece.kind, piece.reference, piece.transcript) for piece in shown.pieces] == [
        ("equal", "今天天气", "今天天气"),
        ("substitute", "很", "真"),
        ("equal", "好", "好"),
    ]


NOTES = [
    ("yes", "(speaking in foreign language) Yes."),
    ("no", "[BLANK_AUDIO] [MUSIC PLAYING] No."),
    ("hi", "Hi. [Sound of a door being closed]"),
    ("okay", "Okay. " + "[BLANK_AUDIO] " * 8000),
]


@pytest.mark.parametrize("normalizer", NORMALIZERS[:3])
@pytest.mark.parametrize(("said", "heard"), NOTES)
def test_bracketed_notes_do_not_make_a_short_transcript_a_runaway(said: str, heard: str, normalizer: str) -> None:
    found = counts(said, heard, Scoring("en", normalizer))
    assert (found.wer.errors, found.cer.errors) == (0, 0)


def test_runaway_transcript_is_all_wrong_in_words_or_characters() -> None:
    ten, eleven = counts("yes", "yes " * 10, Scoring()), counts("yes", "yes " * 11, Scoring())
    assert (ten.wer.insertions, ten.wer.substitutions) == (9, 0)
    assert (eleven.wer.insertions, eleven.wer.substitutions) == (10, 1)
    # "yes " * 9 has 35 characters, more than ten times the three of "yes", but only nine words.
    nine = counts("yes", "yes " * 9, Scoring())
    assert (nine.wer.insertions, nine.wer.substitutions) == (8, 0)
    assert (nine.cer.insertions, nine.cer.substitutions) == (32, 3)
    # Split by spaces, it has one word per character; in characters it is not too long.
    assert counts("今天天气很好", "今 天 天 气 很 好 吗", Scoring("zh")).cer.errors == 1
