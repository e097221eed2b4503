"""summary.json: exact figures of a run, computed from its records and its run.json."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from asr_load.engine.metrics_page import Poll
from asr_load.errors import InputError
from asr_load.files import encode_json, read_json, write_atomically
from asr_load.results.accuracy import loops, measure, rate_for, variants
from asr_load.results.cache_ratio import CacheRatio, cache_ratio
from asr_load.results.capacity import CAPACITY, Capacity, conclude_search, read_capacity
from asr_load.results.cost import Cost, cost
from asr_load.results.course import span
from asr_load.results.judge_slos import judge_slos
from asr_load.results.metrics import METRICS, Figures, figures
from asr_load.results.parts import ByDuration, ByReplica, ByUserClass, by_duration, by_replica, by_user_class
from asr_load.results.pass_fail import UNPROVEN, Verdict, conclude
from asr_load.results.record_file import RECORDS, append_lines, read_records
from asr_load.results.runfile import Refused, RunInfo, WorkerInfo, on_master_clock, read_run, write_run
from asr_load.results.server_view import ServerView, read_polls, server_views
from asr_load.results.slo import Goodput, SloResult, parse_slos
from asr_load.results.sound import LeftOut, Measured, measured
from asr_load.results.steady import Steadiness, judge_steadiness
from asr_load.results.verdict import Validity, cause_and_cure, judge
from asr_load.stream.record import RealtimeRecord, Record

SUMMARY, SUMMARY_FORMAT = "summary.json", 1
NOT_SENT = ("connect", "client")
"""Outcomes of requests that did not reach the server."""

CHANCE_Z = 1.96
"""95 of 100 counts from a normal distribution lie within this many standard deviations."""


class Requests(msgspec.Struct):
    """Counts of requests, without warm-up."""

    total: int
    success: int
    fail: int
    unfinished: int
    """Requests in flight that the end of the test cut off: neither successes nor failures."""
    truncated: int
    """Successes that reached --max-tokens, by their token count and finish_reason length."""
    out_of_room: int
    """Successes that another limit cut short, such as the engine's context (finish_reason length)."""
    by_outcome: dict[str, int]

    @property
    def failures(self) -> dict[str, int]:
        """Failures by outcome."""
        return {name: count for name, count in self.by_outcome.items() if name not in ("ok", "unfinished")}


class OpenedConnections(msgspec.Struct):
    """Opened connections. `connect` is the time in seconds to open one, with TLS; latencies do not include it."""

    opened: int
    connect_mean: float | None
    connect_max: float | None
    dropped: int
    """Connections closed because data, or their end, arrived while they were idle."""
    retried: int
    """Requests sent again because a kept connection turned out to be dead. That took `retry_s` each, which latencies do
    not include either."""


class OpenLoopRates(msgspec.Struct):
    """Request rates of an open loop over the whole test, in requests per second. `asked` is the requested rate; by the
    chance of the arrival process, 95 of 100 runs lie between `low` and `high`. `due` is this run's arrivals, `sent` its
    requests."""

    asked: float
    low: float
    high: float
    due: float
    sent: float


class Coverage(msgspec.Struct):
    """How evenly the clips were sent. Of N requests over C clips, each clip should get floor(N/C) to ceil(N/C).
    Deviations come from workers that joined late, were lost, or were slower than others."""

    clips: int
    """Clips in the set."""
    sent: int
    """Clips sent at least once."""
    passes: float
    repeated: int
    """Requests in excess of ceil(N/C) for their clip."""
    left_out: int
    """Requests that clips are short of floor(N/C)."""


class Difference(msgspec.Struct):
    """The difference between two rates, with its 95 % interval from `low` to `high`."""

    value: float
    low: float | None
    high: float | None


class RealtimeAccuracy(msgspec.Struct):
    """The cost in accuracy of realtime transcription: error rates of a realtime run minus those of a run over HTTP, for
    the clips that both transcribed."""

    baseline: str
    """Folder of the run over HTTP."""
    clips: int
    wer: Difference
    cer: Difference


_SummaryMetrics: Any = msgspec.defstruct(
    "SummaryMetrics",
    [(name, Figures, msgspec.field(default_factory=lambda: figures(()))) for name in METRICS],
    kw_only=True,
)


