"""Publish records to Locust and the live view shortly after they are written, when the streams leave time for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import gevent
from locust.env import Environment

from asr_load.load import locust_internals, stats
from asr_load.load.loop_monitor import yield_to_io
from asr_load.load.target import Targets
from asr_load.stream.record import Record

EVERY_S, CHUNKS = 0.25, 1000
"""Seconds between publications, and chunks to publish at once, which take half a millisecond."""


class Publisher:
    """Publishes records, from `start` to `close`, in Locust's rows (separate for each user class) and to `show`."""

    def __init__(
        self, environment: Environment, targets: Targets, show: Callable[[list[Record], list[bytes]], None]
    ) -> None:
        self._environment, self._show = environment, show
        self._rows = {
            user_class: stats.LocustRows(environment, name) for user_class, name in stats.row_names(targets).items()
        }
        self._waiting: deque[tuple[Record, bytes]] = deque()

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._publish_slowly)

    def add(self, record: Record, line: bytes) -> None:
        self._waiting.append((record, line))

    @property
    def oldest(self) -> Record | None:
        """The first unpublished record."""
        return self._waiting[0][0] if self._waiting else None

    def close(self) -> None:
        """Publish the remaining records."""
        self._greenlet.kill()
        while self._waiting:
            self._publish()

    def _publish_slowly(self) -> None:
        while True:
            gevent.sleep(EVERY_S)
            while self._waiting:
                self._publish()
                yield_to_io()

    def _publish(self) -> None:
        """Publish several records together, which takes a third of the time, unless there are other listeners to
        events."""
        records, lines, chunks = [], [], 0
        most = CHUNKS if locust_internals.listens_alone(self._environment) else 1
        while self._waiting and chunks < most:
            record, line = self._waiting.popleft()
            records.append(record)
            lines.append(line)
            chunks += 1 + record.chunks
        self._show(records, lines)
        for name, rows in self._rows.items():
            rows.add([record for record in records if record.user_class == name and not record.warmup])
