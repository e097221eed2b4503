"""Who is served now and who waits: first come, first served."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class QueueFullError(Exception):
    """As many requests wait as may."""

    def __init__(self) -> None:
        super().__init__("The request queue is full.")


class Slots:
    """At most `limit` requests in service (0: any number) and at most `max_queued` waiting (None: any number)."""

    def __init__(self, limit: int, max_queued: int | None) -> None:
        self.running = 0
        self.queued = 0
        self._max_queued = max_queued
        self._free = asyncio.Semaphore(limit) if limit else None  # wakes its waiters in the order they came

    @asynccontextmanager
    async def take(self) -> AsyncIterator[bool]:
        """Wait for a slot and hold it; gives whether there was a wait.

        Raises:
            QueueFullError: at once, when the queue has no room.
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