class Summary(_SummaryMetrics, kw_only=True):  # type: ignore[call-arg, misc]
    """A run's figures: those of each metric in METRICS, and the fields below. Latencies are in seconds, and only of
    successful requests."""

    requests: Requests
    """Numbers of requests by what became of them."""
    wall_s: float
    """Seconds from the first start to the last end."""
    audio_s: float
    """Seconds of audio in successful requests."""
    rtfx: float | None
    """audio_s / wall_s."""
    requests_per_s: float | None
    """Successful requests per second."""
    output_tokens_per_s: float | None
    """Output tokens of successful requests per second."""
    output_tokens: int | None
    """Output tokens of successful requests."""
    tokens_per_chunk: float | None
    """This and the two above are None if a response came without a token count."""
    prompt_tokens: int | None
    """Prompt tokens of successful requests."""
    cached_tokens: int | None
    """Prompt tokens that came from the server's cache. This and `prompt_tokens` are None if no response reported
    them."""
    goodput: float | None
    """Requests per second that met every limit of --goodput; None without limits, or if one is on TPOT and a response
    came without a token count."""
    wer: float | None
    """Word error rate over all transcripts with a reference."""
    cer: float | None
    """Character error rate over all transcripts with a reference."""
    references: int
    """Number of transcripts with a reference."""
    by_duration: list[ByDuration]
    """Figures by clip length."""
    coverage: Coverage
    """Which clips were sent, and how often."""
    open_loop: OpenLoopRates | None
    """None for a closed loop."""
    connections: OpenedConnections
    """Connections that were opened and dropped."""
    validity: Validity
    """Whether the figures are valid, and why not."""
    left_out: LeftOut
    """Requests excluded by warm-up, trimming and late seconds."""
    steadiness: Steadiness
    """Whether latency rose or fell during the run."""
    slo: list[SloResult]
    """Each SLO with its value."""
    passed: bool | None
    """Whether the SLOs are met in a run that can prove it; None without SLOs."""
    not_passed: list[str]
    """Reasons against passing other than a missed SLO."""
    lost_workers: list[int]
    """Workers that were lost, or whose requests are not all recorded."""
    refused: int = 0
    """Number of records from workers that the master rejected as implausible."""
    by_user_class: list[ByUserClass] = msgspec.field(default_factory=list)
    """Figures by user class; empty if the locustfile has only one."""
    by_replica: list[ByReplica] = msgspec.field(default_factory=list)
    """Figures by server address; empty if there was only one, or a proxy in between."""
    rate: str = "wer"
    """The more meaningful of wer and cer: cer for a language written without spaces."""
    normalizer: str = "whisper"
    """Text normalizer applied before computing WER and CER."""
    normalizer_variants: dict[str, int] = msgspec.field(default_factory=dict)
    """Number of `references` for each variant of the normalizer: English, basic, or basic with the marks of a script
    kept or dropped. Empty for `none`."""
    looping: int = 0
    """Successful transcripts with a repetition loop: the same words five times or more in a row, unlike the reference.
    WER counts all of them. Parts of a recording count as one transcript."""
    text_formats: dict[str, int] = msgspec.field(default_factory=dict)
    """Number of transcripts from which an envelope was removed, by its name."""
    cache_ratio: CacheRatio | None = None
    """Only for a run that sent clips' bytes again (--unique once or none)."""
    dialects: dict[str, int] = msgspec.field(default_factory=dict)
    """Successful sessions by dialect."""
    live_accuracy: RealtimeAccuracy | None = None
    """Only for a realtime run whose report has a run over HTTP as its --baseline."""
    server: list[ServerView] = msgspec.field(default_factory=list)
    """What each metrics page of the server reported about the test; empty without server.jsonl."""
    cost: Cost | None = None
    """What the server costs at this load, or at the load that a search found; None without --price."""
    joules_per_audio_hour: float | None = None
    """Energy of the GPUs for an hour of audio, by their energy counters; None without such a counter, and for a search,
    which runs at several loads."""
    error_rate: float | None = None
    """Failures as a share of successes and failures, without requests that have a time stamp in a late second."""
    sent_again: int = 0
    """Requests that repeat one that a busy server refused (--retries); `requests` counts them too."""
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    """Notes from --metadata."""
    verdict: Verdict | None = None
    """Whether the run passed, its exit code, and why. None in files of older versions."""
    format: int = SUMMARY_FORMAT
    """Increases when a field changes its meaning or disappears."""


