"""The record: one per request, written once, at the end of its stream. Everything that is reported derives from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from asr_load.errors import InputError
from asr_load.stream.timing import tpot

RECORDS = "records.jsonl"
WORKER_RECORDS = "worker-{:03d}.jsonl"
"""What a worker of a fleet keeps of its own beside the master's file, in case one of the two dies."""

SUM_S = 0.001
"""By how much a TTFT and its gaps may differ from the latency that they add up to."""

MOST_TOKENS = 1 << 31

READ_BYTES = 1 << 20
"""Of records, at once."""


class Record(msgspec.Struct, kw_only=True, gc=False):  # none refers to itself
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
    user_class: str = ""
    """Of the locustfile: the name of the class whose user sent it."""
    raw_text: str | None = None
    """What the server sent, where `text` is that without its envelope."""
    text_format: str = "raw"
    """The envelope that was taken off; raw: none."""
    ttft_text: float | None = None
    """To the first character behind the envelope, where there was one."""
    connect: float | None = None
    """What it took to open a connection for it, TLS included: in no latency. None on one that was kept."""
    replica: str = ""
    """The address that its connection was opened to; empty where a proxy is between."""
    first_error: str | None = None
    """Why the first of its tries came to nothing, where there were several."""
    retry_of: int | None = None
    """The `seq` of the request that this one is sent again for (--retries)."""
    cause: str = ""
    """Of a failure: what kind it is, where more is known than its outcome says (Cause)."""
    ended_at: float | None = None
    """When it was over, for a success as for a failure, on the clock of `started_at`."""

    @property
    def begins(self) -> float:
        """When it was sent or, in an open loop, due."""
        return self.started_at if self.due_at is None else self.due_at

    @property
    def end(self) -> float:
        """When it was over, as well as its record knows."""
        return self.started_at + (self.stream_end or self.e2el or 0.0) if self.ended_at is None else self.ended_at

    def moved(self, seconds: float) -> Record:
        """The record on another clock, which shows so many seconds more."""
        moved = {
            name: None if value is None else value + seconds
            for name in ("started_at", "due_at", "ended_at")
            for value in [getattr(self, name)]
        }
        return msgspec.structs.replace(self, **moved)

    @property
    def unfinished(self) -> bool:
        """Whether the test's own end cut it off: neither a success nor a failure of the server."""
        return self.outcome == "unfinished"

    @property
    def failed(self) -> bool:
        """Whether it is a failure: of the server, of the way to it, or of the client (outcome `client`)."""
        return not self.ok and not self.unfinished

    @property
    def known_tokens(self) -> int | None:
        """Output tokens as the server counted them. Chunks are no measure of them: one may hold several."""
        return self.output_tokens if self.output_tokens_source == "usage" else None

    @property
    def tpot(self) -> float | None:
        return tpot(self.ttft, self.e2el, self.known_tokens)

    @property
    def rtf(self) -> float | None:
        """Real-time factor: end-to-end latency over the clip's length; None for a clip without one."""
        return None if self.e2el is None or not self.audio_s else self.e2el / self.audio_s


class LiveRecord(Record, kw_only=True, gc=False):
    """One utterance of a realtime session. Its clock starts when its first packet is sent."""

    api: str = "realtime"
    dialect: str = ""
    """vllm, sglang, omni or openai; empty where it did not come so far."""
    session: str = ""
    """As the server calls it."""
    setup: float | None = None
    """From the first step of connecting until audio could be sent: in no latency. None on a session that was kept."""
    ttfs: float | None = None
    """From the end of speech to the final text."""
    done_latency: float | None = None
    """From the message that ended the audio to the final text."""
    rtf_live: float | None = None
    """From the first packet to the final text, over the seconds of audio that were sent."""
    send_lag: dict[str, float] | None = None
    """How late packets were given to the socket: p50, p99 and max. The client's own."""
    backpressure: float = 0.0
    """Seconds in which the socket took nothing: the server's, or the network's."""
    packets: int = 0
    """That were sent."""
    close_code: int | None = None
    """Of the server, where it closed the session: 1006 without a word."""
    events: dict[str, int] = {}
    """What it said, by type."""
    partial_lag: list[float] = []
    """For each text whose place in the audio is known: its time, less that at which the audio up to there was sent."""
    revised: int = 0
    """Words that were withdrawn."""
    backlog: float | None = None
    """Seconds of audio that were sent and not yet in a text when the audio ended, where that is known."""


