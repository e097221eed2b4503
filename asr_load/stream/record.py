"""The record of a request, written once, at the end of its stream. Everything that is reported derives from records."""

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
"""A worker's own file of records, in addition to the master's, in case one of the two dies."""

SUM_S = 0.001
"""Maximum difference, in seconds, between TTFT plus gaps and the end-to-end latency."""

YEAR_S = 366 * 86400.0

Seconds = Annotated[float, Meta(ge=0, le=YEAR_S)]
Lag = Annotated[float, Meta(ge=-YEAR_S, le=YEAR_S)]
"""Seconds; negative means early."""
Moment = Annotated[float, Meta(ge=0, le=1e11)]
"""A time in seconds since the epoch."""
Count = Annotated[int, Meta(ge=0, lt=LIMIT)]
Number = Annotated[int, Meta(gt=-1 << 53, lt=1 << 53)]
Amount = Annotated[float, Meta(ge=0, le=1e12)]
"""A rate, a share, or a number from an option."""
Status = Annotated[int, Meta(ge=100, le=999)]
CloseCode = Annotated[int, Meta(ge=0, lt=1 << 16)]
"""A close code of a WebSocket."""

LEAST_AUDIO_S = 0.001
"""Length of the shortest clip, and rounding unit of lengths, in seconds."""

MAX_WORD_CHARS = 2000
"""Maximum length of a record's words and lines. Transcripts have only the limit of a response."""

LONGEST_LINE = 256 << 20
"""Maximum bytes of a record's line: more than the longest texts take, fully escaped."""


class Record(msgspec.Struct, kw_only=True, gc=False):  # has no reference cycles
    """One request. Times are in seconds; `started_at` and `due_at` are seconds since the epoch on one clock.

    A latency is None if the request did not get that far. A failure keeps the values measured before it, which no
    metric includes.
    """

    clip: str
    """The clip's id."""
    seq: Number
    """Number of the request in the run, over all workers; below 0 if it was sent again."""
    user: Count
    """Number of the user within its worker."""
    worker: Count
    """Number of the process that sent it."""
    warmup: bool
    """If true, no metric includes it."""
    started_at: Moment
    """When the first byte was sent, or the first packet of a session."""
    due_at: Moment | None
    """When it should have been sent, in an open loop."""
    lag: Lag | None
    outcome: str
    """ok, or why it failed: docs/metrics.md lists the outcomes."""
    ok: bool
    """Whether the outcome is ok."""
    http_status: Status | None
    """Status of the response; None without one, and for sessions."""
    error: str | None
    """Error message of a failure."""
    upload: Seconds | None
    """Time until the request body was sent."""
    headers: Seconds | None
    """Time until the response headers arrived."""
    ttft: Seconds | None
    itl: list[Seconds]
    e2el: Seconds | None
    stream_end: Seconds | None
    """Time until the response body ended."""
    chunks: Count
    """Number of text chunks."""
    output_tokens: Count | None
    """Tokens of the response."""
    output_tokens_source: str | None
    """usage if the server counted the tokens, chunks if they are the number of chunks."""
    prompt_tokens: Count | None
    """Prompt tokens, as the server counted them."""
    cached_tokens: Count | None
    """Prompt tokens that came from the server's cache."""
    finish_reason: str | None
    """Why the server ended the response."""
    streamed: bool
    """False for a plain JSON response: its TTFT equals its latency."""
    audio_s: Seconds
    """Length of the clip."""
    text: str
    """The transcript."""
    reference: str
    """The expected transcript; empty without one."""
    retries: Count = 0
    """Attempts before the last one, on kept connections that the server had closed."""
    retry_s: Seconds = 0.0
    """Time of these attempts; no latency includes it."""
    user_class: str = ""
    """Name of the locustfile's user class that sent the request."""
    raw_text: str | None = None
    """The server's text, if `text` is the same without its envelope."""
    text_format: str = "raw"
    """The removed envelope; raw: none."""
    ttft_text: Seconds | None = None
    """Time to the first character after the envelope, if there was one."""
    connect: Seconds | None = None
    """Time to open a connection, including TLS; no latency includes it. None on a kept connection."""
    replica: str = ""
    """Address of the server; empty behind a proxy."""
    first_error: str | None = None
    """Error of the first attempt, if there were several."""
    retry_of: Number | None = None
    """The `seq` of the request that this one retries (--retries)."""
    cause: str = ""
    """Cause of a failure, if more is known than its outcome (Cause)."""
    ended_at: Moment | None = None
    """When the request ended, successfully or not, on the clock of `started_at`."""

    @property
    def begins(self) -> float:
        """When the request was sent or, in an open loop, due."""
        return self.started_at if self.due_at is None else self.due_at

    @property
    def end(self) -> float:
        """When the request ended, estimated if the record lacks `ended_at`."""
        return self.started_at + (self.stream_end or self.e2el or 0.0) if self.ended_at is None else self.ended_at

    def moved(self, seconds: float) -> Record:
        """The record on another clock that is ahead by `seconds`."""
        moved = {
            name: None if value is None else value + seconds
            for name in ("started_at", "due_at", "ended_at")
            for value in [getattr(self, name)]
        }
        return msgspec.structs.replace(self, **moved)

    @property
    def unfinished(self) -> bool:
        """Whether the end of the test cut the request off: neither a success nor a failure."""
        return self.outcome == "unfinished"

    @property
    def failed(self) -> bool:
        """Whether the server, the network or the load generator (outcome `client`) failed."""
        return not self.ok and not self.unfinished

    @property
    def known_tokens(self) -> int | None:
        """Output tokens as counted by the server. Chunks are not a substitute: one may hold several tokens."""
        return self.output_tokens if self.output_tokens_source == "usage" else None

    @property
    def tpot(self) -> float | None:
        return tpot(self.ttft, self.e2el, self.known_tokens)

    @property
    def rtf(self) -> float | None:
        """Real-time factor: end-to-end latency over the clip's length; None for a clip without one."""
        return None if self.e2el is None or not self.audio_s else self.e2el / self.audio_s