def summarise(records: Iterable[Record], info: RunInfo, search: Capacity | None = None) -> Summary:
    """Compute a run's figures from its records; `search` is the capacity search, if the run was one."""
    return Finished(info, on_master_clock(records, info.workers), search).summary


def _summarise(run: Measured, info: RunInfo, search: Capacity | None, polls: Sequence[Poll]) -> Summary:
    counted, scoring = run.counted, info.scoring
    good = [record for record in counted if record.ok]
    wall_s, met = _wall_s(counted, info), _within_limits(run, info)
    coverage = _coverage([record for record in counted if record.retry_of is None], info)
    connections = _connections(counted, info.workers)
    failed = sum(record.failed for record in counted)
    audio_s, chunks = sum(record.audio_s for record in good), sum(record.chunks for record in good)
    tokens = None if run.uncounted else sum(record.known_tokens or 0 for record in good)
    cut_short = [record for record in good if record.finish_reason == "length"]
    limits = {each.name: each.max_tokens for each in info.user_classes}
    truncated = sum(_at_limit(record, limits.get(record.user_class, info.max_tokens)) for record in cut_short)
    slos = judge_slos(parse_slos(info.slos), run.sound, scoring)
    pairs = [(recording.reference, recording.text) for recording in run.recordings]
    accuracy, looping = measure(pairs, scoring), sum(loops(*pair, scoring) for pair in pairs)
    normalizer_variants = variants((reference for reference, _ in pairs), scoring)
    steady = judge_steadiness(run, info)
    views = _server_views(polls, run, info)
    validity = judge(run, info, steady, views)
    cause = "" if good or not counted else cause_and_cure(counted, info)
    if search is None:
        verdict = conclude(
            info.rules,
            slos,
            success=len(good),
            failed=failed,
            client_bound=validity.verdict == "client-bound",
            lost=run.lost,
            other_failures=info.other_failures,
            unwritten=info.unwritten,
            cause=cause,
            realtime=bool(info.realtime),
        )
    else:
        verdict = conclude_search(search, info.rules, lost=run.lost, unwritten=info.unwritten)

    def per_second(amount: float | None) -> float | None:
        return None if amount is None or wall_s <= 0 else amount / wall_s

    def total(name: str) -> int | None:
        counts = [count for record in good if (count := getattr(record, name)) is not None]
        return sum(counts) if counts else None

    return Summary(
        **{name: run.figures(name) for name in METRICS},
        requests=Requests(
            total=len(counted),
            success=len(good),
            fail=failed,
            unfinished=sum(record.unfinished for record in counted),
            truncated=truncated,
            out_of_room=len(cut_short) - truncated,
            by_outcome=dict(sorted(Counter(record.outcome for record in counted).items())),
        ),
        wall_s=wall_s,
        audio_s=audio_s,
        rtfx=per_second(audio_s),
        requests_per_s=per_second(len(good)),
        output_tokens_per_s=per_second(tokens),
        output_tokens=tokens,
        tokens_per_chunk=tokens / chunks if tokens is not None and chunks else None,
        prompt_tokens=total("prompt_tokens"),
        cached_tokens=total("cached_tokens"),
        goodput=per_second(met),
        error_rate=run.error_rate,
        wer=accuracy.wer,
        cer=accuracy.cer,
        references=accuracy.references,
        by_duration=by_duration(run, scoring),
        by_user_class=by_user_class(run, info),
        by_replica=by_replica(run),
        rate=rate_for(info.language),
        normalizer=info.normalizer,
        normalizer_variants=normalizer_variants,
        looping=looping,
        server=views,
        cost=_cost(info, per_second(audio_s), search),
        joules_per_audio_hour=None if search else _joules_per_audio_hour(views, audio_s),
        text_formats=dict(Counter(record.text_format for record in good if record.text_format != "raw")),
        cache_ratio=None if info.unique == "dither" else cache_ratio((one for one in run.records if one.ok), run.good),
        dialects=dict(Counter(record.dialect for record in good if isinstance(record, RealtimeRecord))),
        sent_again=sum(record.retry_of is not None for record in counted),
        coverage=coverage,
        open_loop=_open_loop(info.workers),
        connections=connections,
        validity=validity,
        left_out=run.left,
        steadiness=steady,
        slo=slos,
        passed=verdict.met == verdict.slos and verdict.proven if slos else None,
        not_passed=[reason.text for reason in verdict.reasons if reason.kind in UNPROVEN] if slos else [],
        lost_workers=sorted(run.lost),
        refused=sum(each.count for each in info.refused),
        metadata=info.metadata,
        verdict=verdict,
    )


