"""Choose the requests that a run's figures describe: those without a time stamp in a second in which the client was
late. Find lost records and outages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import msgspec
import numpy as np

from asr_load.results.accuracy import Recording, recordings_of
from asr_load.results.metrics import METRICS, Figures, figures_of
from asr_load.results.normalizers import Scoring
from asr_load.results.runfile import Late, RunInfo, WorkerInfo
from asr_load.stream.cause import BUSY_CODES, Cause
from asr_load.stream.record import RealtimeRecord, Record
from asr_load.text import count_of

LATE_S = 0.050
"""A second is late if the event loop or the reading thread was later than this at any moment in it. An error that large
is no longer small compared with a TTFT."""

CPU_VALID = 0.80
"""Limit for the CPU: the share of a core that the event loop may use, and the share of all cores of a machine that its
workers may use together. A thread has one core at most, and everything waits near its limit."""

LEAST_SOUND, LEAST_LEFT = 0.80, 0.50
"""Minimum shares of a test's seconds and of its requests that must be sound. A client that is late in one second of
five has no mere hiccup, and figures of fewer than half of the requests would describe the short ones."""

LEAST_S = 10.0
"""Length of a test, in seconds, below which one late second is too large a part to exclude."""

LEAST_TIMES, LOAD_Z = 5, 2.58
"""Minimum number of late stretches, or late seconds, to examine the load in them; and by how many standard deviations
it must be higher than usual (once in two hundred times by chance)."""

BEFORE = 5
"""Number of samples, one per second before a moment, whose mean is the load at that moment. A single sample would be
mostly chance."""

MOST_SAMPLES = 1_000_000
"""Maximum number of seconds of a test at which the load is sampled."""

SETTLED_S = 2.0
"""Seconds after a late stretch until its backlog no longer raises the load."""


class LeftOut(msgspec.Struct):
    """Numbers of requests excluded from the figures, by reason."""

    warmup: int = 0
    trim_start: int = 0
    trim_end: int = 0
    late: int = 0
    """With a time stamp in a second in which the load generator was late; counts and throughput include them."""


OUTAGE, USUAL, STOOD_STILL, LEAST_FAILURES = 0.1, 3.0, 20.0, 3
"""Minimum size of an outage: a share of the run and a multiple of the usual latency; and either a larger multiple, if
requests were only slow, or a number of failures."""


class Outage(msgspec.Struct):
    """A stretch of a run in which no request succeeded. Times are in seconds since the first request."""

    from_s: float
    to_s: float
    share: float
    """Share of the run."""
    failures: dict[str, int]
    """Failures that ended in this stretch, by outcome."""
    overload: bool = False
    """Whether most failures were refusals by a server that was busy rather than down."""

    @property
    def line(self) -> str:
        """Describe the outage."""
        what = ", ".join(f"{count} {name}" for name, count in self.failures.items()) or "responses stalled"
        kind = "the server was overloaded and refused requests" if self.overload else "an outage"
        return f"no request succeeded from {self.from_s:.0f} s to {self.to_s:.0f} s of the run ({what}): {kind}"


@dataclass
class Selection:
    """Requests that count, and those of them that figures describe."""

    counted: list[Record] = field(default_factory=list)
    """Without warm-up and trimmed requests; for counts and throughput."""
    sound: list[Record] = field(default_factory=list)
    """Those of `counted` without a time stamp in a late second; for latencies, error rates and accuracy. All of them if
    late seconds are not excluded."""

    @cached_property
    def good(self) -> list[Record]:
        """The successful requests that latencies describe."""
        return [record for record in self.sound if record.ok]

    @property
    def failed(self) -> int:
        """Number of failures that count for the error rate."""
        return sum(record.failed for record in self.sound)

    @property
    def error_rate(self) -> float | None:
        """Share of failures among successes and failures; None without either."""
        judged = [record.failed for record in self.sound if not record.unfinished]
        return sum(judged) / len(judged) if judged else None

    @property
    def uncounted(self) -> bool:
        """Whether a response came without a token count."""
        return any(record.ok and record.known_tokens is None for record in self.counted)

    def figures(self, metric: str) -> Figures:
        """Figures of a metric in METRICS."""
        return figures_of(metric, self.sound if METRICS[metric].of_failures else self.good)


@dataclass
class Measured(Selection):
    """The selection of a whole run."""

    left: LeftOut = field(default_factory=LeftOut)
    records: Sequence[Record] = ()
    """All requests of the run."""
    lost: Mapping[int, str] = field(default_factory=dict)
    """Descriptions of missing records, by worker."""
    share: float | None = None
    """Share of the seconds of all workers that are not late; None if it was not recorded."""
    why_excluded: str = ""
    """A description of the excluded requests; empty if none are excluded."""
    why_bound: str = ""
    """Why late seconds cannot be excluded and make the run client-bound; empty if they do not."""
    scoring: Scoring = field(default_factory=Scoring)
    """How the run's transcripts are compared with their references."""

    @cached_property
    def recordings(self) -> list[Recording]:
        """The recordings that were transcribed."""
        return list(recordings_of(self.good, self.scoring))

    @cached_property
    def outage(self) -> Outage | None:
        """The run's outage, if any. Successes in late seconds still count as successes; failures there may be the
        client's."""
        known = set(map(id, self.sound))
        return outage([record for record in self.counted if record.ok or id(record) in known])