class SendLag(TypedDict):
    """Delays of a session's packets, in seconds."""

    p50: Seconds
    p99: Seconds
    max: Seconds


class RealtimeRecord(Record, kw_only=True, gc=False):
    """One utterance of a realtime session. Its clock starts when its first packet is sent."""

    api: str = "realtime"
    """Always realtime."""
    dialect: str = ""
    """vllm, sglang, omni or openai; empty if the session did not get that far."""
    session: str = ""
    """The server's id of the session."""
    setup: Seconds | None = None
    """Time from connecting until audio could be sent; no latency includes it. None on a kept session."""
    ttfs: Seconds | None = None
    """Time from the end of speech to the final text."""
    done_latency: Seconds | None = None
    """Time from the message that ended the audio to the final text."""
    rtf_live: Seconds | None = None
    """Time from the first packet to the final text, divided by the seconds of audio sent."""
    send_lag: SendLag | None = None
    """Delays in giving packets to the socket, caused by the load generator."""
    backpressure: Seconds = 0.0
    """Seconds in which the socket accepted no data, because of the server or the network."""
    packets: Count = 0
    """Number of packets sent."""
    close_code: CloseCode | None = None
    """The server's close code, if it closed the session; 1006 without a close frame."""
    events: dict[str, Count] = {}
    """Number of the server's events by type."""
    partial_lag: list[Lag] = []
    """For each text with a known position in the audio: seconds since the audio up to that position was sent."""
    revised: Count = 0
    """Number of withdrawn words."""
    backlog: Seconds | None = None
    """Seconds of audio not yet covered by a text when the audio ended, if known."""


def untrue(record: Record) -> str:
    """Why a record is implausible although each field is within its bounds; empty if it is plausible."""
    if odd := _odd_word(record):
        return f"its {odd} is too long or has control characters"
    times = (record.upload, record.headers, record.ttft, record.e2el, record.stream_end)
    known = [value for value in times if value is not None]
    if known != sorted(known) or (record.ended_at is not None and record.ended_at < record.started_at):
        return "its times are not in order"
    if record.ok != (record.outcome == "ok"):
        return "its outcome contradicts its success"
    if record.ok and (record.ttft is None or record.e2el is None or record.audio_s < LEAST_AUDIO_S):
        return "it succeeded without latencies or audio"
    if record.ok and abs((record.ttft or 0.0) + sum(record.itl) - (record.e2el or 0.0)) > SUM_S:
        return "its gaps do not add up to its latency"
    return ""


_WORDS = (
    "outcome", "error", "first_error", "cause", "output_tokens_source", "finish_reason", "text_format", "user_class",
    "replica",
)  # fmt: skip
_REALTIME_WORDS = (*_WORDS, "api", "dialect", "session")
"""Fields with text that the load generator wrote itself or escaped."""

_words, _realtime_words = attrgetter(*_WORDS), attrgetter(*_REALTIME_WORDS)


