"""How text is written the same way before it is compared: capitals, punctuation, numbers, spellings."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from asr_load.languages import is_unspaced, language_code

NORMALIZERS = ("whisper", "basic", "open-asr", "none")
"""whisper: OpenAI's normaliser of English for English, its basic one otherwise (Radford et al., 2022, appendix C), by
which most figures are published. basic: the basic one, whatever the language. open-asr: as the Open ASR Leaderboard
(https://github.com/huggingface/open_asr_leaderboard). none: words as they came, with capitals and punctuation."""


@dataclass(frozen=True)
class Scoring:
    """How transcripts are compared with references."""

    language: str = "en"
    """The references' language; its code, however it was written."""
    normalizer: str = "whisper"
    """One of NORMALIZERS."""
    in_parts: bool = False
    """Whether clips may be parts of recordings (prepare.py --chunk-long), which are scored as wholes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", language_code(self.language))

    @property
    def is_unspaced(self) -> bool:
        """Whether the language is written without spaces between words."""
        return is_unspaced(self.language)


def normalise(text: str, reference: str, scoring: Scoring) -> str:
    """Text as it is compared: its words, one space apart.

    A reference without a single Latin letter is not English, whatever the set says: AISHELL among LibriSpeech.
    """
    english = scoring.language == "en" and any(char.isascii() and char.isalpha() for char in reference)
    if scoring.normalizer == "none":
        return " ".join(text.split())
    return _normalised(text, scoring.normalizer, english)


# Clips are sent again and again, and a text takes 2 ms: the references would take longer than all else of a summary.
@functools.lru_cache(maxsize=1 << 16)
def _normalised(text: str, normalizer: str, english: bool) -> str:
    return " ".join(_normaliser(normalizer, english)(text).split())


@functools.cache
def _normaliser(normalizer: str, english: bool) -> Callable[[str], str]:
    # Late: loading the English spelling table takes a moment that only a summary has.
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    basic: Callable[[str], str] = BasicTextNormalizer()
    if normalizer == "open-asr":
        return _open_asr_english() if english else _open_asr(basic)
    return EnglishTextNormalizer() if normalizer == "whisper" and english else basic


FILLERS = ("ah", "aha", "ahh", "ahm", "eh", "ehehe", "em", "hm", "hmm", "huh", "hum", "mhm", "mhum", "mm", "mmm", "uh",
           "uhm", "uhuh", "um", "umm")  # fmt: skip
"""What the leaderboard does not count as words."""

COMPOUNDS = {
    r"al(?:l)? right": "alright",
    r"et cetera|etcetera": "etc",
    r"how ever": "however",
    r"o k|ok|kay": "okay",
    r"([ap]) m": r"\1m",
    r"(wi|hi|lo|sci) fi": r"\1fi",
    r"e (mail|book|commerce)": r"e\1",
    r"x ray": "xray",
    r"t shirt": "tshirt",
}
"""Words that the leaderboard takes for one, in its normaliser's text."""


def _open_asr_english() -> Callable[[str], str]:
    """Whisper's normaliser with the leaderboard's fillers, contractions, compounds and acronyms. Its table of names
    that sound alike (Karl and Carl) is not here."""
    from whisper_normalizer.english import EnglishTextNormalizer

    whisper = EnglishTextNormalizer()
    whisper.ignore_patterns = rf"\b({'|'.join(FILLERS)})\b"
    for kept in ("kinda", "sorta", "dunno", "cause"):
        del whisper.replacers[rf"\b{kept}\b"]
    # A possessive stays one.
    whisper.replacers = {
        r"\b(it|he|she|what|that|who|here|there|how|when|where|why|this)'s\b" if pattern == r"'s\b" else pattern: (
            r"\1 is" if pattern == r"'s\b" else word
        )
        for pattern, word in whisper.replacers.items()
    }
    compounds = [(re.compile(rf"\b(?:{pattern})\b"), word) for pattern, word in COMPOUNDS.items()]

    def normalise_english(text: str) -> str:
        text = " ".join(whisper(text).split())
        for pattern, word in compounds:
            text = pattern.sub(word, text)
        return _ACRONYM.sub(_joined, text)

    return normalise_english


_ACRONYM = re.compile(r"(?<!\S)\w(?: \w)+(?!\S)")


def _joined(match: re.Match[str]) -> str:
    """`b b c` is one word; two letters are only where neither can be a word."""
    letters = match[0].split()
    return "".join(letters) if len(letters) > 2 or not {"a", "i"} & set(letters) else match[0]


def _open_asr(basic: Callable[[str], str]) -> Callable[[str], str]:
    """Of other languages: the basic one, with what it leaves of punctuation taken out. The leaderboard also writes
    numbers as words, which is not done here."""

    def normalise_other(text: str) -> str:
        return re.sub(r"(\d)\s+(\d{3})\b", r"\1\2", re.sub(r"[^\w\s]", "", basic(text)))

    return normalise_other
