"""Text normalizers, applied before text is compared: capitals, punctuation, numbers, spellings."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from asr_load.languages import UNSPACED, is_unspaced, language_code

NORMALIZERS = ("whisper", "basic", "open-asr", "none")
"""whisper: OpenAI's normalizer for English, its basic one for other languages (Radford et al., 2022, appendix C); most
published figures use it. basic: the basic one for every language. open-asr: as in the Open ASR Leaderboard
(https://github.com/huggingface/open_asr_leaderboard). none: words unchanged, with capitals and punctuation.

The basic one differs from Whisper's in that it does not take vowel signs for punctuation (see `_basic`)."""


@dataclass(frozen=True)
class Scoring:
    """How to compare transcripts with references."""

    language: str = "en"
    """Code of the references' language; also accepts its name."""
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
    """Normalize text for comparison: its words, separated by single spaces."""
    if scoring.normalizer == "none":
        return " ".join(unicodedata.normalize("NFC", text).split())
    return _normalised(text, scoring.normalizer, _is_english(reference, scoring))


def _is_english(reference: str, scoring: Scoring) -> bool:
    """Whether to normalize a reference as English. One that is mostly in another script is not English, whatever the
    set says, for example AISHELL mixed into LibriSpeech."""
    if scoring.language != "en" or scoring.normalizer == "basic":
        return False
    is_latin = [char.isascii() for char in reference if _is_of_a_word(char) and not char.isdigit()]
    return 2 * sum(is_latin) > len(is_latin)


def characters(text: str, reference: str, scoring: Scoring) -> str:
    """The characters of a normalized text that count in CER. If its reference is written without spaces between words,
    only letters and digits count, because spaces and commas then show typing habits and not speech."""
    is_spaced = not scoring.is_unspaced and 2 * len(_UNSPACED.findall(reference)) <= len("".join(reference.split()))
    return text if is_spaced else "".join(filter(_is_of_a_word, text))


def _is_of_a_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char)[0] == "M"


def variant(reference: str, scoring: Scoring) -> str:
    """The normalizer's variant for a reference and its transcripts; empty for `none`."""
    if scoring.normalizer == "none":
        return ""
    if _is_english(reference, scoring):
        return "English"
    if any(unicodedata.category(char)[0] == "M" for char in normalise(reference, reference, scoring)):
        return "basic with vowel signs"
    return "basic without optional vowel marks" if _SEMITIC.search(reference) else "basic"


# Clips repeat, and a text takes 2 ms, so without a cache the references would dominate the time of a summary.
@functools.lru_cache(maxsize=1 << 16)
def _normalised(text: str, normalizer: str, english: bool) -> str:
    return " ".join(_normaliser(normalizer, english)(text).split())


@functools.cache
def _normaliser(normalizer: str, english: bool) -> Callable[[str], str]:
    # Imported late because loading the English spelling table is slow.
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
invisible characters that only change how others are drawn."""

_DIACRITICS = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe00-\ufe0f\ufe20-\ufe2f"
    "\U000e0100-\U000e01ef]"
)
"""Combining diacritics of alphabets, and variation selectors, that NFKC leaves."""


def _basic() -> Callable[[str], str]:
    """Whisper's basic normalizer, which replaces marks with spaces, except in scripts that need their marks.

    It keeps vowel signs and viramas (Indic scripts, Thai, Khmer and others), because wrong words would be equal without
    them. It drops optional vowel marks (Arabic, Hebrew), because most transcripts do not have them. It treats alphabets
    as Whisper's does, so that figures are comparable with published ones."""
    from whisper_normalizer.basic import BasicTextNormalizer

    keeping: Callable[[str], str] = BasicTextNormalizer(preserve_marks=True)
    return lambda text: _DIACRITICS.sub(" ", _OPTIONAL.sub("", keeping(text)))


FILLERS = ("ah", "aha", "ahh", "ahm", "eh", "ehehe", "em", "hm", "hmm", "huh", "hum", "mhm", "mhum", "mm", "mmm", "uh",
           "uhm", "uhuh", "um", "umm")  # fmt: skip
"""Fillers that the leaderboard does not count as words."""

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
"""Words that the leaderboard joins, in the text of its normalizer."""


def _open_asr_english() -> Callable[[str], str]:
    """Whisper's normalizer with the leaderboard's fillers, contractions, compounds and acronyms, but without its table
    of names that sound alike (Karl and Carl)."""
    from whisper_normalizer.english import EnglishTextNormalizer

    whisper = EnglishTextNormalizer()
    whisper.ignore_patterns = rf"\b({'|'.join(FILLERS)})\b"
    for kept in ("kinda", "sorta", "dunno", "cause"):
        del whisper.replacers[rf"\b{kept}\b"]
    # Keep possessives.
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
    """Join `b b c` into one word, and two letters only if neither can be a word."""
    letters = match[0].split()
    return "".join(letters) if len(letters) > 2 or not {"a", "i"} & set(letters) else match[0]


def _open_asr(basic: Callable[[str], str]) -> Callable[[str], str]:
    """The normalizer for other languages: the basic one, without the punctuation that it leaves. Unlike the
    leaderboard's, it does not write numbers as words."""

    def normalise_other(text: str) -> str:
        plain = "".join(char for char in basic(text) if char.isspace() or _is_of_a_word(char))
        return re.sub(r"(\d)\s+(\d{3})\b", r"\1\2", plain)

    return normalise_other
