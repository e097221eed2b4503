"""Word and character error rates, with the normalisers that published Whisper figures use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import jiwer
import msgspec


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


def measure(pairs: Iterable[tuple[str, str]], language: str) -> Accuracy:
    """(S + D + I) / N over (reference, hypothesis) pairs, counts summed first; pairs without a reference left out."""
    references, hypotheses = [], []
    for reference, hypothesis in pairs:
        words = normalise(reference, reference, language)
        if words:
            references.append(words)
            hypotheses.append(normalise(hypothesis, reference, language))
    if not references:
        return Accuracy()
    words_out = jiwer.process_words(references, hypotheses)
    characters_out = jiwer.process_characters(references, hypotheses)
    return Accuracy(wer=words_out.wer, cer=characters_out.cer, references=len(references))
