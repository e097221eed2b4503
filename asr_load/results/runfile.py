"""run.json: a run's options and the health of its clients, without secrets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
from msgspec import Meta

from asr_load.errors import InputError
from asr_load.files import encode_json, read_json, write_atomically
from asr_load.languages import language_code
from asr_load.options.option import Option
from asr_load.options.table import OPTIONS, PER_USER_CLASS
from asr_load.results.calibration import Calibration
from asr_load.results.normalizers import Scoring
from asr_load.results.pass_fail import PassRules
from asr_load.schedule.work import ArrivalCounts
from asr_load.stream.record import Amount, Count, Moment, Number, Record, Seconds
from asr_load.text import visible

RUN, RUN_FORMAT = "run.json", 1

PUNCTUAL_S = 0.010
"""A request sent more than this after it was due, although a user was free, is late because of the client."""

MOST_LATE = 1000
"""Maximum number of late stretches that a process stores, because each report to the master contains all of them."""


OffsetSeconds = Annotated[float, msgspec.Meta(ge=-1e11, le=1e11)]
"""Offset between two clocks in seconds. It can be large, because a monotonic clock may start anywhere."""
Clips = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]


class OpenLoop(TypedDict, total=False):
    """The requested arrivals of an open loop. One of rate, stages and trace is set."""

    rate: Amount | None
    arrivals: str
    burstiness: Amount
    stages: str
    trace: str
    speed: Amount
    seed: int


class Speaking(TypedDict, total=False):
    """Options of realtime sessions."""

    dialect: str
    packet_s: Seconds
    pace: Amount
    silence_s: Seconds
    server_vad: bool
    utterances: Count


class Late(msgspec.Struct):
    """A stretch of whole, successive seconds in each of which a process was late. `begin` and `end` are times of day by
    its own clock."""

    begin: Moment
    end: Moment
    lag: Seconds
    """Maximum lag of its event loop or reading thread, in seconds."""
    cpu: Amount
    """CPU of the event loop's thread in the busiest second, as a share of one core."""

    def moved(self, seconds: float) -> Late:
        """The stretch on another clock that is this many seconds ahead."""
        return msgspec.structs.replace(self, begin=self.begin + seconds, end=self.end + seconds)


class ClientHealth(msgspec.Struct):
    """Health of one process during a test. Lags and pauses are in seconds, CPU is a share of one core."""

    loop_lag_p50: Seconds
    loop_lag_p99: Seconds
    loop_lag_max: Seconds
    loop_lag_samples: Count
    """Number of samples of the event loop's lag."""
    stamp_lag_p99: Seconds
    stamp_lag_max: Seconds
    """How late responses were read: the lag of the event loop or of the reading thread. If Linux stamps incoming data,
    time stamps are exact, but chunks of a stream that arrive within this time count as one."""
    cpu_mean: Amount
    cpu_max: Amount
    """CPU of the event loop's thread; `cpu_max` is that of the busiest second."""
    cpu_process: Amount
    """Mean CPU of all threads together."""
    watched_s: Seconds
    gc_pause_max: Seconds
    gc_pause_total: Seconds
    late: list[Late] | None = None
    """Late seconds of the test, in order; None if they were not recorded."""
    sound_loop_lag_p99: Seconds = 0.0
    sound_stamp_lag_p99: Seconds = 0.0
    """Lags over the test's other seconds."""