def measured(records: Sequence[Record], info: RunInfo) -> Measured:
    """Choose the requests that a run's figures describe. The records' times must be on the master's clock.

    A request is excluded because of its time stamps and its worker, never because of its duration. Nothing is excluded
    if too little would be left, or if the client was late because its load was high, since only light load would be
    left. A test of less than ten seconds is judged as a whole."""
    counted, left = trim(records, info.trim_start, info.trim_end)
    run = Measured(counted, counted, left, records, lost_workers(records, info), scoring=info.scoring)
    noted = [worker for worker in info.workers if worker.health is not None and worker.health.late is not None]
    if not counted or not noted:
        return run
    begin, end = min(record.begins for record in counted), max(record.end for record in counted)
    late = {worker.worker: _late(worker, begin, end) for worker in noted}
    lost = {number: sum(min(each.end, end) - max(each.begin, begin) for each in own) for number, own in late.items()}
    shares = {number: 1 - seconds / (end - begin) if end > begin else 1.0 for number, seconds in lost.items()}
    run.share = sum(shares.values()) / len(shares)
    if not any(lost.values()) or end - begin < LEAST_S:
        return run
    sound = _untouched(counted, late)
    excluded, requests = len(counted) - len(sound), count_of(len(counted), "request")
    which = f"{excluded} of {requests}" if excluded else "no request"
    which += f" had a time stamp in {_which_seconds(late)}"
    # The worst worker decides, because the share over all workers would hide one that is always late.
    worst = min(shares, key=lambda number: shares[number])
    if shares[worst] < LEAST_SOUND:
        whose = f"the seconds of worker {worst}" if len(shares) > 1 else "the test"
        part = f"{1 - shares[worst]:.0%} of {whose}"
        run.why_bound = f"the load generator was late in {part} (limit {1 - LEAST_SOUND:.0%}): {which}"
    elif len(sound) < LEAST_LEFT * len(counted):
        kept = f"only {len(sound)} of {requests} lie outside of late seconds"
        run.why_bound = f"{kept} (limit {LEAST_LEFT:.0%}): {which}"
    else:
        run.why_bound = _grows_with_load(records, late, begin, end)
    if not run.why_bound:
        run.sound, left.late = sound, excluded
        effect = "; latencies, error rates and WER exclude them" if excluded else ""
        run.why_excluded = f"{run.share:.1%} of the test is sound: {which}{effect}"
    return run