def _server_views(polls: Sequence[Poll], run: Measured, info: RunInfo) -> list[ServerView]:
    arrived = sum(record.outcome not in NOT_SENT for record in run.records)
    return server_views(polls, *span(run.counted), urlsplit(info.endpoint).path, arrived)


def _cost(info: RunInfo, rtfx: float | None, search: Capacity | None) -> Cost | None:
    if not info.price:
        return None
    if search is None:
        return cost(info.price, info.currency, rtfx, None if info.loop else info.num_users)
    answer = next((step for step in search.steps if step.load == search.answer), None)
    streams = search.answer if search.kind == "streams" else None
    return cost(info.price, info.currency, None if answer is None else answer.rtfx, streams)


def _joules_per_audio_hour(views: Sequence[ServerView], audio_s: float) -> float | None:
    joules = [view.counters["energy"] for view in views if "energy" in view.counters]
    return sum(joules) / (audio_s / 3600) if joules and audio_s else None


def _within_limits(run: Measured, info: RunInfo) -> float | None:
    """Number of requests that met the limits of --goodput; None without limits, or if they cannot be judged."""
    limits = Goodput(info.goodput) if info.goodput else None
    if limits is None or ("tpot" in limits.limits and run.uncounted):
        return None
    # Assume that the excluded requests met the limits as often as the others.
    return sum(map(limits.meets, run.sound)) * len(run.counted) / len(run.sound) if run.sound else 0.0


def _open_loop(workers: list[WorkerInfo]) -> OpenLoopRates | None:
    counts = [worker.arrivals for worker in workers if worker.arrivals is not None and worker.arrivals.seconds > 0]
    if not counts:
        return None
    longest = max(counts, key=lambda arrivals: arrivals.seconds)
    chance = CHANCE_Z * longest.deviation
    bounds = max(longest.expected - chance, 0.0), longest.expected + chance
    sent = sum(worker.started for worker in workers)
    return OpenLoopRates(*(count / longest.seconds for count in (longest.expected, *bounds, longest.due, sent)))


def _wall_s(records: list[Record], info: RunInfo) -> float:
    """Seconds from the first request to the last record. Without the end times of workers (a killed run), up to the
    last end in the records; with --trim-end, up to the last request that counts."""
    starts = [record.started_at for record in records]
    if info.trim_end and starts:
        return max(starts) - min(starts)
    ends = [worker.ended_at + worker.master_offset_s for worker in info.workers if worker.ended_at is not None]
    ends += [start + (record.stream_end or record.e2el or 0.0) for start, record in zip(starts, records, strict=True)]
    return max(ends) - min(starts) if records else 0.0


def _at_limit(record: Record, max_tokens: int | None) -> bool:
    return max_tokens is not None and (record.known_tokens or 0) >= max_tokens


def _coverage(records: list[Record], info: RunInfo) -> Coverage:
    """Sum the coverage of all user classes, each over its own clips. With --mix, clips are sent unevenly on purpose, so
    none is sent too often or too rarely."""
    sets = {each.name: each.data_clips for each in info.user_classes} or {"": info.data_clips}
    counts: dict[str, Counter[str]] = {name: Counter() for name in sets}
    for record in records:
        if (name := record.user_class if info.user_classes else "") in counts:
            counts[name][record.clip] += 1
    repeated = left_out = 0
    for name, clips in sets.items():
        owed, more = divmod(counts[name].total(), clips)
        repeated += sum(max(count - owed - bool(more), 0) for count in counts[name].values())
        left_out += sum(max(owed - count, 0) for count in counts[name].values()) + owed * (clips - len(counts[name]))
    return Coverage(
        clips=sum(sets.values()),
        sent=sum(map(len, counts.values())),
        passes=len(records) / sum(sets.values()),
        repeated=0 if info.mix else repeated,
        left_out=0 if info.mix else left_out,
    )


