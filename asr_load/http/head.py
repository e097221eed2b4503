"""Parse the head of a response with llhttp (httptools), within limits."""

from __future__ import annotations

import re
from http import HTTPStatus

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from asr_load.http.collector import CHUNKED, UNTIL_CLOSE
from asr_load.stream.limits import MAX_HEAD_BYTES, MAX_HEAD_LINES, MAX_INTERIM, MAX_LENGTH_DIGITS
from asr_load.stream.reader import ProtocolError
from asr_load.text import shorten

NO_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)

_head_end = re.compile(rb"\n\r?\n").search
_LONG_LENGTH = f"a content-length of more than {MAX_LENGTH_DIGITS} digits"


class Head:
    """The status line and the fields of a response."""

    def __init__(self) -> None:
        self.status = 0
        self.reason = ""
        self.fields: list[tuple[str, str]] = []
        """Names and values, in order."""
        self.framing = 0
        """How the body ends: its length in bytes, CHUNKED or UNTIL_CLOSE."""
        self.keep_alive = False
        """Whether the server keeps the connection after this response."""
        self.complete = False

    def get(self, name: str) -> str:
        """The value of the first field with a name in lower case; empty without one."""
        return next((value for key, value in self.fields if key.lower() == name), "")

    # httptools calls the following methods.

    def on_status(self, reason: bytes) -> None:
        self.reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.decode("latin-1").strip(), value.decode("latin-1").strip()))

    def on_headers_complete(self) -> None:
        self.complete = True


class HeadParser:
    """Parses the head of one response, in pieces. Skips interim responses (1xx except 101), as RFC 9110, section 15.2,
    requires."""

    def __init__(self) -> None:
        self.head: Head | None = None
        """The head of the final response, once it is complete."""
        self._left = MAX_HEAD_BYTES
        self._interim = 0
        self._begin()

    def _begin(self) -> None:
        self._next = Head()
        self._lines = 0
        self._parser = HttpResponseParser(self._next)
        # What old servers send: folded fields, bare line feeds, and a length in addition to chunks, which RFC 9112,
        # section 6.3, lets a client ignore.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_optional_cr_before_lf=True,
            lenient_chunked_length=True,
            lenient_transfer_encoding=True,
        )

    def feed(self, data: bytes) -> int:
        """Parse bytes up to the end of the head. Returns how many belong to the head. Raises ProtocolError."""
        end = 0
        while end < len(data) and self.head is None:
            # httptools does not report where in the data a head ends. Usually it is there as a whole; otherwise, it is
            # fed line by line.
            whole = None if self._lines else _head_end(data, end)
            start, end = end, whole.end() if whole else data.find(b"\n", end) + 1 or len(data)
            self._feed_lines(data[start:end])
        return end

    def _feed_lines(self, lines: bytes) -> None:
        self._left -= len(lines)
        if self._left < 0:
            raise ProtocolError(f"a head of more than {MAX_HEAD_BYTES} bytes")
        self._lines += lines.count(b"\n")
        if self._lines > MAX_HEAD_LINES:
            raise ProtocolError(f"a head of more than {MAX_HEAD_LINES} lines")
        try:
            self._parser.feed_data(lines)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self._next.complete:  # after the head of a 101, the parser waits for the other protocol
                if "Content-Length overflow" in str(error):
                    raise ProtocolError(_LONG_LENGTH) from error
                first = lines.partition(b"\n")[0]
                raise ProtocolError(f"not HTTP ({error}): {shorten(first)}") from error
        if self._next.complete:
            self._end_head(self._next)

    def _end_head(self, head: Head) -> None:
        head.status = self._parser.get_status_code()
        if head.status // 100 == 1 and head.status != HTTPStatus.SWITCHING_PROTOCOLS:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise ProtocolError(f"more than {MAX_INTERIM} interim responses")
            self._begin()
            return
        version = self._parser.get_http_version()
        if not version.startswith("1.") or head.status < HTTPStatus.CONTINUE:
            raise ProtocolError(f"not HTTP/1.1: version {version}, status {head.status}")
        head.framing = _framing(head)
        # A server closes after 408, even without a Connection field: RFC 9110, section 15.5.9.
        head.keep_alive = self._parser.should_keep_alive() and head.status != HTTPStatus.REQUEST_TIMEOUT
        self.head = head


def _framing(head: Head) -> int:
    if head.status in NO_BODY or head.status // 100 == 1:
        return 0
    values = [value for name, value in head.fields if name.lower() == "transfer-encoding"]
    codings = {coding.strip().lower() for coding in ",".join(values).split(",")} - {"", "identity"}
    if codings == {"chunked"}:
        return CHUNKED
    if codings:
        raise ProtocolError(f"unsupported transfer-encoding: {', '.join(values)}")
    length = head.get("content-length")
    if len(length) > MAX_LENGTH_DIGITS:
        raise ProtocolError(_LONG_LENGTH)
    return int(length) if length else UNTIL_CLOSE
