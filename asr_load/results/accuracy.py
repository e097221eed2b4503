"""Word and character error rates of transcripts against their references, and what is wrong with them."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import NamedTuple

import msgspec
import numpy as np

from asr_load.audio.cut import parent_of
from asr_load.languages import UNSPACED, joined
from asr_load.results.normalizers import NORMALIZERS, Scoring, characters, normalise, variant
from asr_load.stream.record import Record
from asr_load.stream.text_format import unwrap


def prepare() -> None:
    """Import and build what scoring needs: at the end of a run the process may have no descriptors left."""
    for normalizer in NORMALIZERS:
        for language in ("en", "de"):
            counts("words", "other words", Scoring(language, normalizer))


class Accuracy(msgspec.Struct):
    """Over all pairs that have a reference; None where there is none."""

    wer: float | None = None
    cer: float | None = None
    references: int = 0


class Edits(NamedTuple):
    """What makes a transcript of its reference, and the length of that: S, D, I and N."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    units: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


class Counts(NamedTuple):
    """Of a transcript against its reference: in words (wer) and in characters (cer)."""

    wer: Edits = Edits()
    cer: Edits = Edits()


MOST = 10
"""How many times as long as its reference a transcript may be, in words or in characters, both normalized; a longer one
is all wrong."""

LONG_TEXT = 50_000
"""Characters of a text that are normalized in a tenth of a second."""


@functools.lru_cache(maxsize=1 << 16)
def counts(reference: str, hypothesis: str, scoring: Scoring) -> Counts:
    """What one transcript adds to the rates; nothing without a reference."""
    said = normalise(reference, reference, scoring)
    if not said:
        return Counts()
    heard = _bounded(hypothesis, reference, scoring)
    return Counts(
        _word_errors(said.split(), heard.split(), scoring),
        _character_errors(characters(said, reference, scoring), characters(heard, reference, scoring)),
    )


def _bounded(hypothesis: str, reference: str, scoring: Scoring) -> str:
    """The hypothesis, normalized. One that is too long to be normalized in a moment, and remains more than MOST times
    as long as its reference, is left as it is: all of it is wrong."""
    if len(hypothesis) > max(LONG_TEXT, MOST * len(reference)):
        beginning = normalise(hypothesis[:LONG_TEXT], reference, scoring)
        if len(beginning) > MOST * len(reference):
            return " ".join(hypothesis.split())
    return normalise(hypothesis, reference, scoring)


def _runs_away(units: Sized, heard: Sized) -> Edits | None:
    """The edits of a transcript that is more than MOST times as long as its reference; None for any other.

    To align a text that has nothing to do with the reference takes minutes, and finds nothing.
    """
    return Edits(len(units), 0, len(heard) - len(units), len(units)) if len(heard) > MOST * len(units) else None


def _word_errors(words: list[str], heard: list[str], scoring: Scoring) -> Edits:
    if wrong := _runs_away(words, heard):
        return wrong
    if scoring.normalizer == "open-asr":
        import kaldialign  # the leaderboard's: `white paper` for `whitepaper` is right

        pieces = _pieces(words, heard) if len(words) > LONG_WORDS else [(words, heard)]
        found = [kaldialign.edit_distance(*piece, merge_compounds=True) for piece in pieces]
        substitutions, deletions, insertions = (sum(each[kind] for each in found) for kind in ("sub", "del", "ins"))
        return Edits(substitutions, deletions, insertions, len(words))
    import jiwer  # late: as the normalisers

    aligned = jiwer.process_words(" ".join(words), " ".join(heard))
    return Edits(aligned.substitutions, aligned.deletions, aligned.insertions, len(words))


LONG_WORDS, ANCHOR_WORDS = 1000, 8
"""Beyond which kaldialign, which takes ten seconds for 10,000 words with compounds, gets a transcript in pieces; how
many words in a row that are right part two of these."""


