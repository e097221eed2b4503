"""Text normalizers, applied before WER and CER are computed."""

from __future__ import annotations

from pathlib import Path

import kaldialign
import numpy as np
import pytest

from asr_load.results.accuracy import counts, measure
from asr_load.results.normalizers import NORMALIZERS, Scoring, normalise
from harness.records import record, run_info
from harness.runs import FAST, run
from harness.serving import serve


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        # Results of normalizer/normalizer.py of the leaderboard (commit d1e99b2).
        ("It's John's U.S.A. wi-fi, okay?", "it is john susa wifi okay"),
        ("All right, uhm, aha, the B B C e-mail.", "alright the bbc email"),
        ("5 G at nine p.m., et cetera", "5g at 9 pm etc"),
        ("I am a t-shirt; a b", "i am a tshirt a b"),
        ("cause he's kinda gonna", "cause he is kinda going to"),
        ("Ok, twenty two colours", "okay 22 colors"),
        ("Mr. Smith didn't pay $2.50", "mister smith did not pay $2.50"),
    ],
)
def test_open_asr_normalizer_equals_the_leaderboards(text: str, normalised: str) -> None:
    assert normalise(text, text, Scoring("en", "open-asr")) == normalised


@pytest.mark.parametrize(
    ("normalizer", "wrong"), [("whisper", 2), ("basic", 2), ("open-asr", 0), ("none", 3)], ids=NORMALIZERS
)
def test_normalizers_and_a_compound_written_apart(normalizer: str, wrong: int) -> None:
    found = measure([("the white paper is out", "The whitepaper is out")], Scoring("en", normalizer))
    assert found.wer == wrong / 5


def test_normalizers_and_fillers() -> None:
    pair = [("well it works", "Well, um, it, uh, works, aha.")]
    assert measure(pair, Scoring("en", "open-asr")).wer == 0
    assert measure(pair, Scoring("en", "whisper")).wer == pytest.approx(1 / 3)  # aha
    assert measure(pair, Scoring("en", "basic")).wer == 1


def test_normalizers_and_numbers() -> None:
    pair = [("twenty two dollars and five cents", "$22.05")]
    assert measure(pair, Scoring("en", "whisper")).wer == measure(pair, Scoring("en", "open-asr")).wer == 0
    assert measure(pair, Scoring("en", "basic")).wer == 1
    assert measure([("10 000 Bäume", "10000 Bäume!")], Scoring("de", "open-asr")).wer == 0
    assert measure([("10 000 Bäume", "10000 Bäume!")], Scoring("de", "whisper")).wer == pytest.approx(2 / 3)


def test_tags_of_data_sets_are_not_words() -> None:
    pair = [("so <COMMA> it works <PERIOD>", "So, it works.")]
    assert [measure(pair, Scoring("en", name)).wer for name in NORMALIZERS[:3]] == [0, 0, 0]


def test_normalizer_is_named_in_all_results(tmp_path: Path, clips: Path) -> None:
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "3", "--normalizer", "open-asr")
    assert "transcripts (normalizer: open-asr)" in done.out
    assert done.summary["normalizer"] == "open-asr"
    assert '"normalizer":"open-asr"' in (tmp_path / "r" / "run.json").read_text().replace(" ", "")
    report = tmp_path / "r" / "report.html"
    assert not report.exists() or "open-asr" in report.read_text()


def test_slos_use_the_normalizer() -> None:
    from asr_load.results.summary import summarise

    records = [record(n, reference="white paper", text="whitepaper") for n in range(3)]
    for normalizer, met in (("whisper", False), ("open-asr", True)):
        summary = summarise(records, run_info(slos=["wer:mean:0.1"], normalizer=normalizer))
        assert (summary.wer == 0, summary.passed) == (met, met)


def test_long_transcript_aligned_in_pieces_has_the_same_errors() -> None:
    random = np.random.default_rng(0)
    vocabulary = [f"{one}{two}{three}" for one in "bdfgk" for two in "aeiou" for three in "lmnrst"]
    said = [str(word) for word in random.choice(vocabulary, 3000)]
    kept = [word for word in said if random.random() > 0.02]
    heard = [word if random.random() > 0.1 else str(random.choice(vocabulary)) for word in kept]
    joined = " ".join(heard[:1000]) + " " + "".join(heard[1000:1002]) + " " + " ".join(heard[1002:])
    found = counts(" ".join(said), joined, Scoring("en", "open-asr"))
    whole = kaldialign.edit_distance(said, joined.split(), merge_compounds=True)
    assert found.wer.errors == pytest.approx(whole["total"], rel=0.005)
    assert found.wer.units == 3000
