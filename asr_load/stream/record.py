"""The record: one per request, written once, at the end of its stream. Everything that is reported derives from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from asr_load.errors import InputError
from asr_load.stream.timing import tpot

RECORDS = "records.jsonl"


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

    @property
    def tpot(self) -> float | None:
        return tpot(self.ttft, self.e2el, self.output_tokens)

    @property
    def rtf(self) -> float | None:
        """Real-time factor: end-to-end latency over the clip's length."""
        return None if self.e2el is None else self.e2el / self.audio_s


class RecordFile:
    """records.jsonl, a line per record, on disk as soon as `write` returns."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = (folder / RECORDS).open("wb", buffering=0)
        self._encode = msgspec.json.Encoder().encode

    def write(self, record: Record) -> None:
        self._file.write(self._encode(record) + b"\n")

    def close(self) -> None:
        self._file.close()


def read_records(folder: Path) -> Iterator[Record]:
    """The records of a run. A last line that was cut off is left out. Raises InputError."""
    path = folder / RECORDS
    decode = msgspec.json.Decoder(Record).decode
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield decode(line)
                except msgspec.DecodeError as error:
                    raise InputError(f"{path}, line {number}: not a record ({error})") from error
    except OSError as error:
        raise InputError(f"{folder} holds no run: {RECORDS} cannot be read ({error.strerror})") from error
