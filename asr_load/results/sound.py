"""Which requests of a run its figures are of: those without a time stamp in a second in which the client was late."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from asr_load.results.runfile import Late, RunInfo, WorkerInfo
from asr_load.results.steady import LeftOut, trim
from asr_load.stream.record import LiveRecord, Record

LATE_S = 0.050
"""A second is late in which the event loop, or the reading thread, was later than this at any moment: an error that
large is no longer small next to a TTFT."""

CPU_VALID = 0.80
"""Share of a core that the event loop may use: a thread has one at most, and near its end everything waits for it. Or
of all cores that a machine has, which its workers share."""

LEAST_SOUND, LEAST_LEFT = 0.80, 0.50
"""Shares of a test's seconds and of its requests that have to be sound: a client that is late in one second of five has
no hiccup, and figures of fewer than half of the requests would be those of the short ones."""

LEAST_S = 10.0
"""Seconds below which one late second is too large a part of a test to be excluded."""

LEAST_TIMES, SIGNIFICANT = 5, 2.58
"""Late stretches, and late seconds, from which on the load in them is looked at; and the standard deviations by which
it has to be higher (once in two hundred times by chance)."""

BEFORE = 5
"""Looks at the requests in flight, one each second up to a moment, whose mean is the load then: at one moment it is
mostly chance."""

LOOKS = 1_000_000
"""Seconds of a test, at most, of which the load is looked at."""

SETTLED_S = 2.0
"""After a late stretch, until its own backlog no longer raises the load."""


class Measured(NamedTuple):
    """The requests of a run that count, and those of them that its figures are of."""

    counted: list[Record]
    """No warm-up, not trimmed: counts and throughput are of these."""
    sound: list[Record]
    """Those of them without a time stamp in a late second; all of them where late seconds are not excluded."""
    left: LeftOut
    share: float | None
    """Of the seconds of all workers, the part that is not late; None where that was not noted."""
    why_excluded: str = ""
    """What was excluded and why, in words; empty where nothing was."""
    why_bound: str = ""
    """Why late seconds cannot be excluded and the client bounds the run, in words; empty where it does not."""


def measured(records: Sequence[Record], info: RunInfo) -> Measured:
    """Choose the requests that a run's figures are of; the records' times are on the master's clock.

    A request is excluded by the times of its stamps and its worker, never by how long it took. Nothing is excluded
    where too little would be left, or where the client was late because its load was high: the rest would be the light
    load. Nor is anything in a test of less than ten seconds, which is judged as a whole.
    """
    counted, left = trim(records, info.trim_start, info.trim_end)
    noted = [worker for worker in info.workers if worker.health is not None and worker.health.late is not None]
    if not counted or not noted:
        return Measured(counted, counted, left, None)
    begin, end = min(record.begins for record in counted), max(record.end for record in counted)
    late = {worker.worker: _late(worker, begin, end) for worker in noted}
    lost = {number: sum(min(each.end, end) - max(each.begin, begin) for each in own) for number, own in late.items()}
    shares = {number: 1 - seconds / (end - begin) if end > begin else 1.0 for number, seconds in lost.items()}
    share = sum(shares.values()) / len(shares)
    if not any(lost.values()) or end - begin < LEAST_S:
        return Measured(counted, counted, left, share)
    sound = _untouched(counted, late)
    excluded = len(counted) - len(sound)
    which = f"{excluded or 'none'} of {len(counted)} requests had a time stamp in {_which_seconds(late)}"
    # A fleet is as good as its worst worker: the share of all would hide one that is always late.
    worst = min(shares, key=lambda number: shares[number])
    if shares[worst] < LEAST_SOUND:
        whose = f"the seconds of worker {worst} are" if len(shares) > 1 else "the test is"
        bound = f"only {shares[worst]:.0%} of {whose} sound (valid from {LEAST_SOUND:.0%} on): {which}"
        return Measured(counted, counted, left, share, why_bound=bound)
    if len(sound) < LEAST_LEFT * len(counted):
        bound = f"only {len(sound)} of {len(counted)} requests would be left (valid from {LEAST_LEFT:.0%} on): {which}"
        return Measured(counted, counted, left, share, why_bound=bound)
    if grew := _grows_with_load(records, late, begin, end):
        return Measured(counted, counted, left, share, why_bound=grew)
    left.late = excluded
    why = f"{share:.1%} of the test is sound: {which}"
    if excluded:
        why += "; latencies, error rates and WER exclude them"
    return Measured(counted, sound, left, share, why_excluded=why)


def _which_seconds(late: Mapping[int, Sequence[Late]]) -> str:
    """The late seconds in words."""
    stretches = [each for own in late.values() for each in own]
    seconds, lag = sum(each.end - each.begin for each in stretches), max(each.lag for each in stretches)
    return f"the {seconds:.0f} s in which the load generator was late (by up to {lag * 1e3:.0f} ms)"


def _late(worker: WorkerInfo, begin: float, end: float) -> list[Late]:
    """A worker's late seconds between two times, on the master's clock, in order."""
    assert worker.health is not None
    moved = [each.moved(worker.master_offset_s) for each in worker.health.late or []]
    return sorted((each for each in moved if each.begin < end and each.end > begin), key=lambda each: each.begin)


class _LateTimes:
    """The late seconds of a worker, to be asked about many times of day."""

    def __init__(self, late: Sequence[Late]) -> None:
        self._begins = np.array([each.begin for each in late])
        self._ends = np.maximum.accumulate([each.end for each in late])

    def between(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Whether any of them lies between two times, or around them; shapes (n,), (n,) -> (n,)."""
        touched: np.ndarray = np.searchsorted(self._begins, last, "right") > np.searchsorted(self._ends, first, "right")
        return touched

    def holds(self, times: np.ndarray) -> bool:
        """Whether any of the times, of shape (n,), lies in one of them."""
        place = np.searchsorted(self._begins, times, "right") - 1
        return bool(((place >= 0) & (times < self._ends[place])).any())


