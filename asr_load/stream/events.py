"""Where the events of a body are, if all of them are as engines send them: found together, and not one by one.

Compiled (_events.c) where there is a C compiler, else in Python: both give the same.
"""

from __future__ import annotations

from collections.abc import Sequence

try:
    from asr_load.stream import _events
except ImportError:  # not compiled: see the extension in pyproject.toml
    _events = None  # type: ignore[assignment]

Found = tuple[bytes, list[int], bool, int]
"""The events' JSON objects, a line each; the stamp of each; whether `[DONE]` came after them; and where they end."""

_GAP, _DATA, _DONE = b"\n\n", b"data: ", b"[DONE]"


def find_in_python(
    body: bytes, start: int, stamps: Sequence[int], ends: Sequence[int], limit: int | None = None
) -> Found | None:
    """The whole events of a body from a position on, up to `limit` (its end); None unless each is one `data:` line that
    holds a JSON object, the last one perhaps `[DONE]`, with or without comments.

    `stamps` and `ends` are of the body's reads, shape (n,): when each came, and where in the body it ended.
    """
    gap = body.rfind(_GAP, start, len(body) if limit is None else limit)
    end = start if gap < 0 else gap + len(_GAP)
    if body.find(b"\r", start, end) >= 0:
        return None
    lines: list[bytes] = []
    found_at: list[int] = []
    at, read, is_in_event = start, 0, False
    for line in body[start : max(start, end - 1)].split(b"\n"):
        at += len(line) + 1
        if line.startswith(_DATA) and not is_in_event:
            lines.append(line[len(_DATA) :])
            is_in_event = True
        elif not line and is_in_event:
            while ends[read] < at:
                read += 1
            found_at.append(stamps[read])
            is_in_event = False
        elif line and not line.startswith(b":"):
            return None
    done = lines[-1:] == [_DONE]
    if done:
        lines.pop()
        found_at.pop()
    # The decoder would take two objects in a line, and none, for one in each.
    if not all(line.startswith(b"{") and line.endswith(b"}") for line in lines):
        return None
    return b"".join([line + b"\n" for line in lines]), found_at, done, end


find = find_in_python if _events is None else _events.find