def _connections(counted: list[Record], workers: list[WorkerInfo]) -> OpenedConnections:
    opened = sum(worker.connections for worker in workers)
    return OpenedConnections(
        opened=opened,
        connect_mean=sum(worker.connecting_s for worker in workers) / opened if opened else None,
        connect_max=max(worker.connecting_max_s for worker in workers) if opened else None,
        dropped=sum(worker.connections_dropped for worker in workers),
        retried=sum(record.retries > 0 for record in counted),
    )


@dataclass
class Finished:
    """A run, and the figures computed from its records, whose times are the master's."""

    info: RunInfo
    records: list[Record]
    search: Capacity | None = None
    """The capacity search, if the run was one."""
    unreported: Sequence[bytes] = ()
    """Lines of records that are only in workers' own files, not in records.jsonl."""
    folder: Path = Path()
    polls: Sequence[Poll] = ()
    """Polls of the server's metrics pages, in order."""
    measured: Measured = field(init=False)
    summary: Summary = field(init=False)

    def __post_init__(self) -> None:
        self.measured = measured(self.records, self.info)
        self.summary = _summarise(self.measured, self.info, self.search, self.polls)


def read_finished(folder: Path) -> Finished:
    """Read a run's folder and recompute its summary. Raises InputError."""
    info, kept = read_run(folder), Counter[tuple[int | None, str]]()
    unreported: dict[int, list[bytes]] = {}
    records = list(map(_compact, read_records(folder, kept, unreported)))
    for worker in info.workers:
        worker.from_file += len(unreported.get(worker.worker, ()))
    # A worker's own file may repeat records that the master has already counted.
    known = Counter({(each.worker, each.reason): each.count for each in info.refused})
    info.refused = [Refused(worker, why, count) for (worker, why), count in sorted((known | kept).items(), key=str)]
    records = on_master_clock(records, info.workers)
    search = read_capacity(folder) if (folder / CAPACITY).exists() else None
    lines = [line for own in unreported.values() for line in own]
    return Finished(info, records, search, lines, folder, read_polls(folder))


def _compact(record: Record) -> Record:
    """Store the record in a third of the memory: gaps as an array, and repeated strings once."""
    record.itl = array("d", record.itl)  # type: ignore[assignment]
    record.clip, record.reference = sys.intern(record.clip), sys.intern(record.reference)
    record.text, record.outcome = sys.intern(record.text), sys.intern(record.outcome)
    record.user_class = sys.intern(record.user_class)
    return record


def write_summary(folder: Path, finished: Finished) -> None:
    """Write summary.json atomically. First append the records that were only in workers' files to records.jsonl, unless
    a test is still writing to it. Raises OSError."""
    try:
        if finished.unreported and append_lines(folder / RECORDS, finished.unreported):
            write_run(folder, finished.info)
    finally:  # a disk too full for the records may still have room for the summary
        write_atomically(folder / SUMMARY, encode_json(finished.summary))


def read_summary(folder: Path) -> Summary:
    """Read summary.json. Raises InputError."""
    summary = read_json(folder / SUMMARY, Summary, f"{folder} has no summary yet", "a run")
    if summary.rate not in ("wer", "cer"):
        raise InputError(f"{folder / SUMMARY} is not the output of a run (rate is {summary.rate!r}, not wer or cer)")
    return summary


class _Concluded(msgspec.Struct):
    """The part of summary.json that holds the verdict."""

    verdict: Verdict | None = None


def read_verdict(folder: Path) -> Verdict | None:
    """The verdict in a run's summary.json; None if it has none."""
    try:
        return read_json(folder / SUMMARY, _Concluded, "", "a run").verdict
    except InputError:
        return None


def summarise_folder(folder: Path) -> Summary:
    """Recompute and write the summary.json of a run's folder, and return it. Raises InputError."""
    finished = read_finished(folder)
    write_summary(folder, finished)
    return finished.summary
