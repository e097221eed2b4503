"""Parse languages: names, ISO 639 codes, BCP 47 tags, and the codes of data sets (cmn_hans_cn).

langcodes knows the names and codes. All other code compares languages by the code that this module returns.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from asr_load.errors import InputError

NO_LANGUAGE = frozenset(("und", "mul", "mis", "zxx"))
"""ISO 639 codes for undetermined, multiple, uncoded and no languages."""

SAME = {"fil": "tl", "nb": "no"}
"""Codes for which speech recognizers and ISO 639-1 use another one: Filipino and Norwegian Bokmål."""

SHORTEST_NAME = 3
"""Minimum length of a name in Latin script: two letters are a code, and langcodes takes `a` for a language of Papua New
Guinea."""

UNSPACED_SCRIPTS = frozenset(("Hans", "Hant", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"))
"""Scripts without spaces between words, by their codes (ISO 15924)."""

UNSPACED = (
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Characters of these scripts, as a class of regular expressions: Thai, Lao, Tibetan, Burmese, Khmer, Japanese and
Chinese."""

_UNSPACED_OR_MARK = re.compile(f"{UNSPACED[:-1]}\u3000-\u303f\uff01-\uff60]")
"""Characters of unspaced scripts, and Chinese and Japanese punctuation."""


@functools.lru_cache(maxsize=1024)
def find_language(text: str) -> str | None:
    """The code of a language: ISO 639-1 where it has one (en), else ISO 639-3 (yue). None if the language is unknown.

    A region, a script or a dialect of a macrolanguage does not matter: en-US is en, Mandarin is zh.
    """
    import langcodes  # late: most processes that import this module parse no language

    text = text.strip()
    try:
        language = langcodes.Language.get(text)
    except ValueError:  # LanguageTagError
        language = langcodes.Language.make()
    if not language.is_valid() or language.language is None:
        if text.isascii() and len(text) < SHORTEST_NAME:
            return None
        try:
            language = langcodes.find(text)
        except (LookupError, ValueError):  # ValueError: a zero byte in a name makes langcodes decode invalid UTF-8
            return None
    code = language.prefer_macrolanguage().language
    if code is None or code in NO_LANGUAGE:
        return None
    # All languages with two letters have a name; the table of names takes 0.1 s to load.
    if len(code) > 2 and language.language_name().startswith("Unknown"):
        return None
    return SAME.get(code, code)


def parse_language(text: str) -> str:
    """The code of the language that --language names, as `find_language` returns it. Raises InputError."""
    code = find_language(text)
    if code is None:
        raise InputError(
            f"--language {text}: unknown language. Give its name (German), its ISO 639 code (de, deu) or a tag (de-AT)"
        )
    return code


def language_code(text: str) -> str:
    """The code of a language in a file of an earlier version; the text in lower case if the language is unknown."""
    return find_language(text) or text.strip().lower()


def language_name(text: str) -> str:
    """The English name of a language, for prompts. Raises InputError."""
    import langcodes

    return langcodes.Language.make(parse_language(text)).language_name()


@functools.cache
def is_unspaced(code: str) -> bool:
    """Whether a language is written without spaces: a whole sentence would be one "word", wrong if one character is."""
    import langcodes

    return find_language(code) == code and langcodes.Language.make(code).maximize().script in UNSPACED_SCRIPTS


def joined(texts: Iterable[str]) -> str:
    """Join the texts of speech segments with spaces, except next to a script that has none."""
    whole = ""
    for text in filter(None, map(str.strip, texts)):
        is_spaced = whole and not _UNSPACED_OR_MARK.match(whole[-1]) and not _UNSPACED_OR_MARK.match(text)
        whole += f" {text}" if is_spaced else text
    return whole
