"""Word and character error rates, with the normalisers that published Whisper figures use."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec


def prepare() -> None:
    """Import and build what scoring needs: at the end of a run the process may have no descriptors left."""
    for language in ("en", "de"):
        counts("words", "other words", language)


class Accuracy(msgspec.Struct):
    """Over all pairs that have a reference; None where there is none."""

    wer: float | None = None
    cer: float | None = None
    references: int = 0


@functools.cache
def _normaliser(english: bool) -> Callable[[str], str]:
    # Late: loading the English spelling table takes a moment that only a summary has.
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer() if english else BasicTextNormalizer()  # type: ignore[no-any-return]


def normalise(text: str, reference: str, language: str) -> str:
    """Text as it is compared: Whisper's English normaliser for English, its basic one otherwise.

    A reference without a single Latin letter is not English, whatever the set says: AISHELL among LibriSpeech.
    """
    english = language == "en" and any(char.isascii() and char.isalpha() for char in reference)
    return _normalised(text, english)


# Clips are sent again and again, and a text takes 2 ms: the references would take longer than all else of a summary.
@functools.lru_cache(maxsize=1 << 16)
def _normalised(text: str, english: bool) -> str:
    return " ".join(_normaliser(english)(text).split())


class Counts(NamedTuple):
    """Of a transcript against its reference: S + D + I, and N, in words (wer) and in characters (cer)."""

    wer_errors: int
    wer_units: int
    cer_errors: int
    cer_units: int


MOST = 10
"""How many times as long as its reference a transcript may be; a longer one is all insertions."""

NOTHING = Counts(0, 0, 0, 0)


@functools.lru_cache(maxsize=1 << 16)
def counts(reference: str, hypothesis: str, language: str) -> Counts:
    """What one transcript adds to the rates; nothing without a reference."""
    words = normalise(reference, reference, language)
    if not words:
        return NOTHING
    if len(hypothesis) > MOST * len(reference):
        # To align a text that has nothing to do with the reference takes minutes, and finds nothing.
        heard_words = len(hypothesis.split())
        heard_characters = len("".join(hypothesis.split())) + max(heard_words - 1, 0)
        return Counts(
            max(heard_words, len(words.split())), len(words.split()), max(heard_characters, len(words)), len(words)
        )
    heard = normalise(hypothesis, reference, language)
    import jiwer  # late: as the normalisers

    by_word, by_character = jiwer.process_words(words, heard), jiwer.process_characters(words, heard)
    errors_and_units = []
    for out in (by_word, by_character):
        errors_and_units += [
            out.substitutions + out.deletions + out.insertions,
            out.hits + out.substitutions + out.deletions,
        ]
    return Counts(*errors_and_units)


def measure(pairs: Iterable[tuple[str, str]], language: str) -> Accuracy:
    """(S + D + I) / N over (reference, hypothesis) pairs, counts summed first; pairs without a reference left out."""
    counted = [pair_counts for pair_counts in (counts(*pair, language) for pair in pairs) if pair_counts.wer_units]
    if not counted:
        return Accuracy()
    word_errors, words, character_errors, characters = (sum(column) for column in zip(*counted, strict=True))
    return Accuracy(wer=word_errors / words, cer=character_errors / characters, references=len(counted))


UNSPACED = frozenset(("zh", "cmn", "yue", "ja", "th", "lo", "km", "my", "bo"))
"""Languages that are written without spaces between words, by their codes: one wrong character makes a sentence of one
"word" wrong."""


def rate_for(language: str) -> str:
    """Which of wer and cer says how true transcripts of a language are."""
    return "cer" if re.split("[-_]", language.lower())[0] in UNSPACED else "wer"


PREFACE_SHARE, PREFACE_WORDS, PREFACE_CLIPS = 0.5, 2, 6
"""From which share of transcripts on a common beginning is no chance, of so many words, and over so many texts."""


def common_preface(pairs: Iterable[tuple[str, str]], language: str) -> tuple[int, str] | None:
    """The words that half of the transcripts, or more, begin with, and none of their references, as they are compared:
    how many do, and the words. None where there is no such beginning."""
    distinct = set(pairs)
    heard = [(reference, text.split()) for reference, text in distinct if len(text.split()) > PREFACE_WORDS]
    first = Counter(tuple(words[:PREFACE_WORDS]) for _, words in heard)
    (words, count), *_ = first.most_common(1) or [((), 0)]
    if len({reference for reference, _ in distinct}) < PREFACE_CLIPS or count < PREFACE_SHARE * len(distinct):
        return None
    references = [normalise(reference, reference, language).split() for reference, _ in distinct]
    begins = _common([text for _, text in heard if tuple(text[:PREFACE_WORDS]) == words])
    spoken = normalise(" ".join(words), "a", language).split()
    if any(reference[: len(spoken)] == spoken for reference in references):
        return None
    if any(len(text) == len(begins) for _, text in heard if tuple(text[:PREFACE_WORDS]) == words):
        return None  # nothing follows it: they all say the same, as a scripted server does
    # What the speakers all begin with is no part of it.
    said = _common(references)
    for at in range(PREFACE_WORDS, len(begins)):
        rest = normalise(" ".join(begins[at:]), "a", language).split()
        if rest == said[: len(rest)]:
            begins = begins[:at]
            break
    return count, " ".join(begins)


def _common(lists: list[list[str]]) -> list[str]:
    """What all begin with."""
    columns = zip(*lists, strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
