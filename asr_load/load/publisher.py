"""Shows records a moment after they are written, when the streams leave time for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import gevent
from locust.env import Environment

from asr_load import locust_internals
from asr_load.load import stats
from asr_load.load.loop_monitor import yield_to_io
from asr_load.load.target import Targets
from asr_load.stream.record import Record

EVERY_S, CHUNKS = 0.25, 1000
"""How often, and how many chunks at once: as many as hold the loop for half a millisecond."""


class Publisher:
    """From `start` to `close`: in Locust's rows, each user class in its own, and to `show`, with their lines."""

    def __init__(
        self, environment: Environment, targets: Targets, show: Callable[[list[Record], list[bytes]], None]
    ) -> None:
        self._environment, self._show = environment, show
        self._rows = {
            user_class: stats.Rows(environment, name) for user_class, name in stats.row_names(targets).items()
        }
        self._waiting: deque[tuple[Record, bytes]] = deque()

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._publish_slowly)

    def add(self, record: Record, line: bytes) -> None:
        self._waiting.append((record, line))

    @property
    def oldest(self) -> Record | None:
        """The first one that is still to be shown."""
        return self._waiting[0][0] if self._waiting else None

    def close(self) -> None:
        """Show what is left."""
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
        """Show some together: that takes a third of what each by itself would, unless others than Locust listen to
        every gap."""
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
