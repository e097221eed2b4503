"""How text is written the same way before it is compared: capitals, punctuation, numbers, spellings."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from asr_load.languages import UNSPACED, is_unspaced, language_code

NORMALIZERS = ("whisper", "basic", "open-asr", "none")
"""whisper: OpenAI's normaliser of English for English, its basic one otherwise (Radford et al., 2022, appendix C), by
which most figures are published. basic: the basic one, whatever the language. open-asr: as the Open ASR Leaderboard
(https://github.com/huggingface/open_asr_leaderboard). none: words as they came, with capitals and punctuation.

The basic one is kept from taking vowel signs for punctuation (see `_basic`)."""


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
    """Text as it is compared: its words, one space apart."""
    if scoring.normalizer == "none":
        return " ".join(unicodedata.normalize("NFC", text).split())
    return _normalised(text, scoring.normalizer, _is_english(reference, scoring))


def _is_english(reference: str, scoring: Scoring) -> bool:
    """Whether a reference is normalised as English. One that is mostly in another script is not, whatever the set says:
    AISHELL among LibriSpeech."""
    if scoring.language != "en" or scoring.normalizer == "basic":
        return False
    is_latin = [char.isascii() for char in reference if _is_of_a_word(char) and not char.isdigit()]
    return 2 * sum(is_latin) > len(is_latin)


def characters(text: str, reference: str, scoring: Scoring) -> str:
    """The characters of a normalised text that count in CER: letters and digits only, if its reference is written
    without spaces between words, where spaces and commas show how somebody typed it and not what was said."""
    is_spaced = not scoring.is_unspaced and 2 * len(_UNSPACED.findall(reference)) <= len("".join(reference.split()))
    return text if is_spaced else "".join(filter(_is_of_a_word, text))


def _is_of_a_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char)[0] == "M"


def variant(reference: str, scoring: Scoring) -> str:
    """What the normalizer does with a reference and its transcripts, in words; empty for `none`."""
    if scoring.normalizer == "none":
        return ""
    if _is_english(reference, scoring):
        return "English"
    if any(unicodedata.category(char)[0] == "M" for char in normalise(reference, reference, scoring)):
        return "basic with vowel signs"
    return "basic without optional vowel marks" if _SEMITIC.search(reference) else "basic"


# Clips are sent again and again, and a text takes 2 ms: the references would take longer than all else of a summary.
@functools.lru_cache(maxsize=1 << 16)
def _normalised(text: str, normalizer: str, english: bool) -> str:
    return " ".join(_normaliser(normalizer, english)(text).split())


@functools.cache
def _normaliser(normalizer: str, english: bool) -> Callable[[str], str]:
    # Late: loading the English spelling table takes a moment that only a summary has.
    from whisper_normalizer.english import EnglishTextNormalizer

    if normalizer == "open-asr":
        return _open_asr_english() if english else _open_asr(_basic())
    return EnglishTextNormalizer() if english else _basic()


_UNSPACED = re.compile(UNSPACED)

_SEMITIC = re.compile("[\u0590-\u06ff]")
"""Characters of Hebrew and Arabic scripts."""

_OPTIONAL = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"  # Hebrew points and accents
    "\u0610-\u061a\u0640\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed"  # Arabic
    "\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"  # invisible: joiners, directions, soft hyphens
)
"""Characters that writers may leave out: vowel marks of Hebrew and Arabic, the stroke that lengthens a word there, and
characters that only change how others are drawn."""

_DIACRITICS = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe00-\ufe0f\ufe20-\ufe2f"
    "\U000e0100-\U000e01ef]"
)
"""Combining diacritics of alphabets, and variation selectors, as far as NFKC leaves them."""


def _basic() -> Callable[[str], str]:
    """Whisper's basic normalizer, which puts a space in the place of marks, except that it does as scripts need it.

    Vowel signs and viramas (Indic scripts, Thai, Khmer and others) are kept: without them wrong words are equal.
    Optional vowel marks (Arabic, Hebrew) are dropped, as most transcripts do not have them. Text in alphabets is
    treated as Whisper's does, so that published figures can be compared.
    """
    from whisper_normalizer.basic import BasicTextNormalizer

    keeping: Callable[[str], str] = BasicTextNormalizer(preserve_marks=True)
    return lambda text: _DIACRITICS.sub(" ", _OPTIONAL.sub("", keeping(text)))


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
        plain = "".join(char for char in basic(text) if char.isspace() or _is_of_a_word(char))
        return re.sub(r"(\d)\s+(\d{3})\b", r"\1\2", plain)

    return normalise_other
