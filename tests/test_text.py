"""Text from servers and files is shown without control characters and without secrets."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from asr_load.errors import InputError
from asr_load.load.master import expected
from asr_load.report.console import console_for
from asr_load.results.runfile import absurd
from asr_load.text import MAX_CHARS, shorten, striker, visible
from harness.answers import EVENTS, each_reader, sized
from harness.peer import STREAM, talk
from harness.records import worker_info

SECRET = 'sk-"live"/4711+äöü=x'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Grüße, 日本語, café", "plain, Grüße, 日本語, café"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb\nc\x00", r"a\rb\nc\x00"),
        ("a\u202egpj.exe\u2066", r"a\u202egpj.exe\u2066"),
        ("\ud800", r"\ud800"),
        ("\u2028\ufeff\U000e0041", r"\u2028\ufeff\U000e0041"),
        ("क\u200dष", "क\u200dष"),
    ],
)
def test_control_characters_are_shown_as_text(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert str(InputError(text)) == shown


def test_all_output_escapes_control_characters() -> None:
    out = io.StringIO()
    console_for(out).out("a\x1b[2Jb\n\u202ec")
    assert out.getvalue() == "a\\x1b[2Jb\n\\u202ec\n"
    assert shorten("a\x1b[2J  b") == r"a\x1b[2J b"
    assert "host" in absurd(worker_info(host="a\x1b[2J"))
    assert "server" in absurd(worker_info(server="x" * 300))
    assert not absurd(worker_info())
    assert expected(0, "here").host == "here"
    assert not absurd(expected(0, "a\x1b[2J" * 99))  # a stranger may claim such a name


@pytest.mark.parametrize(
    "said",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower().replace("sk-", "sk-"),
        quote_plus(SECRET),
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET)[1:-1].replace("/", r"\/"),
        html.escape(SECRET),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
        base64.b64encode(b"me:" + SECRET.encode()).decode(),
        base64.b64encode(b"user:" + SECRET.encode() + b" and more").decode(),
        base64.b64encode(b"a" + SECRET.encode() + b"!").decode(),
    ],
)
def test_secrets_are_removed_in_each_encoding(said: str) -> None:
    struck = striker([SECRET])(f"before {said} behind")
    assert struck.startswith("before ")
    assert struck.endswith(" behind")
    assert "***" in struck
    assert len(struck) <= len("before *** behind") + 24  # the rest of a base64 text stays
    assert striker([])("x") == "x"
    assert striker(["", "a"])("banana") == "b***n***n***"


def test_shorten_never_cuts_a_secret_in_half() -> None:
    secret = "s" * 40
    for before in range(MAX_CHARS - 50, MAX_CHARS + 5):
        kept = shorten("w " * (before // 2) + secret)
        assert secret in kept or "ss" not in kept
        assert len(kept) <= MAX_CHARS
    for before in range(4 * MAX_CHARS - 50, 4 * MAX_CHARS + 5):  # the white space is removed
        assert "ss" not in shorten(" " * before + secret).replace(secret, "")
        assert "ss" not in shorten((" " * before + secret).encode()).replace(secret, "")


@each_reader
def test_no_field_of_a_record_contains_a_secret(reader: str) -> None:
    secret = "sk-live-4711-0815"
    text = STREAM.replace(b'"a"', b'"a %b"' % secret.encode()).replace(b'"stop"', b'"stop %b"' % secret.encode())
    encoded = base64.b64encode(secret.encode())
    error = sized(b'{"error": {"message": "no such key: %b"}}' % encoded, b"HTTP/1.1 401 No\r\nServer: x\r\n")
    with talk(sized(text, EVENTS), error, reader=reader) as (client, peer):
        for _ in range(2):
            record = client.send(peer.url, secrets=[secret])
            assert secret not in repr(record)
            assert encoded.decode() not in repr(record)
            assert "***" in repr(record)


def test_path_with_control_characters_is_escaped_in_errors(tmp_path: Path) -> None:
    from asr_load.audio.open import open_source
    from asr_load.audio.source import DatasetSpec

    folder = tmp_path / "a\x1b[2J"
    with pytest.raises(InputError, match=r"a\\x1b\[2J") as caught:
        open_source(DatasetSpec(str(folder)))
    assert "\x1b" not in str(caught.value)


@each_reader
def test_secret_that_is_a_common_word_stays_in_transcripts(reader: str) -> None:
    """A key such as EMPTY, or words of a header, are removed from errors, but not from transcripts."""
    text = STREAM.replace(b'"a"', b'"EMPTY production of 12"')
    error = sized(b'{"error": "EMPTY production"}', b"HTTP/1.1 401 No\r\n")
    with talk(sized(text, EVENTS), error, reader=reader) as (client, peer):
        secrets = ["EMPTY", "production", "12"]
        assert client.send(peer.url, secrets=secrets).text == "EMPTY production of 12"
        assert client.send(peer.url, secrets=secrets).error == "*** ***"