def _untouched(records: Sequence[Record], late: dict[int, list[Late]]) -> list[Record]:
    """The records without a time stamp in a late second of their worker."""
    touched: set[int] = set()
    for worker, stretches in late.items():
        if not stretches:
            continue
        times, own = _LateTimes(stretches), [record for record in records if record.worker == worker]
        near = times.between(np.array([_first(record) for record in own]), np.array([record.end for record in own]))
        for place in np.flatnonzero(near).tolist():
            record = own[place]
            # A session sends a packet several times a second, and each is a stamp.
            if isinstance(record, LiveRecord) or times.holds(_stamps(record)):
                touched.add(id(record))
    return [record for record in records if id(record) not in touched]


def _first(record: Record) -> float:
    """A request's first time stamp: when it was due, or when its connection began to be opened."""
    setup = record.setup if isinstance(record, LiveRecord) else record.connect
    return min(record.begins, record.started_at - (setup or 0.0))


def _stamps(record: Record) -> np.ndarray:
    """The times of day of all that was stamped of a request; shape (n,)."""
    reached = [0.0, record.upload, record.headers, record.ttft, record.ttft_text, record.stream_end]
    chunks = np.cumsum(record.itl) + (record.ttft or 0.0)
    after = np.concatenate([[value for value in reached if value is not None], chunks])
    return np.concatenate([[_first(record), record.begins, record.end], record.started_at + after])


def _grows_with_load(records: Sequence[Record], late: dict[int, list[Late]], begin: float, end: float) -> str:
    """Why the client was late where its load was high, in words; empty where the load had no part in it.

    The load is the number of a worker's requests in flight until a late stretch began, which the stretch itself has
    not raised yet. Its ranks among those of all seconds are uniform where the two have nothing to do with each other;
    their mean is tested. And a loop that used its core in late seconds was late by its own work."""
    seconds = np.array([each.end - each.begin for own in late.values() for each in own])
    cpu = float(np.average([each.cpu for own in late.values() for each in own], weights=seconds))
    if seconds.sum() >= LEAST_TIMES and cpu > CPU_VALID:
        return f"the load generator used {cpu:.0%} of its core in the {seconds.sum():.0f} s in which it was late"
    ranks = [rank for number, own in late.items() if own for rank in _ranks(records, number, own, begin, end)]
    if len(ranks) < LEAST_TIMES or (np.mean(ranks) - 0.5) * math.sqrt(12 * len(ranks)) < SIGNIFICANT:
        return ""
    return (
        f"the load generator was late where its load was high: {len(ranks)} late stretches began with more requests in"
        f" flight than {np.mean(ranks):.0%} of all seconds"
    )


def _ranks(records: Sequence[Record], worker: int, late: Sequence[Late], begin: float, end: float) -> list[float]:
    """The share of a worker's seconds with fewer requests in flight, for each late stretch; ties count half."""
    own = [record for record in records if record.worker == worker]
    starts = np.sort([record.started_at for record in own])
    ends = np.sort([record.end for record in own])
    ended = np.array([-math.inf, *(each.end for each in late[:-1])])
    begins = np.array([each.begin for each in late])

    def in_flight(times: np.ndarray) -> np.ndarray:
        moments = times[:, None] - np.arange(BEFORE)
        busy = np.searchsorted(starts, moments, "right") - np.searchsorted(ends, moments, "right")
        mean: np.ndarray = busy.mean(axis=1)
        return mean

    usual = np.sort(in_flight(np.arange(begin, end, max(1.0, (end - begin) / LOOKS))))
    then = in_flight(np.maximum(begins[begins >= ended + SETTLED_S], begin))
    below, reached = np.searchsorted(usual, then, "left"), np.searchsorted(usual, then, "right")
    ranks: list[float] = ((below + reached) / 2 / len(usual)).tolist()
    return ranks
