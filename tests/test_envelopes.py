"""Output formats of models: the envelope around a transcript is removed for scoring, and the raw text is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asr_load.apis.envelopes import unwrap
from asr_load.results.accuracy import common_preface, left_envelope
from asr_load.results.normalizers import Scoring
from asr_load.results.summary import summarise
from harness.answers import CHUNKED, EVENTS, chunk, each_reader
from harness.peer import Piece, talk
from harness.records import record, run_info
from harness.runs import Run, answer, canned, run
from harness.sse import chunk as event
from harness.sse import sse


@pytest.mark.parametrize(
    ("raw", "text", "name"),
    [
        ("language English<asr_text>Hello world.", "Hello world.", "qwen-asr"),
        (" language Chinese <asr_text> 你好", "你好", "qwen-asr"),
        ("language English<asr_text>one language German<asr_text>zwei", "one zwei", "qwen-asr"),
        ("language English<asr_text>one language None<asr_text> language English<asr_text>two", "one two", "qwen-asr"),
        ("language None<asr_text>", "", "qwen-asr"),
        ("<think>\nThe user wants a transcript.\n</think>\n\nHello <b>", "Hello <b>", "think"),
        ("<think>The user wants", "", "think"),  # it was cut off
        ("Hello <think>x</think>", "Hello <think>x</think>", "raw"),
        ("<|en|><|NEUTRAL|><|Speech|>Hello<|2.40|> there", "Hello there", "tags"),
        ("<|startoftranscript|><|en|><|0.00|> Hello<|2.40|>", "Hello", "tags"),
        ("Hello <|2.40|>", "Hello <|2.40|>", "raw"),
        ("language English", "language English", "raw"),  # it was cut off, or it is speech
        ("He said: language English<asr_text>no", "He said: language English<asr_text>no", "raw"),
        ("The transcription of the audio is 'it's fine'.", "it's fine", "glm"),
        ('The transcription of the audio is "yes."', "yes.", "glm"),
        ("The transcription of the audio is: 'cut o", "cut o", "glm"),
        ("The transcription of the audio is hard to read", "The transcription of the audio is hard to read", "raw"),
        ("[0.00][S01]Hello there[1.20] [1.30][S02]Hi[2.0]", "Hello there Hi", "moss"),
        ("[0.00][S01]", "", "moss"),
        ("[1] is a number", "[1] is a number", "raw"),
        ("", "", "raw"),
    ],
)
def test_each_envelope_is_removed(raw: str, text: str, name: str) -> None:
    unwrapped = unwrap(raw)
    assert (unwrapped.text, unwrapped.format) == (text, name)
    assert raw[unwrapped.start :].lstrip().startswith(text.split(" ", maxsplit=1)[0])


def test_envelope_of_another_format_stays() -> None:
    raw = "language English<asr_text>Hello"
    assert unwrap(raw, "qwen-asr").text == "Hello"
    for other in ("raw", "glm", "moss"):
        assert unwrap(raw, other).text == raw


def stream(*contents: str, pause: float = 0.0) -> list[Piece]:
    events = sse(*(event(content) for content in contents), event(finish="stop"))
    pieces: list[Piece] = [EVENTS + CHUNKED]
    for one in events:
        pieces += [pause, chunk(one)]
    return [*pieces, b"0\r\n\r\n"]


@each_reader
def test_ttft_of_text_is_that_of_the_first_character_after_the_envelope(reader: str) -> None:
    words = ("language", " English", "<asr_text>", " ", "Hello", " there")
    with talk(stream(*words, pause=0.05), stream("Hello", " there"), reader=reader) as (client, peer):
        first, second = client.send(peer.url), client.send(peer.url)
    assert (first.outcome, first.text, first.text_format) == ("ok", "Hello there", "qwen-asr")
    assert first.raw_text == "".join(words)
    assert first.ttft is not None
    assert first.ttft_text is not None
    assert first.e2el is not None
    if first.chunks == len(words):  # else a busy machine read several at once
        assert first.ttft_text == pytest.approx(first.ttft + sum(first.itl[: words.index("Hello")]))
    assert first.ttft < first.ttft_text <= first.e2el
    assert (second.text, second.raw_text, second.text_format, second.ttft_text) == ("Hello there", None, "raw", None)


@each_reader
def test_envelope_without_text_is_empty(reader: str) -> None:
    with talk(stream("language None", "<asr_text>"), reader=reader) as (client, peer):
        record = client.send(peer.url)
    assert (record.outcome, record.error, record.text) == ("empty", "no text except an envelope", "")
    assert record.raw_text == "language None<asr_text>"


def scored(clips: Path, folder: Path, *words: str) -> Run:
    answers = [answer(f"language English<asr_text>text of clip{number:02d}", length=True) for number in range(4)]
    with canned(answers) as (host, _):
        return run(host, clips, folder, "-u", "1", "--requests", "4", *words)


@pytest.mark.parametrize("words", [[], ["--text-format", "qwen-asr"]])
def test_correct_transcript_in_an_envelope_has_no_errors(clips: Path, tmp_path: Path, words: list[str]) -> None:
    done = scored(clips, tmp_path / "r", *words)
    summary: dict[str, Any] = done.summary
    assert summary["wer"] == 0
    assert summary["text_formats"] == {"qwen-asr": 4}
    assert summary["ttft_text"]["n"] == 4
    assert "Envelope: qwen-asr, removed from 4 transcripts before scoring" in done.out
    assert "│ TTFT of text" in done.out


def test_text_format_raw_keeps_the_envelope(clips: Path, tmp_path: Path) -> None:
    done = scored(clips, tmp_path / "r", "--text-format", "raw")
    assert done.summary["wer"] > 0.3
    assert "the envelope of qwen-asr is still around 4 transcripts: use --text-format qwen-asr" in done.out
    assert done.summary["text_formats"] == {}
    assert all(record["raw_text"] is None for record in done.records)


REFERENCES = [
    "one two three",
    "the cat sat",
    "it rains a lot",
    "we went home",
    "you said so",
    "they did not",
    "so be it",
]


@pytest.mark.parametrize(
    ("preface", "every", "said"),
    [
        ("Sure, here is the transcript: ", 1, (7, "Sure, here is the transcript:")),
        ("The audio says ", 2, (4, "The audio says")),
        ("The audio says ", 3, None),
        ("", 1, None),
    ],
)
def test_common_preface_is_detected(preface: str, every: int, said: tuple[int, str] | None) -> None:
    pairs = [(text, (preface if number % every == 0 else "") + text) for number, text in enumerate(REFERENCES)]
    assert common_preface(pairs * 3, Scoring()) == said


def test_preface_that_references_share_is_none() -> None:
    texts = [f"thank you for calling number {number}" for number in range(9)]
    assert common_preface([(text, text) for text in texts], Scoring()) is None
    mixed = [(text, f"the end {text}") for text in ["the end of it", *REFERENCES]]
    assert common_preface(mixed, Scoring()) is None


def test_common_preface_is_a_reason_of_the_verdict(clips: Path, tmp_path: Path) -> None:
    answers = [answer(f"Here is the transcript: text of clip{number:02d}", length=True) for number in range(8)]
    with canned(answers) as (host, _):
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "8")
    assert "8 transcripts begin with 'Here is the transcript:', and no reference does" in done.out


def test_server_with_a_constant_transcript_has_no_preface() -> None:
    assert common_preface([(text, "the quick brown fox") for text in REFERENCES], Scoring()) is None


@pytest.mark.parametrize("language", ["en", "de"])
def test_preface_is_compared_after_normalization(language: str) -> None:
    """Punctuation and capitals aside, the speakers said it."""
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    pairs = [(f"HEY SIRI CALL {word}", f"Hey, Siri: call {word}.") for word in words]
    assert common_preface(pairs, Scoring(language)) is None


CHINESE = ["今天天气很好", "他说明天下雨", "请打开客厅的灯", "我们去公园散步", "晚上一起吃饭吧", "这本书很有意思"]


@pytest.mark.parametrize(
    ("language", "texts", "preface", "said"),
    [
        ("zh", CHINESE, "转写结果\uff1a", "转写结果\uff1a"),
        ("zh", [f"小爱同学{text}" for text in CHINESE], "以下是转录内容\uff1a", "以下是转录内容\uff1a"),
        ("en", REFERENCES, "Transcript:", "Transcript:"),  # without a space after it
        ("en", REFERENCES, "Transcription: ", "Transcription:"),
        ("de", REFERENCES, "text=", "text="),
        ("zh", [f"小爱同学{text}" for text in CHINESE], "", None),
        ("en", REFERENCES, "[music] ", None),  # the normalizer removes it
    ],
)
def test_common_preface_is_detected_without_spaces(
    language: str, texts: list[str], preface: str, said: str | None
) -> None:
    found = common_preface([(text, preface + text) for text in texts], Scoring(language))
    assert found == (None if said is None else (len(texts), said))


ENVELOPES = {
    "qwen-asr": "language English<asr_text>{}",
    "glm": "The transcription of the audio is '{}'.",
    "moss": "[0.00][S01]{}[1.20]",
    "think": "<think>what is it?</think>{}",
    "tags": "<|en|><|NEUTRAL|>{}",
}


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize(("name", "form"), ENVELOPES.items())
def test_envelope_left_around_transcripts_makes_a_run_suspect(name: str, form: str, reference: bool) -> None:
    records = [
        record(n, text=form.format(text), reference=text if reference else "") for n, text in enumerate(REFERENCES)
    ]
    validity = summarise(records, run_info(text_format="raw")).validity
    assert validity.verdict == "suspect"
    line = f"the envelope of {name} is still around 7 transcripts: use --text-format {name}"
    assert [reason for reason in validity.reasons if "envelope" in reason or "begin with" in reason] == [line]


def test_envelope_around_some_transcripts_is_not_reported() -> None:
    texts = [ENVELOPES["glm"].format(text) if n < 3 else text for n, text in enumerate(REFERENCES)]
    assert left_envelope(record(n, text=text) for n, text in enumerate(texts)) is None
    assert left_envelope([record(n, text=text) for n, text in enumerate(texts[:6])]) == (3, "glm")
    assert left_envelope([record(text="")]) is None
    taken_off = [record(n, text=text, text_format="qwen-asr") for n, text in enumerate(REFERENCES)]
    assert left_envelope(taken_off) is None