def _pieces(words: list[str], heard: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    import jiwer

    first, first_heard = 0, 0
    for run in jiwer.process_words(" ".join(words), " ".join(heard)).alignments[0]:
        if run.type == "equal" and run.ref_end_idx - run.ref_start_idx >= ANCHOR_WORDS:
            middle = (run.ref_end_idx - run.ref_start_idx) // 2
            last, last_heard = run.ref_start_idx + middle, run.hyp_start_idx + middle
            yield words[first:last], heard[first_heard:last_heard]
            first, first_heard = last, last_heard
    yield words[first:], heard[first_heard:]


def _character_errors(said: str, heard: str) -> Edits:
    if wrong := _runs_away(said, heard):
        return wrong
    import jiwer

    aligned = jiwer.process_characters(said, heard)
    return Edits(aligned.substitutions, aligned.deletions, aligned.insertions, len(said))


def counted(pairs: Iterable[tuple[str, str]], scoring: Scoring) -> list[tuple[Counts, int]]:
    """What each of the (reference, hypothesis) pairs adds to the rates, and how often it is there: a server says much
    the same of a clip each time."""
    return [(counts(*pair, scoring), times) for pair, times in Counter(pairs).items()]


def total(found: Iterable[tuple[Counts, int]]) -> Counts:
    """The sums of counts that are there so many times each."""
    sums = np.zeros((2, 4), int)
    for each, times in found:
        sums += times * np.array(each)
    return Counts(*(Edits(*row) for row in sums.tolist()))


def measure(pairs: Iterable[tuple[str, str]], scoring: Scoring) -> Accuracy:
    """(S + D + I) / N over (reference, hypothesis) pairs, counts summed first; pairs without a reference left out."""
    found = [(each, times) for each, times in counted(pairs, scoring) if each.wer.units]
    if not found:
        return Accuracy()
    words, characters = total(found)
    references = sum(times for _, times in found)
    return Accuracy(words.errors / words.units, characters.errors / characters.units, references)


def variants(references: Iterable[str], scoring: Scoring) -> dict[str, int]:
    """How many references each variant of the normalizer was applied to, the most frequent first; empty without any."""
    found = Counter[str]()
    for reference, times in Counter(references).items():
        if (name := variant(reference, scoring)) and normalise(reference, reference, scoring):
            found[name] += times
    return dict(found.most_common())


AT_ONCE, LONGEST = 10, 2000
"""Transcripts that are scored a second while a test runs, and the most characters of one: each takes up to a
millisecond, in which the process does nothing else."""


class Sample:
    """An error rate while a test runs, of some of its transcripts: the first of each second."""

    def __init__(self, scoring: Scoring) -> None:
        self.name = rate_for(scoring.language)
        self.references = 0
        self._scoring = scoring
        self._waiting: list[tuple[str, str]] = []
        self._errors = self._units = 0

    def add(self, record: Record) -> None:
        """Take a success."""
        if record.reference and len(self._waiting) < AT_ONCE and len(record.reference) + len(record.text) < LONGEST:
            self._waiting.append((record.reference, record.text))

    def score(self) -> None:
        """Score what has come since the last time. Call it once a second."""
        for found, times in counted(self._waiting, self._scoring):
            edits: Edits = getattr(found, self.name)
            self._errors += times * edits.errors
            self._units += times * edits.units
            self.references += times * bool(edits.units)
        self._waiting.clear()

    @property
    def rate(self) -> float | None:
        """None before the first."""
        return self._errors / self._units if self._units else None


def rate_for(language: str) -> str:
    """Which of wer and cer says how true transcripts of a language are: cer without spaces between words, where one
    wrong character makes a sentence of one "word" wrong."""
    return "cer" if Scoring(language).is_unspaced else "wer"


class Whole(NamedTuple):
    """A recording, and the transcript of all of it."""

    clip: str
    """Its id, without the number of a part."""
    audio_s: float
    reference: str
    """Empty if there is none."""
    text: str
    last: Record
    """The request that completed it."""


def wholes(records: Iterable[Record], scoring: Scoring) -> Iterator[Whole]:
    """The recordings of successes. Parts of a recording are put together, each time that all of them were transcribed:
    the first has the reference of all."""
    if not scoring.in_parts:
        for record in records:
            yield Whole(record.clip, record.audio_s, record.reference, record.text, record)
        return
    turns: Counter[str] = Counter()
    open_turns: dict[tuple[str, int], dict[int, Record]] = {}
    for record in sorted(records, key=lambda record: record.started_at):
        parent, number, of = parent_of(record.clip)
        turn = parent, turns[record.clip]
        turns[record.clip] += 1
        parts = open_turns.setdefault(turn, {})
        parts[number] = record
        if len(parts) == of:
            yield _whole([part for _, part in sorted(open_turns.pop(turn).items())], parent)


def _whole(parts: Sequence[Record], parent: str) -> Whole:
    text = joined(part.text for part in parts)
    last = max(parts, key=lambda part: part.started_at)
    return Whole(parent, sum(part.audio_s for part in parts), parts[0].reference, text, last)


def spoken(records: Iterable[Record], scoring: Scoring) -> list[tuple[str, str]]:
    """(reference, transcript) of recordings that have a reference: what is scored."""
    return [(whole.reference, whole.text) for whole in wholes(records, scoring) if whole.reference]


LOOPS, LOOP_WORDS, LOOP_CHARACTERS = 5, 12, 20_000
"""How often a transcript has the same again, one after the other, to be called a loop; the longest such phrase; and how
much of the transcript, from its end, is looked at."""


@functools.lru_cache(maxsize=1 << 16)
def loops(reference: str, hypothesis: str, scoring: Scoring) -> bool:
    """Whether a transcript goes round in circles, as its reference does not: `thank you thank you thank you …`."""
    if len(hypothesis) < LOOPS:
        return False
    heard, said = (normalise(text, reference, scoring) for text in (hypothesis[-LOOP_CHARACTERS:], reference))
    if rate_for(scoring.language) == "cer":
        heard, said = (" ".join("".join(text.split())) for text in (heard, said))
    return _rounds(heard.split()) >= max(LOOPS, 1 + _rounds(said.split()))


def _rounds(words: list[str]) -> int:
    """How often the most repeated phrase stands in a row."""
    most = 1
    for length in range(1, min(LOOP_WORDS, len(words) // LOOPS) + 1):
        same = 0
        for one, other in zip(words, words[length:], strict=False):
            same = same + 1 if one == other else 0
            most = max(most, 1 + same // length)
    return most


PREFACE_SHARE, PREFACE_WORDS, PREFACE_CLIPS = 0.5, 2, 6
"""From which share of transcripts on a common beginning is no chance, of so many words and punctuation marks, and over
so many texts."""

_TOKEN = re.compile(rf"{UNSPACED}|[^\W{UNSPACED[1:-1]}]+|[^\w\s]")
"""A word, a character of a script without spaces, or a punctuation mark."""


def common_preface(pairs: Iterable[tuple[str, str]], scoring: Scoring) -> tuple[int, str] | None:
    """The beginning that half of the transcripts, or more, have in common, and none of their references has, as they
    are compared: how many have it, and its words. None if there is no such beginning."""
    distinct = set(pairs)
    heard = [(_TOKEN.findall(text), text) for _, text in distinct]
    first = Counter(tuple(tokens[:PREFACE_WORDS]) for tokens, _ in heard if len(tokens) > PREFACE_WORDS)
    (start, count), *_ = first.most_common(1) or [((), 0)]
    if len({reference for reference, _ in distinct}) < PREFACE_CLIPS or count < PREFACE_SHARE * len(distinct):
        return None
    alike = [(tokens, text) for tokens, text in heard if tuple(tokens[:PREFACE_WORDS]) == start]
    length = len(_common([tokens for tokens, _ in alike]))
    if any(len(tokens) == length for tokens, _ in alike):
        return None  # nothing follows it: they all say the same, as a scripted server does
    text = alike[0][1]
    ends = [match.end() for match in _TOKEN.finditer(text)]
    references = [_compared(reference, reference, scoring) for reference, _ in distinct]
    said = _compared(text[: ends[PREFACE_WORDS - 1]], "a", scoring)
    if any(reference.startswith(said) for reference in references):
        return None
    if not _compared(text[: ends[length - 1]], "a", scoring):
        return None  # the normalizer takes it off, as a note in brackets
    # What the speakers all begin with is no part of it.
    common = "".join(_common(references))
    for at in reversed(range(PREFACE_WORDS, length)):
        rest = _compared(text[ends[at - 1] : ends[length - 1]], "a", scoring)
        if rest and common.startswith(rest):
            length = at
            break
    return count, " ".join(text[: ends[length - 1]].split())


def _compared(text: str, reference: str, scoring: Scoring) -> str:
    """Text as it is compared, without its spaces, which not all scripts have."""
    return "".join(normalise(text, reference, scoring).split())


def _common(texts: Iterable[Sequence[str]]) -> list[str]:
    """What all begin with."""
    columns = zip(*texts, strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]


def left_envelope(records: Iterable[Record]) -> tuple[int, str] | None:
    """The envelope that half of the transcripts, or more, still have around them: how many have it, and its name, one
    of TEXT_FORMATS. None if there is none."""
    texts = Counter((record.text, record.text_format) for record in records if record.text)
    found = Counter[str]()
    for (text, text_format), times in texts.items():
        if text_format == "raw" and (name := unwrap(text).format) != "raw":
            found[name] += times
    (name, count), *_ = found.most_common(1) or [("", 0)]
    return (count, name) if count and count >= PREFACE_SHARE * texts.total() else None
