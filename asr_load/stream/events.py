"""Find all events of a body at once, if they have the simple form that engines send.

In C (_events.c) if it was compiled, else in Python, with the same results.
"""

from __future__ import annotations

from collections.abc import Sequence

try:
    from asr_load.stream import _events
except ImportError:  # not compiled: see the extension in pyproject.toml
    _events = None  # type: ignore[assignment]

Found = tuple[bytes, list[int], bool, int]
"""The events' JSON objects, one per line; their stamps; whether `[DONE]` follows them; and their end in the body."""

_GAP, _DATA, _DONE = b"\n\n", b"data: ", b"[DONE]"


def find_in_python(
    body: bytes, start: int, stamps: Sequence[int], ends: Sequence[int], limit: int | None = None
) -> Found | None:
    """Find the complete events of a body from `start` up to `limit` (default: its end).

    Returns None unless each event is one `data:` line with a JSON object or, for the last one, `[DONE]`. Comments are
    allowed. `stamps` and `ends`, shape (n,), are the times of the body's reads and their ends in the body.
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
    # Check this, because the decoder would accept two objects in one line and none in the next.
    if not all(line.startswith(b"{") and line.endswith(b"}") for line in lines):
        return None
    return b"".join([line + b"\n" for line in lines]), found_at, done, end


find = find_in_python if _events is None else _events.find
