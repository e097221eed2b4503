"""What a master takes from its workers: records that can be true, each once; of the rest it keeps the count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from asr_load.results.runfile import Refused, WorkerInfo
from asr_load.stream.record import LiveRecord, Record, record_decoder

SLACK_S = 5.0
"""By how much a record may lie outside of its test, for what is not known of two clocks."""

UNKNOWN_S = 86400.0
"""The same for a worker whose clock has not been compared yet."""

PAGE_BITS = 1 << 15


class _Sent(Record, forbid_unknown_fields=True):
    """A record whose line is written as it came: there is nothing else in it."""


class _SentLive(LiveRecord, forbid_unknown_fields=True):
    """The same of a realtime session."""


_decode = record_decoder(_Sent, _SentLive)


class Numbers:
    """Which numbers have come, in a bit each."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, number: int) -> bool:
        """Note a number. Returns whether it is new."""
        page, at = divmod(number, PAGE_BITS)
        bits = self._pages.get(page)
        if bits is None:
            bits = self._pages[page] = bytearray(PAGE_BITS // 8)
        byte, bit = divmod(at, 8)
        new = not bits[byte] >> bit & 1
        bits[byte] |= 1 << bit
        return new


class RecordCheck:
    """Of one test: `clips` are the ids of its clips, `began_at` is its beginning on the master's clock."""

    def __init__(self, clips: Collection[str], began_at: float) -> None:
        self._clips, self._began_at = clips, began_at
        self._seen: dict[int, Numbers] = {}
        self._refused: Counter[tuple[int, str]] = Counter()

    @property
    def refused(self) -> list[Refused]:
        """What was not taken, by the worker and the reason."""
        return [Refused(worker, why, count) for (worker, why), count in sorted(self._refused.items())]

    def read(self, line: bytes, worker: WorkerInfo, now: float) -> Record | None:
        """A record that a worker has sent, whose line is one; None where it is refused."""
        try:
            record = _decode(line)
            why = "it is no line" if b"\n" in line else self._foreign(record, worker, now)
        except ValueError as error:
            why = str(error)
        else:
            if not why and self._seen.setdefault(record.worker, Numbers()).add(record.seq):
                return record
        self._refused[worker.worker, why or "it came twice"] += 1
        return None

    def _foreign(self, record: Record, worker: WorkerInfo, now: float) -> str:
        if record.worker != worker.worker:
            return "it is another worker's"
        if record.clip not in self._clips and not (record.clip == "" and record.outcome == "client"):
            return "its clip is none of the data's"
        error = worker.master_offset_error_s
        slack = UNKNOWN_S if error is None else SLACK_S + error
        if not self._began_at - slack <= record.started_at + worker.master_offset_s <= now + slack:
            return "it began outside of the test"
        return ""
