"""JSON of others (servers, workers, files), decoded in one place: whatever is wrong with it is one error, in words."""

from __future__ import annotations

import functools
import json
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")

MAX_DEPTH = 100
"""Levels of lists and objects. Python can follow some hundreds, fewer the deeper it is called: what was just decoded
could not be shown, or written again."""

MOST_DIGITS = 18
"""Of a whole number: no server counts further, and Python reads no more than 4,300."""

TOO_DEEP = "it is nested too deep"


class Malformed(ValueError):
    """Text that is not JSON, or not the JSON that was expected."""


@overload
def decode(data: bytes | str, type: type[T], *, lenient: bool = False, depth: int | None = MAX_DEPTH) -> T: ...
@overload
def decode(data: bytes | str, *, depth: int | None = MAX_DEPTH) -> Any: ...
def decode(data: bytes | str, type: Any = Any, *, lenient: bool = False, depth: int | None = MAX_DEPTH) -> Any:
    """The value of a text in JSON. `lenient` takes half a character too, whose other half is in the next event, and a
    number that is none; `depth` None, any value that Python can hold. Raises Malformed."""
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
    """A whole number; one with more digits than any has, as the infinity that it is to those who read it."""
    return int(digits) if len(digits) <= MOST_DIGITS else float("inf")


def _is_deeper(value: Any, depth: int) -> bool:
    level = list(msgspec.structs.astuple(value)) if isinstance(value, msgspec.Struct) else [value]
    for _ in range(depth + 1):
        level = [
            inner
            for each in level
            if isinstance(each, list | dict)
            for inner in (each if isinstance(each, list) else each.values())
        ]
        if not level:
            return False
    return True
