"""run.json: what was asked of a run and how the client fared. No secret is in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec

from asr_load.errors import InputError
from asr_load.files import encode_json, read_json, write_atomically
from asr_load.languages import language_code
from asr_load.results.calibration import Calibration
from asr_load.results.normalizers import Scoring
from asr_load.results.pass_fail import Rules
from asr_load.schedule.work import ArrivalCounts
from asr_load.stream.record import Amount, Count, Moment, Number, Record, Seconds
from asr_load.text import visible

RUN, FORMAT = "run.json", 1

PUNCTUAL_S = 0.010
"""A request that is sent so much after it was due, though a user was free, is late by the client's fault."""

MOST_LATE = 1000
"""Stretches of late seconds that a process keeps apart: each report to a master holds all of them."""


ClockOffset = Annotated[float, msgspec.Meta(ge=-1e11, le=1e11)]
"""What a clock shows more than another, in seconds: a monotonic one may count from anything."""
Clips = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]


class OpenLoop(TypedDict, total=False):
    """When an open loop's requests were sent, as it was asked for. One of rate, stages and trace is set."""

    rate: Amount | None
    arrivals: str
    burstiness: Amount
    stages: str
    trace: str
    speed: Amount
    seed: int


class Speaking(TypedDict, total=False):
    """How sessions went."""

    dialect: str
    packet_s: Seconds
    pace: Amount
    silence_s: Seconds
    server_vad: bool
    utterances: Count


class Late(msgspec.Struct):
    """Whole seconds, one after the other, in each of which a process was late. `begin` and `end` are times of day by
    its own clock."""

    begin: Moment
    end: Moment
    lag: Seconds
    """How late its event loop, or its reading thread, was at most, in seconds."""
    cpu: Amount
    """Of the event loop's thread in the busiest of them, as a share of one core."""

    def moved(self, seconds: float) -> Late:
        """The same on another clock, which shows so many seconds more."""
        return msgspec.structs.replace(self, begin=self.begin + seconds, end=self.end + seconds)


class ClientHealth(msgspec.Struct):
    """Of one process over a test. Lags and pauses in seconds, CPU as a share of one core."""

    loop_lag_p50: Seconds
    loop_lag_p99: Seconds
    loop_lag_max: Seconds
    loop_lag_samples: Count
    """Lags are those of the event loop."""
    stamp_lag_p99: Seconds
    stamp_lag_max: Seconds
    """How late answers were read: as late as the loop, or as the thread that reads. Where Linux stamps what comes, no
    stamp is late by it, but chunks of one stream that came within such a time are seen as one."""
    cpu_mean: Amount
    cpu_max: Amount
    """Of the thread that the event loop runs in; `cpu_max` is the busiest second."""
    cpu_process: Amount
    """The mean of all threads together."""
    watched_s: Seconds
    gc_pause_max: Seconds
    gc_pause_total: Seconds
    late: list[Late] | None = None
    """The seconds of the test in which it was late, in order; None where it was not noted."""
    sound_loop_lag_p99: Seconds = 0.0
    sound_stamp_lag_p99: Seconds = 0.0
    """The lags over the test's other seconds."""


