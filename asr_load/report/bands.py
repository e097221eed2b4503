"""Stretches of a test that its charts shade: the load generator was late, or a worker was lost."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from asr_load.results.runfile import WorkerInfo

MOST = 200
"""Maximum number of late stretches that the charts shade."""

JOIN_S = 1.0
"""Late stretches closer together than this are shaded as one."""


class Band(msgspec.Struct):
    """A stretch in seconds since the start of the chart. `end` None: until the end of the chart."""

    kind: str
    """late or lost."""
    name: str
    begin: float
    end: float | None = None


def bands(workers: Iterable[WorkerInfo], began: float) -> list[Band]:
    """The stretches in which a worker was late, merged over all workers, and those without a lost worker. `began`:
    start of the chart, in seconds since the epoch on the master's clock."""
    late, lost = [], []
    for worker in workers:
        if worker.lost_at is not None and not worker.ended:
            lost.append(Band("lost", f"worker {worker.worker} lost", max(worker.lost_at - began, 0.0)))
        for each in worker.health.late or [] if worker.health else []:
            moved = each.moved(worker.master_offset_s - began)
            if moved.end > 0:
                late.append((max(moved.begin, 0.0), moved.end))
    merged: list[Band] = []
    for begin, end in sorted(late):
        if merged and begin <= (merged[-1].end or 0.0) + JOIN_S:
            merged[-1].end = max(merged[-1].end or 0.0, end)
        else:
            merged.append(Band("late", "load generator late", begin, end))
    return [*merged[-MOST:], *lost]