def trim(records: Sequence[Record], start_s: float, end_s: float) -> tuple[list[Record], LeftOut]:
    """Select the records to measure, and count the others: no warm-up, and started (open loop: due) at least `start_s`
    after the first and `end_s` before the last of the rest."""
    measured = [record for record in records if not record.warmup]
    left = LeftOut(warmup=len(records) - len(measured))
    if not measured or not (start_s or end_s):
        return measured, left
    starts = [record.begins for record in measured]
    low, high = min(starts) + start_s, max(starts) - end_s
    left.trim_start = sum(start < low for start in starts)
    left.trim_end = sum(start > high for start in starts if start >= low)
    return [record for record, start in zip(measured, starts, strict=True) if low <= start <= high], left


def outage(measured: Sequence[Record]) -> Outage | None:
    """Find the longest stretch between the ends of two successes, or between one and an end of the run. It counts if it
    is at least a tenth of the run and requests were sent in it: failures ended in it, or requests were in flight all
    the time, for more than twenty times the usual latency."""
    good = [record for record in measured if record.ok]
    if not good:
        return None
    first = min(record.started_at for record in measured)
    last = max(record.end for record in measured)
    ends = [first, *sorted(record.end for record in good), last]
    usual = float(np.median([record.e2el or 0.0 for record in good]))
    begin, end = max(pairwise(ends), key=lambda gap: gap[1] - gap[0])
    if end - begin < max(OUTAGE * (last - first), USUAL * usual):
        return None
    failed = [record for record in measured if record.failed and begin <= record.end <= end]
    failures, refused = Counter(record.outcome for record in failed), sum(map(_was_refused, failed))
    stood_still = any(record.started_at <= begin + usual and record.end >= end for record in measured)
    if failures.total() < LEAST_FAILURES and not (stood_still and end - begin > STOOD_STILL * usual):
        return None
    share = (end - begin) / (last - first)
    return Outage(begin - first, end - first, share, dict(sorted(failures.items())), 2 * refused > len(failed))


def _was_refused(record: Record) -> bool:
    """Whether the server had no room for the request. Records of older versions have no cause."""
    return record.cause == Cause.BUSY or record.http_status in BUSY_CODES


def lost_workers(records: Sequence[Record], info: RunInfo) -> dict[int, str]:
    """Describe, by worker, the records that are missing from a run that ended normally."""
    if not info.ended:
        return {}
    recorded = Counter(record.worker for record in records)
    lost = {}
    for worker in info.workers:
        missing = worker.started - recorded[worker.worker]
        if not worker.ended:
            lost[worker.worker] = lost_line(worker, info.began_at)
        elif missing > 0:
            requests = f"{missing} of {count_of(worker.started, 'request')}"
            lost[worker.worker] = f"records of {requests} of worker {worker.worker} are missing"
    return lost


def lost_line(worker: WorkerInfo, began_at: float) -> str:
    """Say that a worker was lost, and how long after the start of the test."""
    when = "" if worker.lost_at is None else f" {worker.lost_at - began_at:.0f} s after the start"
    lost = f"worker {worker.worker} on {worker.host} was lost{when}: "
    if worker.from_file:
        return f"{lost}the master read {count_of(worker.from_file, 'record')} from its file"
    return f"{lost}records that it had not sent yet are missing"


def _which_seconds(late: Mapping[int, Sequence[Late]]) -> str:
    """Describe the late seconds."""
    stretches = [each for own in late.values() for each in own]
    seconds, lag = sum(each.end - each.begin for each in stretches), max(each.lag for each in stretches)
    return f"the {seconds:.0f} s in which the load generator was late (by up to {lag * 1e3:.0f} ms)"


def _late(worker: WorkerInfo, begin: float, end: float) -> list[Late]:
    """A worker's late seconds between two times, on the master's clock, in order."""
    assert worker.health is not None
    moved = [each.moved(worker.master_offset_s) for each in worker.health.late or []]
    return sorted((each for each in moved if each.begin < end and each.end > begin), key=lambda each: each.begin)


