"""Check the records that a master gets from its workers: accept plausible ones once, and count the rejected ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from asr_load.results.runfile import Refused, WorkerInfo
from asr_load.stream.record import RealtimeRecord, Record, record_decoder

SLACK_S = 5.0
"""Tolerance, in seconds, of a record's time, because clocks differ."""

UNKNOWN_S = 86400.0
"""The tolerance for a worker whose clock offset is unknown."""

PAGE_BITS = 1 << 15


class _Sent(Record, forbid_unknown_fields=True):
    """A record without unknown fields, because the master writes its line unchanged."""


class _SentRealtime(RealtimeRecord, forbid_unknown_fields=True):
    """The same for a realtime session."""


_decode = record_decoder(_Sent, _SentRealtime)


class Numbers:
    """A set of numbers that takes one bit for each."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, number: int) -> bool:
        """Add a number. Returns whether it is new."""
        page, at = divmod(number, PAGE_BITS)
        bits = self._pages.get(page)
        if bits is None:
            bits = self._pages[page] = bytearray(PAGE_BITS // 8)
        byte, bit = divmod(at, 8)
        new = not bits[byte] >> bit & 1
        bits[byte] |= 1 << bit
        return new


class RecordCheck:
    """Checks the records of one test. `clips` are the ids of its clips, `began_at` its start on the master's clock."""

    def __init__(self, clips: Collection[str], began_at: float) -> None:
        self._clips, self._began_at = clips, began_at
        self._seen: dict[int, Numbers] = {}
        self._refused: Counter[tuple[int, str]] = Counter()

    @property
    def refused(self) -> list[Refused]:
        """The rejected records, by worker and reason."""
        return [Refused(worker, why, count) for (worker, why), count in sorted(self._refused.items())]

    def read(self, line: bytes, worker: WorkerInfo, now: float) -> Record | None:
        """Decode the line of a worker's record; None if it is rejected."""
        try:
            record = _decode(line)
            why = "it has several lines" if b"\n" in line else self._foreign(record, worker, now)
        except ValueError as error:
            why = str(error)
        else:
            if not why and self._seen.setdefault(record.worker, Numbers()).add(record.seq):
                return record
        self._refused[worker.worker, why or "it is a duplicate"] += 1
        return None

    def _foreign(self, record: Record, worker: WorkerInfo, now: float) -> str:
        if record.worker != worker.worker:
            return "it belongs to another worker"
        if record.clip not in self._clips and not (record.clip == "" and record.outcome == "client"):
            return "its clip is not in the data"
        error = worker.master_offset_error_s
        slack = UNKNOWN_S if error is None else SLACK_S + error
        if not self._began_at - slack <= record.started_at + worker.master_offset_s <= now + slack:
            return "it began outside of the test"
        return ""
