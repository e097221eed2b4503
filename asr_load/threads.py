"""Run blocking calls in gevent's thread pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import gevent

T = TypeVar("T")


def in_thread(call: Callable[..., T], *words: object) -> T:
    """Make a call in a thread while this greenlet waits. Returns its result or raises its exception."""

    def settled() -> T | Exception:
        # gevent prints the traceback of an exception raised in a thread, even if it is caught later.
        try:
            return call(*words)
        except Exception as error:
            return error

    result: T | Exception = gevent.get_hub().threadpool.apply(settled)
    if isinstance(result, Exception):
        raise result
    return result