def untrue(record: Record) -> str:
    """Why a record cannot be true, whoever wrote it; empty where it can."""
    if why := _untrue_times(record):
        return why
    if record.ok != (record.outcome == "ok"):
        return "its outcome and its success differ"
    if record.ok and not (record.ttft is not None and record.e2el is not None and record.audio_s):
        return "it is a success without latencies or audio"
    if record.ok and abs((record.ttft or 0.0) + sum(record.itl) - (record.e2el or 0.0)) > SUM_S:
        return "its gaps do not add up"
    counts = (record.output_tokens, record.prompt_tokens, record.cached_tokens)
    if any(count is not None and not 0 <= count < MOST_TOKENS for count in counts):
        return "it holds a count of tokens that none has"
    return ""


def _untrue_times(record: Record) -> str:
    way = (record.upload, record.headers, record.ttft, record.e2el, record.stream_end)
    reached = [value for value in way if value is not None]
    spans = (record.audio_s, record.retry_s, record.connect or 0.0, record.ttft_text or 0.0, *record.itl)
    if isinstance(record, LiveRecord):
        lags = (record.send_lag or {}).values()
        spans += (record.setup or 0.0, record.rtf_live or 0.0, record.done_latency or 0.0, *lags)
        spans += (record.backpressure, record.backlog or 0.0)
    rest = (record.started_at, record.due_at, record.lag, record.ended_at, *spans)
    if not all(math.isfinite(value) for value in (*reached, *rest) if value is not None):
        return "it holds a number that is none"
    if min((0.0, *reached, *spans)) < 0:
        return "it holds a time below 0"
    return "" if reached == sorted(reached) else "its times are not in order"


encode_record = msgspec.json.Encoder().encode
_decode, _decode_live = msgspec.json.Decoder(Record).decode, msgspec.json.Decoder(LiveRecord).decode
LIVE = b'"api":"realtime"'
"""Which no text in JSON can hold: its quotes have a backslash."""


def decode_record(line: bytes) -> Record:
    """A record from its line. Raises msgspec.MsgspecError."""
    return _decode_live(line) if LIVE in line else _decode(line)


class RecordFile:
    """A line per record, on disk as soon as `write` returns; but for a disk that is full, where the lines are kept, and
    tried again with the next one and at the end. What is there then ends with a whole line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("wb", buffering=0)
        self._left = b""
        self._written = self._whole = 0
        """Bytes in the file, and those of them that are whole lines."""
        self.trouble = ""
        """Why lines could not be written, once they could not."""

    def write(self, record: Record) -> bytes:
        """Write a record. Returns its line, as others may forward it."""
        line = encode_record(record)
        self.write_line(line)
        return line

    def write_line(self, line: bytes) -> None:
        """Write a record that is encoded."""
        self._put(line + b"\n")

    def _put(self, line: bytes) -> None:
        self._left += line
        try:
            while self._left:
                count = self._file.write(self._left)
                if newline := self._left.rfind(b"\n", 0, count) + 1:
                    self._whole = self._written + newline
                self._written += count
                self._left = self._left[count:]
        except OSError as error:
            self.trouble = error.strerror or str(error)

    @property
    def unwritten(self) -> int:
        """Lines that are not on disk."""
        return self._left.count(b"\n")

    def close(self) -> None:
        """Write what is left, if it can be, and close."""
        self._put(b"")
        if self._left:
            self._file.truncate(self._whole)
        self._file.close()


def read_records(folder: Path, refused: Counter[tuple[int, str]] | None = None) -> Iterator[Record]:
    """The records of a run, each once: the master's file, and what workers kept that never reached it.

    A last line that was cut off is left out. What lies in a worker's file and cannot be true is left out too, as the
    master would not have taken it, and counted in `refused` by the worker and the reason. Raises InputError.
    """
    refused = Counter() if refused is None else refused
    own = sorted(folder.glob(WORKER_RECORDS.format(0).replace("000", "*")))
    seen: set[tuple[int, int, float]] = set()
    for path in [folder / RECORDS, *own]:
        for record in _read(path):
            if path.name != RECORDS:
                stranger = path.name != WORKER_RECORDS.format(record.worker)
                if why := untrue(record) or ("it is another worker's" if stranger else ""):
                    refused[record.worker, why] += 1
                    continue
            if own:
                key = (record.worker, record.user, record.started_at)
                if key in seen:
                    continue
                seen.add(key)
            yield record


def _read(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb", buffering=READ_BYTES) as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield decode_record(line)
                except msgspec.DecodeError as error:
                    raise InputError(f"{path}, line {number}: not a record ({error})") from error
    except OSError as error:
        raise InputError(f"{path.parent} holds no run: {path.name} cannot be read ({error.strerror})") from error
