"""The record: one per request, written once, at the end of its stream. Everything that is reported derives from it."""

from __future__ import annotations

import fcntl
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import IO, Annotated, TypedDict

import msgspec
from msgspec import Meta

from asr_load.decode import Malformed, decode
from asr_load.errors import InputError
from asr_load.files import open_regular
from asr_load.stream.numbers import LIMIT
from asr_load.stream.timing import tpot
from asr_load.text import visible

RECORDS = "records.jsonl"
WORKER_RECORDS = "worker-{:03d}.jsonl"
"""What a worker of a fleet keeps of its own beside the master's file, in case one of the two dies."""

SUM_S = 0.001
"""By how much a TTFT and its gaps may differ from the latency that they add up to."""

YEAR_S = 366 * 86400.0

Seconds = Annotated[float, Meta(ge=0, le=YEAR_S)]
Lag = Annotated[float, Meta(ge=-YEAR_S, le=YEAR_S)]
"""Seconds, below 0 for what came early."""
Moment = Annotated[float, Meta(ge=0, le=1e11)]
"""A time of day, in seconds since the epoch."""
Count = Annotated[int, Meta(ge=0, lt=LIMIT)]
Number = Annotated[int, Meta(gt=-1 << 53, lt=1 << 53)]
Amount = Annotated[float, Meta(ge=0, le=1e12)]
"""A rate, a share, or a number that a person gave."""
Status = Annotated[int, Meta(ge=100, le=999)]
CloseCode = Annotated[int, Meta(ge=0, lt=1 << 16)]
"""What a field may hold. Decoding checks it, so that no figure is made of anything else."""

LEAST_AUDIO_S = 0.001
"""The shortest clip: lengths are rounded to it."""

MOST_CHARS = 2000
"""Of a word or a line that a record holds; texts of speech have no limit but that of an answer."""

LONGEST_LINE = 256 << 20
"""Bytes of a record's line: more than its texts come to, all in escapes."""


class Record(msgspec.Struct, kw_only=True, gc=False):  # none refers to itself
    """One request. Times are in seconds; `started_at` and `due_at` are seconds since the epoch on one clock.

    A latency is None where it was never reached. A failure keeps what was measured until then; no figure is made of it.
    """

    clip: str
    seq: Number
    user: Count
    worker: Count
    warmup: bool
    started_at: Moment
    due_at: Moment | None
    lag: Lag | None
    outcome: str
    ok: bool
    http_status: Status | None
    error: str | None
    upload: Seconds | None
    headers: Seconds | None
    ttft: Seconds | None
    itl: list[Seconds]
    e2el: Seconds | None
    stream_end: Seconds | None
    chunks: Count
    output_tokens: Count | None
    output_tokens_source: str | None
    prompt_tokens: Count | None
    cached_tokens: Count | None
    finish_reason: str | None
    streamed: bool
    """False for one plain JSON answer: its TTFT is its latency."""
    audio_s: Seconds
    text: str
    reference: str
    retries: Count = 0
    """Tries before the one that was answered, on connections that turned out dead."""
    retry_s: Seconds = 0.0
    """The time that they took: in no latency."""
    user_class: str = ""
    """Of the locustfile: the name of the class whose user sent it."""
    raw_text: str | None = None
    """What the server sent, where `text` is that without its envelope."""
    text_format: str = "raw"
    """The envelope that was taken off; raw: none."""
    ttft_text: Seconds | None = None
    """To the first character behind the envelope, where there was one."""
    connect: Seconds | None = None
    """What it took to open a connection for it, TLS included: in no latency. None on one that was kept."""
    replica: str = ""
    """The address that its connection was opened to; empty where a proxy is between."""
    first_error: str | None = None
    """Why the first of its tries came to nothing, where there were several."""
    retry_of: Number | None = None
    """The `seq` of the request that this one is sent again for (--retries)."""
    cause: str = ""
    """Of a failure: what kind it is, where more is known than its outcome says (Cause)."""
    ended_at: Moment | None = None
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