class WorkerInfo(msgspec.Struct, kw_only=True):
    """A process that sent load. Times of day are seconds since the epoch, by its own clock."""

    worker: Count
    host: str
    reader: str
    """How it reads answers: compiled, python or plain."""
    reader_nice: Number = 0
    """The rank of the thread that reads, with Linux's scheduler: below 0, it goes before others (root's is -15)."""
    cores: Count
    """That it may run on; 0 where unknown. All workers of a host share them."""
    calibration: Calibration | None = None
    """What its machine was found good for, if it was."""
    users: Count
    connections: Count
    """That were opened, outside of all latencies."""
    connections_dropped: Count = 0
    """That were closed because something came on them, or their end, while nothing was asked."""
    server: str = ""
    """What the server calls itself, by the header of that name."""
    connecting_s: Amount
    """What that took, TLS included, of all together."""
    connecting_max_s: Seconds
    started: Count
    """Requests that it began."""
    recorded: Count
    """Records that it wrote."""
    queued: Count = 0
    """Requests of an open loop that were due before any user was free."""
    late: Count = 0
    """Those that were sent more than 10 ms late though one was."""
    unsent: Count = 0
    """Those that were due before the end of the test and never sent."""
    ended_at: Moment | None
    """When it wrote its last record."""
    reported_until: Moment | None = None
    """All that ended before this has been reported; None before its first word."""
    arrivals: ArrivalCounts | None = None
    """Of an open loop; None in a closed one, and before the end."""
    clock_offset_s: ClockOffset
    """Added to its monotonic clock (time.perf_counter), it gives the records' seconds since the epoch."""
    master_offset_s: ClockOffset
    """Added to its records' times, it gives the master's: an estimate; 0 for the master's own and where unknown."""
    master_offset_error_s: Seconds | None
    """By how much the estimate may be wrong, either way; None where it is unknown."""
    ended: bool
    """Whether this is its last word: False where it was lost."""
    from_file: Count = 0
    """Of its records, those that had not reached the master and were read from the worker's own file."""
    lost_at: Moment | None = None
    """When the master missed it, by the master's clock."""
    health: ClientHealth | None
    """None where it was lost before its first word."""


class Refused(msgspec.Struct):
    """Records that no figure counts, as they cannot be true or cannot be read."""

    worker: Count | None
    """None: lines of records.jsonl, which do not tell their worker."""
    reason: str
    count: Count


class Invocation(msgspec.Struct, kw_only=True):
    """How a test was asked for, and of whom."""

    command: list[str] = []
    """The words of the command line, without secrets."""
    num_users: Number | None = None
    spawn_rate: Amount | None = None
    """Users per second."""
    run_time: Amount | None = None
    """Seconds; None where nothing but its requests or a person ends it."""
    exit_code_on_error: int = 1
    """Locust's option: the exit code where requests failed."""
    shape: str = "none"
    time_zone: str = ""
    """Of the master's clock, as +01:00."""
    git: str = ""
    """The harness's commit, and -dirty where files are not as in it; empty where it is no checkout."""
    server: dict[str, Any] = {}
    """What the server says of itself, by the path that it said it on."""


class UserClassInfo(msgspec.Struct, kw_only=True):
    """What the users of one class sent; the fields are the run's."""

    name: str
    endpoint: str
    api: str
    model: str
    prompt: str
    max_tokens: Number | None
    unique: str
    data: str
    data_sha256: str
    data_clips: Clips
    realtime: Speaking = {}


