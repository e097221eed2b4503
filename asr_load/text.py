"""Text of others (servers, data sets, workers), as it may be shown in a terminal, a table or a page."""

from __future__ import annotations

import base64
import html
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote, quote_plus

KEPT = frozenset("\u200c\u200d")
"""Joiners, which Persian, the languages of India and emoji are written with."""


def visible(text: str) -> str:
    """A text with its control characters as escapes: a terminal would obey them, and bidirectional overrides would
    show another text than there is (https://www.unicode.org/reports/tr36/)."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(char: str) -> str:
    # Control, format, surrogate, private; what separates lines and paragraphs.
    if char not in KEPT and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return ascii(char)[1:-1]
    return char


def count_of(number: int, noun: str) -> str:
    """A number with its noun, of which it forms the plural: "1 worker", "2 workers"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


STRUCK = "***"

MIN_SECRET = 8
"""Characters of a word that is looked for in headers and in speech: "Bearer" and "gzip" are no secrets."""

SILENT = logging.Logger("silent")
"""For packages that log what a server sent, or a handshake with its key, as it is: with --loglevel DEBUG it would be
printed. It is none that logging knows: Locust sets those up anew."""
SILENT.disabled = True

MAX_CHARS = 2000
"""Of a server's words. Records keep a quarter of it, after secrets are struck out: so none is cut in half and kept."""

MOST_CHARS = 16 * MAX_CHARS
"""Of a text that is looked at at all: secrets are looked for in a millisecond."""

LONGEST_SECRET = 512


def whole_characters(text: str) -> str:
    """The text with the halves of its surrogate pairs joined; a half without its other one is U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def shorten(text: str | bytes, limit: int = MAX_CHARS) -> str:
    """One line of at most `limit` characters, control characters as escapes. No word is cut that may be a secret, which
    would no more be found."""
    most = 4 * limit  # of which white space may leave little
    if isinstance(text, bytes):
        text = text[: 4 * (most + 1)].decode(errors="replace")
    line = visible(whole_characters(" ".join(text[:most].split())))
    if len(line) <= limit and len(text) <= most:
        return line
    kept, _, word = line[: limit - 1].rpartition(" ")
    return (kept if len(word) < LONGEST_SECRET else line[: limit - 1]) + "…"


def is_no_speech(secret: str) -> bool:
    """Whether a secret is nothing that somebody says: `EMPTY`, or the word of a header, is no reason to take a word out
    of a transcript, whose word error rate would be false."""
    return len(secret) >= MIN_SECRET and not secret.isalpha()


def striker(secrets: Iterable[str]) -> Callable[[str], str]:
    """What strikes secrets out of a text: as they are, and as URLs, JSON, HTML and base64 write them."""
    forms = sorted({form for secret in secrets if secret for form in _forms(secret)}, key=len, reverse=True)
    if not forms:
        return str
    find = re.compile("|".join(map(re.escape, forms)))
    return lambda text: find.sub(STRUCK, text)


class Intake:
    """Takes in text from outside: what a server or a proxy writes in a header, a field, an event or a reason. All of it
    comes this way before it is kept or shown."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = [*secrets]
        self._strike = striker(known)
        self.speech = striker(filter(is_no_speech, known))
        """The same for a transcript, which is kept as it came, and in which no word of speech may be missing."""

    def line(self, text: str, limit: int = MAX_CHARS // 4) -> str:
        """One line of at most `limit` characters, without secrets, control characters as escapes."""
        return shorten(self._strike(text[:MOST_CHARS]), limit)


def _forms(secret: str) -> Iterator[str]:
    yield secret
    escaped = json.dumps(secret)[1:-1]
    yield from (escaped, escaped.replace("/", r"\/"), html.escape(secret))
    for quoted in (quote(secret), quote(secret, safe=""), quote_plus(secret)):
        yield quoted
        yield re.sub("%..", lambda byte: byte[0].lower(), quoted)
    data = secret.encode()
    for offset in range(3):  # as it is written depends on how many bytes of something else come before it
        if len(data) <= offset + 3:
            continue
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # Without the characters that hold bits of what is before and behind.
            whole = encode(bytes(offset) + data).decode().rstrip("=")
            yield whole[-(-offset * 8 // 6) : len(whole) - bool((offset + len(data)) % 3)]