class SendLag(TypedDict):
    """How late a session's packets were, in seconds."""

    p50: Seconds
    p99: Seconds
    max: Seconds


class LiveRecord(Record, kw_only=True, gc=False):
    """One utterance of a realtime session. Its clock starts when its first packet is sent."""

    api: str = "realtime"
    dialect: str = ""
    """vllm, sglang, omni or openai; empty where it did not come so far."""
    session: str = ""
    """As the server calls it."""
    setup: Seconds | None = None
    """From the first step of connecting until audio could be sent: in no latency. None on a session that was kept."""
    ttfs: Seconds | None = None
    """From the end of speech to the final text."""
    done_latency: Seconds | None = None
    """From the message that ended the audio to the final text."""
    rtf_live: Seconds | None = None
    """From the first packet to the final text, over the seconds of audio that were sent."""
    send_lag: SendLag | None = None
    """How late packets were given to the socket. The client's own."""
    backpressure: Seconds = 0.0
    """Seconds in which the socket took nothing: the server's, or the network's."""
    packets: Count = 0
    """That were sent."""
    close_code: CloseCode | None = None
    """Of the server, where it closed the session: 1006 without a word."""
    events: dict[str, Count] = {}
    """What it said, by type."""
    partial_lag: list[Lag] = []
    """For each text whose place in the audio is known: its time, less that at which the audio up to there was sent."""
    revised: Count = 0
    """Words that were withdrawn."""
    backlog: Seconds | None = None
    """Seconds of audio that were sent and not yet in a text when the audio ended, where that is known."""


def untrue(record: Record) -> str:
    """Why a record cannot be true, whose fields are each in their bounds; empty where it can."""
    if odd := _odd_word(record):
        return f"its {odd} is too long, or has control characters"
    way = (record.upload, record.headers, record.ttft, record.e2el, record.stream_end)
    reached = [value for value in way if value is not None]
    if reached != sorted(reached) or (record.ended_at is not None and record.ended_at < record.started_at):
        return "its times are not in order"
    if record.ok != (record.outcome == "ok"):
        return "its outcome and its success differ"
    if record.ok and (record.ttft is None or record.e2el is None or record.audio_s < LEAST_AUDIO_S):
        return "it is a success without latencies or audio"
    if record.ok and abs((record.ttft or 0.0) + sum(record.itl) - (record.e2el or 0.0)) > SUM_S:
        return "its gaps do not add up"
    return ""


_WORDS = (
    "outcome", "error", "first_error", "cause", "output_tokens_source", "finish_reason", "text_format", "user_class",
    "replica",
)  # fmt: skip
_LIVE_WORDS = (*_WORDS, "api", "dialect", "session")
"""Fields whose text the harness has made visible, or wrote itself."""

_words, _live_words = attrgetter(*_WORDS), attrgetter(*_LIVE_WORDS)


def _odd_word(record: Record) -> str:
    """The name of a field whose text is too long, or would not be shown as it is; empty where there is none."""
    if isinstance(record, LiveRecord):
        names, words = _LIVE_WORDS + ("events",) * len(record.events), (*_live_words(record), *record.events)
    else:
        names, words = _WORDS, _words(record)
    together = "".join(filter(None, words))
    if together.isascii() and together.isprintable() and len(together) <= MOST_CHARS:
        return ""
    found = zip(names, words, strict=True)
    return next((name for name, word in found if word and (len(word) > MOST_CHARS or word != visible(word))), "")


encode_record = msgspec.json.Encoder().encode
LIVE = b'"api":"realtime"'
"""Which no text in JSON can hold: its quotes have a backslash."""

_FIELD = re.compile(r"(.*) - at `\$\.(\w+)")
"""What msgspec says of a field's value, and which field that is."""


