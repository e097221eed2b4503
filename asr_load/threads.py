"""Calls that would hold the event loop, made in a thread of its pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import gevent

T = TypeVar("T")


def in_thread(call: Callable[..., T], *words: object) -> T:
    """Make a call in a thread while this greenlet waits, and return or raise what it does."""

    def settled() -> T | Exception:
        # gevent prints the traceback of what a thread raises, whoever catches it then.
        try:
            return call(*words)
        except Exception as error:
            return error

    result: T | Exception = gevent.get_hub().threadpool.apply(settled)
    if isinstance(result, Exception):
        raise result
    return result