class RunInfo(Invocation, kw_only=True):
    """A run. Times of day are seconds since the epoch; time limits are seconds."""

    format: int = FORMAT
    id: str
    version: str
    began_at: Moment
    ended: bool
    """False until the end, and for a run whose process was killed."""
    host: str
    endpoint: str = ""
    api: str
    model: str
    preset: str = ""
    """What the model was asked by; empty for none."""
    prompt: str
    prompt_position: str = "after"
    """Of the prompt beside the audio."""
    system: str = ""
    asked_language: str = ""
    """The code of the language that --language told the server; empty without it."""
    temperature: Amount = 0.0
    text_format: str = "raw"
    max_tokens: Number | None
    """As requests asked for; None where they asked for no limit."""
    requests: Number
    order: str
    seed: int
    unique: str
    sent_before: list[str] = []
    """The folders of earlier runs, beside this one's or in results/, that sent the same bytes to the same server with
    --unique none."""
    timeouts: dict[str, Amount]
    insecure: bool = False
    """Whether any certificate was trusted."""
    proxy: str = ""
    upstream: list[str] = []
    """The replicas that were connected to in turn, where they were named."""
    connections: str = "keep"
    """Whether connections were kept, or a new one was opened for each request."""
    http_version: str = "1.1"
    retries: Number = 0
    """How often what a busy server refused was sent again, at the most."""
    header_names: list[str]
    """Names alone: values may be secrets."""
    extra_body_names: list[str]
    omit: list[str] = []
    """Fields that were left out of requests' bodies."""
    data: str
    data_sha256: str
    """Of the prepared folder's manifest."""
    data_clips: Clips
    sample: Number = 0
    """How many of the set's clips were chosen by --sample; 0: all."""
    mix: str = ""
    """Lengths and weights, as --mix has them."""
    language: str
    normalizer: str = "whisper"
    realtime: Speaking = {}
    """Empty where there were none."""
    in_parts: bool = False
    """Whether long recordings were cut into parts, which are scored as wholes."""
    user_classes: list[UserClassInfo] = []
    """Where a run has several; what the run itself says of its endpoint and its data is then of the first one."""
    loop: OpenLoop = {}
    """Empty for a closed one."""
    warmup_requests: Number = 0
    warmup_time: Amount = 0.0
    trim_start: Amount = 0.0
    trim_end: Amount = 0.0
    slos: list[str] = []
    goodput: str = ""
    metadata: dict[str, str] = {}
    allow_client_bound: bool = False
    allow_lost_workers: bool = False
    other_failures: Count = 0
    """Failures that Locust counted of requests that are not the harness's, and exceptions of users."""
    unwritten: str = ""
    """Why records could not be written, which ended the test; empty where all could."""
    stages: list[tuple[Moment, str]] = []
    """When the load changed by a shape or a search, and what it was from then on."""
    users: list[tuple[Moment, Count]] = []
    """When the number of users changed, by the master's clock, and to what: looked at once a second."""
    workers: list[WorkerInfo]
    refused: list[Refused] = []
    python: str
    platform: str
    packages: dict[str, str]

    def __post_init__(self) -> None:
        # Files of earlier versions have languages as they were typed.
        self.language, self.asked_language = language_code(self.language), language_code(self.asked_language)

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.language, self.normalizer, self.in_parts)

    @property
    def rules(self) -> Rules:
        """What the run is judged by, other than its SLOs."""
        return Rules(self.allow_client_bound, self.allow_lost_workers, self.exit_code_on_error)


MAX_WORD = 255
"""Characters of a word of a worker on itself, as its host's name."""


def absurd(worker: WorkerInfo) -> str:
    """Why a worker's word on itself cannot be true, whose fields are each in their bounds; empty where it can."""
    for name in ("host", "reader", "server"):
        if (text := getattr(worker, name)) != visible(text)[:MAX_WORD]:
            return f"its {name} is {visible(text)[:MAX_WORD]!r}"
    late = (worker.health.late or []) if worker.health else []
    if len(late) > MOST_LATE or any(each.end < each.begin for each in late):
        return "its late seconds are too many, or end before they begin"
    return ""


def on_master_clock(records: Iterable[Record], workers: Iterable[WorkerInfo]) -> list[Record]:
    """The records with their times on the master's clock, which those of workers may be apart from."""
    offsets = {worker.worker: worker.master_offset_s for worker in workers}
    return [record.moved(offset) if (offset := offsets.get(record.worker, 0.0)) else record for record in records]


def write_run(folder: Path, info: RunInfo) -> None:
    """Write run.json as a whole or not at all."""
    write_atomically(folder / RUN, encode_json(info))


def read_run(folder: Path) -> RunInfo:
    """Read run.json. Raises InputError."""
    info = read_json(folder / RUN, RunInfo, f"{folder} holds no finished run", "a run")
    if info.format > FORMAT:
        raise InputError(
            f"{folder / RUN} has format {info.format}, this version reads up to {FORMAT}: take a newer one"
        )
    for worker in info.workers:
        if why := absurd(worker):
            raise InputError(f"{folder / RUN}: worker {worker.worker} reports what cannot be: {why}")
    return info