def record_decoder(kind: type[Record], live: type[LiveRecord]) -> Callable[[bytes], Record]:
    """A function that reads a record's line as one of two types, and raises ValueError, which names the field, where
    any field is not as it can be."""

    def read(line: bytes) -> Record:
        try:
            record = decode(line, live if LIVE in line else kind)
        except Malformed as error:
            found = _FIELD.match(str(error))
            raise ValueError(f"its {found[2]} is wrong: {found[1]}" if found else "it cannot be read") from error
        if why := untrue(record):
            raise ValueError(why)
        return record

    return read


decode_record = record_decoder(Record, LiveRecord)


class RecordFile:
    """A line per record, on disk as soon as `write` returns; but for a disk that is full, where the lines are kept, and
    tried again with the next one and at the end. What is there then ends with a whole line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("wb", buffering=0)
        _lock(self._file.fileno())
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


def read_records(
    folder: Path,
    refused: Counter[tuple[int | None, str]] | None = None,
    unreported: dict[int, list[bytes]] | None = None,
) -> Iterator[Record]:
    """The records of a run, each once: the master's file, and what workers kept that never reached it, whose lines go
    into `unreported` too, by the worker.

    A last line that was cut off is left out. So are a line that cannot be read, and what lies in a worker's file and
    cannot be true, as the master would not have taken it: both are counted in `refused`, by the worker and the reason.
    Raises InputError, also if the master's file has lines and none of them is a record.
    """
    refused = Counter() if refused is None else refused
    own = {int(found[1]): path for path in folder.glob("*") if (found := _WORKERS_FILE.fullmatch(path.name))}
    seen: set[tuple[int, int, float]] = set()

    def is_new(record: Record) -> bool:
        key, known = (record.worker, record.user, record.started_at), len(seen)
        seen.add(key)
        return len(seen) > known

    whole, first_error = 0, ""
    for number, line in enumerate(_lines(folder / RECORDS), 1):
        try:
            record = decode_record(line)
        except ValueError as error:
            refused[None, str(error)] += 1
            first_error = first_error or f"{folder / RECORDS}, line {number}: not a record ({error})"
            continue
        whole += 1
        if not own or is_new(record):
            yield record
    if first_error and not whole:
        raise InputError(first_error)
    for worker, path in sorted(own.items()):
        for line in _lines(path):
            try:
                record = decode_record(line)
                if record.worker != worker:
                    raise ValueError("it is another worker's")
            except ValueError as error:
                refused[worker, str(error)] += 1
                continue
            if is_new(record):
                if unreported is not None:
                    unreported.setdefault(worker, []).append(encode_record(record))
                yield record


_WORKERS_FILE = re.compile(r"worker-([0-9]{3,9})\.jsonl")
"""The names that WORKER_RECORDS makes."""


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path) as file:
            while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
                yield line
    except OSError as error:
        raise InputError(f"{path.parent} holds no run: {path.name} cannot be read ({error.strerror})") from error
    if len(line) == LONGEST_LINE:
        raise InputError(f"{path} has a line of more than {LONGEST_LINE >> 20} MiB, which is no record")


def append_lines(path: Path, lines: Iterable[bytes]) -> bool:
    """Append records' lines to a file, behind its last whole one. Returns False, and appends nothing, while a test
    writes to it. Raises OSError."""
    with open_regular(path, writable=True) as file:
        if not _lock(file.fileno()):
            return False
        end = whole = sum(len(line) for line in file if line.endswith(b"\n"))
        left = b"".join(line + b"\n" for line in lines)
        try:
            while left:
                count = os.pwrite(file.fileno(), left, end)
                left, end = left[count:], end + count
        except OSError:
            end = whole
            raise
        finally:
            os.ftruncate(file.fileno(), end)
    return True


def _lock(descriptor: int) -> bool:
    """Make an open file this process's until it is closed, if all others ask too. Returns whether it is."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
