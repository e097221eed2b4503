"""Decode JSON from servers, workers and files. Every problem raises Malformed, with a message for people."""

from __future__ import annotations

import functools
import json
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")

MAX_DEPTH = 100
"""Maximum nesting of lists and objects. Python recurses a few hundred levels, fewer the deeper the call stack: a deeper
value could be decoded but not printed or encoded again."""

MOST_DIGITS = 18
"""Maximum digits of a whole number: no server counts further, and Python parses at most 4,300."""

TOO_DEEP = "it is nested too deep"


class Malformed(ValueError):
    """The text is not JSON, or not JSON of the expected type."""


@overload
def decode(data: bytes | str, type: type[T], *, lenient: bool = False, depth: int | None = MAX_DEPTH) -> T: ...
@overload
def decode(data: bytes | str, *, depth: int | None = MAX_DEPTH) -> Any: ...
def decode(data: bytes | str, type: Any = Any, *, lenient: bool = False, depth: int | None = MAX_DEPTH) -> Any:
    """Decode JSON as `type`. Raises Malformed.

    `lenient` also accepts half a surrogate pair, whose other half is in the next event, and NaN and Infinity. `depth`
    None accepts any nesting that Python can hold.
    """
    text = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    try:
        value = _decoder(type).decode(text)
    except RecursionError:
        raise Malformed(TOO_DEEP) from None
    except (msgspec.MsgspecError, ValueError) as error:
        if not lenient:
            raise Malformed(str(error)) from None
        try:
            value = msgspec.convert(json.loads(text.decode(), parse_int=_whole), type)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise Malformed(str(error)) from None
    if depth is not None and text.count(b"[") + text.count(b"{") > depth and _is_deeper(value, depth):
        raise Malformed(TOO_DEEP)
    return value


@functools.cache
def _decoder(type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type)


def _whole(digits: str) -> int | float:
    """Parse a whole number; one with more than MOST_DIGITS digits becomes infinity."""
    return int(digits) if len(digits) <= MOST_DIGITS else float("inf")


def _is_deeper(value: Any, depth: int) -> bool:
    level = list(msgspec.structs.astuple(value)) if isinstance(value, msgspec.Struct) else [value]
    for _ in range(depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer if isinstance(outer, list) else outer.values())
        ]
        if not level:
            return False
    return True
