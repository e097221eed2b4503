"""The record: one per request, written once, at the end of its stream. Everything that is reported derives from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from asr_load.errors import InputError
from asr_load.stream.timing import tpot

RECORDS = "records.jsonl"
WORKER_RECORDS = "worker-{:03d}.jsonl"
"""What a worker of a fleet keeps of its own beside the master's file, in case one of the two dies."""


class Record(msgspec.Struct, kw_only=True):
    """One request. Times are in seconds; `started_at` and `due_at` are seconds since the epoch on one clock.

    A latency is None where it was never reached. A failure keeps what was measured until then; no figure is made of it.
    """

    clip: str
    seq: int
    user: int
    worker: int
    warmup: bool
    started_at: float
    due_at: float | None
    lag: float | None
    outcome: str
    ok: bool
    http_status: int | None
    error: str | None
    upload: float | None
    headers: float | None
    ttft: float | None
    itl: list[float]
    e2el: float | None
    stream_end: float | None
    chunks: int
    output_tokens: int | None
    output_tokens_source: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    finish_reason: str | None
    streamed: bool
    """False for one plain JSON answer: its TTFT is its latency."""
    audio_s: float
    text: str
    reference: str
    retries: int = 0
    """Tries before the one that was answered, on connections that turned out dead."""
    retry_s: float = 0.0
    """The time that they took: in no latency."""

    @property
    def unfinished(self) -> bool:
        """Whether the test's own end cut it off: neither a success nor a failure of the server."""
        return self.outcome == "unfinished"

    @property
    def failed(self) -> bool:
        """Whether it is a failure of the server, or of the way to it."""
        return not self.ok and not self.unfinished

    @property
    def tpot(self) -> float | None:
        return tpot(self.ttft, self.e2el, self.output_tokens)

    @property
    def rtf(self) -> float | None:
        """Real-time factor: end-to-end latency over the clip's length."""
        return None if self.e2el is None else self.e2el / self.audio_s


encode_record = msgspec.json.Encoder().encode
decode_record = msgspec.json.Decoder(Record).decode


class RecordFile:
    """A line per record, on disk as soon as `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb", buffering=0)

    def write(self, record: Record) -> None:
        self._file.write(encode_record(record) + b"\n")

    def close(self) -> None:
        self._file.close()


def read_records(folder: Path) -> Iterator[Record]:
    """The records of a run, each once: the master's file, and what workers kept that never reached it.

    A last line that was cut off is left out. Raises InputError.
    """
    own = sorted(folder.glob(WORKER_RECORDS.format(0).replace("000", "*")))
    seen: set[tuple[int, int, float]] = set()
    for path in [folder / RECORDS, *own]:
        for record in _read(path):
            if own:
                key = (record.worker, record.user, record.started_at)
                if key in seen:
                    continue
                seen.add(key)
            yield record


def _read(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield decode_record(line)
                except msgspec.DecodeError as error:
                    raise InputError(f"{path}, line {number}: not a record ({error})") from error
    except OSError as error:
        raise InputError(f"{path.parent} holds no run: {path.name} cannot be read ({error.strerror})") from error
