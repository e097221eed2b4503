"""Limit the requests served at once; others wait in order of arrival."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class QueueFullError(Exception):
    """The queue of waiting requests is full."""

    def __init__(self) -> None:
        super().__init__("The request queue is full.")


class Slots:
    """At most `limit` requests in service (0: any number) and at most `max_queued` waiting (None: any number)."""

    def __init__(self, limit: int, max_queued: int | None) -> None:
        self.running = 0
        self.queued = 0
        self._max_queued = max_queued
        self._free = asyncio.Semaphore(limit) if limit else None  # wakes its waiters in order of arrival

    @asynccontextmanager
    async def take(self) -> AsyncIterator[bool]:
        """Wait for a slot and hold it. Yields whether there was a wait.

        Raises:
            QueueFullError: immediately, if the queue is full.
        """
        waited = self._free is not None and self._free.locked()
        if waited and self._max_queued is not None and self.queued >= self._max_queued:
            raise QueueFullError
        if self._free is not None:
            self.queued += 1
            try:
                await self._free.acquire()
            finally:
                self.queued -= 1
        self.running += 1
        try:
            yield waited
        finally:
            self.running -= 1
            if self._free is not None:
                self._free.release()
