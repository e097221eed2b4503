"""Find the server-sent events in a body: all at once in C (_events.c), or one by one with sseclient-py.

The C finder takes events only if all have the simple form that engines send. sseclient-py parses any others, and all
events where the C code was not compiled. It differs from the standard (WHATWG HTML, section 9.2) in five ways:

- It ends an event only after two equal line ends, not after every blank line: `event_ends` makes up for it.
- It copies the data so far for each line of an event, in quadratic time: MAX_EVENT_LINES bounds it.
- It fails on invalid UTF-8 instead of replacing it, which is wanted: a transcript with replacements would be wrong.
- It takes an event that the end of the body cuts off, which is wanted too: some servers omit the last blank line.
- It does not skip a byte order mark; the caller does.

Fields named `error`, which llama.cpp sends, are not in the standard; `name_errors` converts them to events named error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sseclient import SSEClient

from asr_load.text import SILENT

try:
    from asr_load.stream import _events
except ImportError:  # not compiled: see the extension in pyproject.toml
    _events = None  # type: ignore[assignment]

find = None if _events is None else _events.find
"""The compiled finder; None without one. See _events.pyi."""

event_ends = re.compile(rb"(?>\r\n|\n|\r)[\r\n]").finditer
"""Finds where events end: at every blank line, whatever its line ends are. A CR ends a line without waiting for the LF
that may follow, so that an event ends at the same byte whether or not more bytes have arrived."""

_error_line = re.compile(rb"(?:^|(?<=[\r\n]))(?:error:|event: ?[^\r\n]*error(?=[\r\n]|$))").sub


def name_errors(block: bytes) -> bytes:
    """Convert an event with a field `error` (llama.cpp) to an event named error; give events named error data."""
    if b"error" not in block:
        return block
    return _error_line(lambda line: b"event: error\ndata:" if line[0] == b"error:" else line[0] + b"\ndata:", block)


class Parser(SSEClient):
    """sseclient-py, for events that `event_ends` has separated."""

    def __init__(self) -> None:
        super().__init__(iter(()))
        self._logger = SILENT

    def parse(self, block: bytes) -> tuple[str, str] | None:
        """The name (default: message) and the data of one event, given its lines.

        Returns None if it has no data, such as a comment. Raises UnicodeDecodeError.
        """
        self._event_source = iter([name_errors(block)])
        event = next(self.events(), None)
        return None if event is None else (event.event, event.data)

    def _read(self) -> Iterator[bytes]:
        return self._event_source