def _odd_word(record: Record) -> str:
    """The name of a field whose text is too long or contains control characters; empty without one."""
    if isinstance(record, RealtimeRecord):
        names, words = _REALTIME_WORDS + ("events",) * len(record.events), (*_realtime_words(record), *record.events)
    else:
        names, words = _WORDS, _words(record)
    together = "".join(filter(None, words))
    if together.isascii() and together.isprintable() and len(together) <= MAX_WORD_CHARS:
        return ""
    found = zip(names, words, strict=True)
    return next((name for name, word in found if word and (len(word) > MAX_WORD_CHARS or word != visible(word))), "")


encode_record = msgspec.json.Encoder().encode
REALTIME = b'"api":"realtime"'
"""Identifies a RealtimeRecord's line. It cannot occur within a text, where JSON escapes quotes."""

_FIELD = re.compile(r"(.*) - at `\$\.(\w+)")
"""Splits an error of msgspec into its message and the field's name."""


def record_decoder(kind: type[Record], realtime: type[RealtimeRecord]) -> Callable[[bytes], Record]:
    """Make a function that decodes a record's line as one of two types. It raises ValueError, naming the field, if the
    record is malformed or implausible."""

    def read(line: bytes) -> Record:
        try:
            record = decode(line, realtime if REALTIME in line else kind)
        except Malformed as error:
            found = _FIELD.match(str(error))
            raise ValueError(f"its {found[2]} is invalid: {found[1]}" if found else "it is malformed") from error
        if why := untrue(record):
            raise ValueError(why)
        return record

    return read


decode_record = record_decoder(Record, RealtimeRecord)


class RecordFile:
    """A file with one line per record, on disk as soon as `write` returns. If the disk is full, lines are kept and
    retried with the next one and at the end, when the file is cut to complete lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("wb", buffering=0)
        _lock(self._file.fileno())
        self._left = b""
        self._written = self._whole = 0
        """Bytes in the file, and bytes of its complete lines."""
        self.trouble = ""
        """The error, if a line could not be written."""

    def write(self, record: Record) -> bytes:
        """Write a record. Returns its line, so that the caller can forward it."""
        line = encode_record(record)
        self.write_line(line)
        return line

    def write_line(self, line: bytes) -> None:
        """Write an encoded record."""
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
        """Number of lines that are not on disk."""
        return self._left.count(b"\n")

    def close(self) -> None:
        """Try to write the remaining lines, and close the file."""
        self._put(b"")
        if self._left:
            self._file.truncate(self._whole)
        self._file.close()


def read_records(
    folder: Path,
    refused: Counter[tuple[int | None, str]] | None = None,
    unreported: dict[int, list[bytes]] | None = None,
) -> Iterator[Record]:
    """Yield the records of a run, each once: the master's, and those in workers' files that never reached the master.

    The lines of the latter are also added to `unreported`, by worker. Skips an incomplete last line. Skips malformed
    lines and implausible records, and counts them in `refused`, by worker (None: the master) and reason. Raises
    InputError, also if the master's file has lines but no record.
    """
    refused = Counter() if refused is None else refused
    workers = {int(found[1]): path for path in folder.glob("*") if (found := _WORKERS_FILE.fullmatch(path.name))}
    paths: list[tuple[int | None, Path]] = [(None, folder / RECORDS), *sorted(workers.items())]
    seen: set[tuple[int, int, float]] = set()

    def is_new(record: Record) -> bool:
        key, known = (record.worker, record.user, record.started_at), len(seen)
        seen.add(key)
        return len(seen) > known

    for worker, path in paths:
        valid, first_error = 0, ""
        for number, line in enumerate(_lines(path), 1):
            try:
                record = decode_record(line)
                if worker not in (None, record.worker):
                    raise ValueError("it belongs to another worker")
            except ValueError as error:
                refused[worker, str(error)] += 1
                first_error = first_error or f"{path}, line {number}: not a record ({error})"
                continue
            valid += 1
            if not workers or is_new(record):
                if worker is not None and unreported is not None:
                    unreported.setdefault(worker, []).append(encode_record(record))
                yield record
        if worker is None and first_error and not valid:
            raise InputError(first_error)


_WORKERS_FILE = re.compile(r"worker-([0-9]{3,9})\.jsonl")
"""Matches the names made by WORKER_RECORDS."""


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path) as file:
            while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
                yield line
    except OSError as error:
        raise InputError(f"{path.parent} holds no run: {path.name} cannot be read ({error.strerror})") from error
    if len(line) == LONGEST_LINE:
        raise InputError(f"{path} has a line of more than {LONGEST_LINE >> 20} MiB, which is not a record")


def append_lines(path: Path, lines: Iterable[bytes]) -> bool:
    """Append lines of records after the last complete line of a file. Returns False, without appending, while a test
    writes to the file. Raises OSError."""
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
    """Take an advisory lock on an open file until it is closed. Returns whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