class _LateTimes:
    """A worker's late seconds, for fast lookup of many times."""

    def __init__(self, late: Sequence[Late]) -> None:
        self._begins = np.array([each.begin for each in late])
        self._ends = np.maximum.accumulate([each.end for each in late])

    def between(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Whether a late second overlaps each interval; shapes (n,), (n,) -> (n,)."""
        touched: np.ndarray = np.searchsorted(self._begins, last, "right") > np.searchsorted(self._ends, first, "right")
        return touched

    def holds(self, times: np.ndarray) -> bool:
        """Whether any of the times, shape (n,), lies in a late second."""
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
            # A session sends several packets per second, and each has a time stamp.
            if isinstance(record, RealtimeRecord) or times.holds(_stamps(record)):
                touched.add(id(record))
    return [record for record in records if id(record) not in touched]


def _first(record: Record) -> float:
    """A request's first time stamp: when it was due, or when opening its connection began."""
    setup = record.setup if isinstance(record, RealtimeRecord) else record.connect
    return min(record.begins, record.started_at - (setup or 0.0))


def _stamps(record: Record) -> np.ndarray:
    """All time stamps of a request, as seconds since the epoch; shape (n,)."""
    reached = [0.0, record.upload, record.headers, record.ttft, record.ttft_text, record.stream_end]
    chunks = np.cumsum(record.itl) + (record.ttft or 0.0)
    after = np.concatenate([[value for value in reached if value is not None], chunks])
    return np.concatenate([[_first(record), record.begins, record.end], record.started_at + after])


def _grows_with_load(records: Sequence[Record], late: dict[int, list[Late]], begin: float, end: float) -> str:
    """Why high load made the client late; empty if load had no part in it.

    The load is the number of a worker's requests in flight before a late stretch, which the stretch itself has not
    raised yet. If lateness does not depend on load, its ranks among all seconds are uniform; a test of their mean
    decides. A loop that used up its core in late seconds was late because of its load."""
    seconds = np.array([each.end - each.begin for own in late.values() for each in own])
    cpu = float(np.average([each.cpu for own in late.values() for each in own], weights=seconds))
    if seconds.sum() >= LEAST_TIMES and cpu > CPU_VALID:
        return f"the load generator used {cpu:.0%} of its core in the {seconds.sum():.0f} s in which it was late"
    ranks = [rank for number, own in late.items() if own for rank in _ranks(records, number, own, begin, end)]
    if len(ranks) < LEAST_TIMES or (np.mean(ranks) - 0.5) * math.sqrt(12 * len(ranks)) < LOAD_Z:
        return ""
    return (
        f"the load generator was late when its load was high: {len(ranks)} late stretches began with more requests in"
        f" flight than {np.mean(ranks):.0%} of all seconds"
    )


def _ranks(records: Sequence[Record], worker: int, late: Sequence[Late], begin: float, end: float) -> list[float]:
    """For each late stretch, the share of a worker's seconds with fewer requests in flight; ties count half."""
    of_worker = [record for record in records if record.worker == worker]
    starts = np.sort([record.started_at for record in of_worker])
    ends = np.sort([record.end for record in of_worker])
    ended = np.array([-math.inf, *(each.end for each in late[:-1])])
    begins = np.array([each.begin for each in late])

    def in_flight(times: np.ndarray) -> np.ndarray:
        moments = times[:, None] - np.arange(BEFORE)
        busy = np.searchsorted(starts, moments, "right") - np.searchsorted(ends, moments, "right")
        mean: np.ndarray = busy.mean(axis=1)
        return mean

    usual = np.sort(in_flight(np.arange(begin, end, max(1.0, (end - begin) / MOST_SAMPLES))))
    then = in_flight(np.maximum(begins[begins >= ended + SETTLED_S], begin))
    below, reached = np.searchsorted(usual, then, "left"), np.searchsorted(usual, then, "right")
    ranks: list[float] = ((below + reached) / 2 / len(usual)).tolist()
    return ranks