class WorkerInfo(msgspec.Struct, kw_only=True):
    """A process that sent load. Times of day are in seconds since the epoch, by its own clock."""

    worker: Count
    host: str
    reader: str
    """Reader of responses: compiled or python."""
    reader_nice: Number = 0
    """Nice value of the reading thread; below 0, Linux schedules it before others (-15 as root)."""
    cores: Count
    """Cores that the process may run on, shared by all workers of a host; 0 if unknown."""
    calibration: Calibration | None = None
    """Calibration of its machine, if there is one."""
    users: Count
    connections: Count
    """Number of opened connections; latencies do not include opening them."""
    connections_dropped: Count = 0
    """Connections closed because data, or their end, arrived while they were idle."""
    server: str = ""
    """Name of the server, from its Server header."""
    connecting_s: Amount
    """Seconds to open all connections together, TLS included."""
    connecting_max_s: Seconds
    started: Count
    """Requests started."""
    recorded: Count
    """Records written."""
    queued: Count = 0
    """Requests of an open loop that were due before a user was free."""
    late: Count = 0
    """Requests sent more than 10 ms late although a user was free."""
    unsent: Count = 0
    """Requests that were due before the end of the test and never sent."""
    ended_at: Moment | None
    """Time of its last record."""
    reported_until: Moment | None = None
    """All requests that ended before this time have been reported; None before the first report."""
    arrivals: ArrivalCounts | None = None
    """Arrivals of an open loop; None in a closed loop, and before the end."""
    clock_offset_s: OffsetSeconds
    """Add this to its monotonic clock (time.perf_counter) to get the records' seconds since the epoch."""
    master_offset_s: OffsetSeconds
    """Add this to its records' times to get the master's: an estimate; 0 for the master itself, and if unknown."""
    master_offset_error_s: Seconds | None
    """Maximum error of the estimate, in either direction; None if unknown."""
    ended: bool
    """Whether this is its final report; False if the worker was lost."""
    from_file: Count = 0
    """Records that had not reached the master and were read from the worker's own file."""
    lost_at: Moment | None = None
    """When the master noticed the loss, by the master's clock."""
    health: ClientHealth | None
    """None if it was lost before its first report."""


class Refused(msgspec.Struct):
    """Records that were rejected as implausible or unreadable."""

    worker: Count | None
    """None for lines of records.jsonl, which do not name their worker."""
    reason: str
    count: Count


class Invocation(msgspec.Struct, kw_only=True):
    """How a test was started."""

    command: list[str] = []
    """Words of the command line, without secrets."""
    num_users: Number | None = None
    """Number of users (-u)."""
    spawn_rate: Amount | None = None
    """Users per second."""
    run_time: Amount | None = None
    """Seconds; None if only --requests or a person ends the test."""
    exit_code_on_error: int = 1
    """Locust's option: the exit code if requests failed."""
    shape: str = "none"
    """The load shape; none without one."""
    time_zone: str = ""
    """Time zone of the master's clock, such as +01:00."""
    git: str = ""
    """Commit of asr-load, with -dirty if files differ from it; empty outside of a checkout."""
    server: dict[str, Any] = {}
    """The server's description of itself, by the path that it was read from."""


def _fields(options: Iterable[Option]) -> list[tuple[str, Any, Any]]:
    """The fields of run.json that hold options, as msgspec.defstruct takes them: name, type, default."""
    fields = []
    for option in filter(attrgetter("in_run_json"), options):
        default = option.default if option.json_default is None else option.json_default
        described: Any = Annotated[option.json_type, Meta(description=option.help)]
        fields.append((option.in_run_json, described, default))
    return fields


def option_fields(values: Mapping[str, Any], options: Iterable[Option]) -> dict[str, Any]:
    """The values of options, by their `dest`, as the fields of run.json."""
    return {option.in_run_json: values[option.dest] for option in options if option.in_run_json}


_UserClassOptions: Any = msgspec.defstruct("UserClassOptions", _fields(PER_USER_CLASS), kw_only=True)
_RunOptions: Any = msgspec.defstruct("RunOptions", _fields(OPTIONS), bases=(Invocation,), kw_only=True)


class UserClassInfo(_UserClassOptions, kw_only=True):  # type: ignore[call-arg, misc]
    """The requests of one user class: the options that a class may set, and its data."""

    name: str
    data_sha256: str
    data_clips: Clips
    realtime: Speaking = msgspec.field(default_factory=Speaking)


