"""Make text from servers, data sets and workers safe to show in a terminal, a table or a page."""

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
"""Zero-width joiners, which Persian, the languages of India and emoji need."""


def visible(text: str) -> str:
    """Escape control characters: a terminal would obey them, and bidirectional overrides would show a different text
    (https://www.unicode.org/reports/tr36/)."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(char: str) -> str:
    # Control, format, surrogate, private use; line and paragraph separators.
    if char not in KEPT and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return ascii(char)[1:-1]
    return char


def count_of(number: int, noun: str) -> str:
    """A number with its noun, in the plural if necessary: "1 worker", "2 workers"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


STRUCK = "***"

SECRET = re.compile(r"api_?key|secret|password|passwd|credential|authorization|(^|_)(auth|token|key)$", re.IGNORECASE)
"""Names of fields, in JSON and queries, whose values are secrets."""

MIN_SECRET = 8
"""Minimum length of a secret that is searched for in headers and speech: "Bearer" and "gzip" are not secrets."""

SILENT = logging.Logger("silent")
"""A disabled logger for packages that would log a server's text, or a handshake with its key, with --loglevel DEBUG. It
is not registered with logging, because Locust reconfigures registered loggers."""
SILENT.disabled = True

MAX_CHARS = 2000
"""Maximum length of a server's text. Records keep a quarter of it after secrets are removed, so that no half of a
secret remains."""

MOST_CHARS = 16 * MAX_CHARS
"""Maximum length of the text that is searched for secrets, so that the search takes about a millisecond."""

LONGEST_SECRET = 512


def whole_characters(text: str) -> str:
    """Join the halves of surrogate pairs; a lone half becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def shorten(text: str | bytes, limit: int = MAX_CHARS) -> str:
    """One line of at most `limit` characters, with control characters escaped. Cuts between words, because half of a
    secret could no longer be found."""
    most = 4 * limit  # much of it may be white space
    if isinstance(text, bytes):
        text = text[: 4 * (most + 1)].decode(errors="replace")
    line = visible(whole_characters(" ".join(text[:most].split())))
    if len(line) <= limit and len(text) <= most:
        return line
    kept, _, word = line[: limit - 1].rpartition(" ")
    return (kept if len(word) < LONGEST_SECRET else line[: limit - 1]) + "…"


def is_no_speech(secret: str) -> bool:
    """Whether a secret cannot be an ordinary spoken word. Removing `EMPTY` or a header's word from a transcript would
    falsify its word error rate."""
    return len(secret) >= MIN_SECRET and not secret.isalpha()


def striker(secrets: Iterable[str]) -> Callable[[str], str]:
    """A function that replaces secrets in a text, also as encoded in URLs, JSON, HTML and base64."""
    forms = sorted({form for secret in secrets if secret for form in _forms(secret)}, key=len, reverse=True)
    if not forms:
        return str
    find = re.compile("|".join(map(re.escape, forms)))
    return lambda text: find.sub(STRUCK, text)


class Intake:
    """Cleans text from a server or proxy: headers, fields, events, reasons. All such text passes through here before it
    is kept or shown."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = [*secrets]
        self._strike = striker(known)
        self.speech = striker(filter(is_no_speech, known))
        """Removes secrets from a transcript, except those that could be spoken words."""

    def line(self, text: str, limit: int = MAX_CHARS // 4) -> str:
        """One line of at most `limit` characters, without secrets, with control characters escaped."""
        return shorten(self._strike(text[:MOST_CHARS]), limit)


def _forms(secret: str) -> Iterator[str]:
    yield secret
    escaped = json.dumps(secret)[1:-1]
    yield from (escaped, escaped.replace("/", r"\/"), html.escape(secret))
    for quoted in (quote(secret), quote(secret, safe=""), quote_plus(secret)):
        yield quoted
        yield re.sub("%..", lambda byte: byte[0].lower(), quoted)
    data = secret.encode()
    for offset in range(3):  # the encoding depends on the number of bytes before it
        if len(data) <= offset + 3:
            continue
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # Without the characters that also encode neighbouring bytes.
            whole = encode(bytes(offset) + data).decode().rstrip("=")
            yield whole[-(-offset * 8 // 6) : len(whole) - bool((offset + len(data)) % 3)]