class RunInfo(_RunOptions, kw_only=True):  # type: ignore[call-arg, misc]
    """A run: its options (see options/table.py), and the facts below. Times of day are seconds since the epoch."""

    format: int = RUN_FORMAT
    """Increases when a field changes its meaning or disappears."""
    id: str
    """Identifies the run in the X-Request-Id of its requests."""
    version: str
    """Version of asr-load."""
    began_at: Moment
    """Start of the test."""
    ended: bool
    """False until the end, and for a run whose process was killed."""
    ended_at: Moment | None = None
    """End of the test, after its last request; None if `ended` is False, and in files of older versions."""
    host: str
    """Address of the server, without a user and password."""
    sent_before: list[str] = msgspec.field(default_factory=list)
    """Folders of earlier runs, next to this one's or in results/, that sent the same bytes to the same server with
    --unique none."""
    timeouts: dict[str, Amount]
    """Seconds, by connect, stall and total."""
    http_version: str = "1.1"
    """HTTP version of the requests."""
    data_sha256: str
    """Hash of the prepared folder's manifest."""
    data_clips: Clips
    """Number of clips in the data."""
    language: str
    """Of the references; the code that `prepare.py --language` wrote into the manifest."""
    realtime: Speaking = msgspec.field(default_factory=Speaking)
    """Empty without realtime sessions."""
    in_parts: bool = False
    """Whether long recordings were cut into parts, which are scored as wholes."""
    user_classes: list[UserClassInfo] = msgspec.field(default_factory=list)
    """User classes, if there are several; the run's own options and data are then those of the first."""
    loop: OpenLoop = msgspec.field(default_factory=OpenLoop)
    """Empty for a closed loop."""
    other_failures: Count = 0
    """Failures that Locust counted in the locustfile's own requests, and exceptions of users."""
    unwritten: str = ""
    """Why records could not be written, which ended the test; else empty."""
    stages: list[tuple[Moment, str]] = msgspec.field(default_factory=list)
    """When a shape or a search changed the load, and what to."""
    users: list[tuple[Moment, Count]] = msgspec.field(default_factory=list)
    """When the number of users changed, by the master's clock, and to what; sampled once a second."""
    workers: list[WorkerInfo]
    """The processes that sent load."""
    refused: list[Refused] = msgspec.field(default_factory=list)
    """Records that were rejected as implausible."""
    python: str
    """Version of Python."""
    platform: str
    """Operating system and architecture."""
    packages: dict[str, str]
    """Versions of the packages that requests go through."""

    def __post_init__(self) -> None:
        # Files of earlier versions have languages as typed.
        for name in ("language", "asked_language"):
            setattr(self, name, language_code(getattr(self, name)))

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.language, self.normalizer, self.in_parts)

    @property
    def rules(self) -> PassRules:
        """What decides whether the run passes, in addition to its SLOs."""
        return PassRules(self.allow_client_bound, self.allow_lost_workers, self.exit_code_on_error)


MAX_WORD = 255
"""Maximum length of a text in a worker's report, such as its host name."""


def absurd(worker: WorkerInfo) -> str:
    """Why a worker's report is impossible although each field is within its bounds; empty if it is not."""
    for name in ("host", "reader", "server"):
        if (text := getattr(worker, name)) != visible(text)[:MAX_WORD]:
            return f"its {name} is {visible(text)[:MAX_WORD]!r}"
    late = (worker.health.late or []) if worker.health else []
    if len(late) > MOST_LATE or any(each.end < each.begin for each in late):
        return "its late seconds are too many, or end before they begin"
    return ""


def on_master_clock(records: Iterable[Record], workers: Iterable[WorkerInfo]) -> list[Record]:
    """The records with their times on the master's clock, from which the workers' clocks may differ."""
    offsets = {worker.worker: worker.master_offset_s for worker in workers}
    return [record.moved(offset) if (offset := offsets.get(record.worker, 0.0)) else record for record in records]


def write_run(folder: Path, info: RunInfo) -> None:
    """Write run.json atomically."""
    write_atomically(folder / RUN, encode_json(info))


def read_run(folder: Path) -> RunInfo:
    """Read run.json. Raises InputError."""
    if not folder.is_dir():
        problem = "is a file, not a results folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {problem}")
    info = read_json(folder / RUN, RunInfo, f"{folder} is not a results folder", "a run")
    if info.format > RUN_FORMAT:
        problem = f"has format {info.format}, but this version reads only up to {RUN_FORMAT}"
        raise InputError(f"{folder / RUN} {problem}: use a newer version")
    for worker in info.workers:
        if why := absurd(worker):
            raise InputError(f"{folder / RUN}: worker {worker.worker} has an impossible report: {why}")
    return info
