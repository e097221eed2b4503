"""summary.json: exact figures of a run, all from its records and its run.json."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from asr_load.errors import InputError
from asr_load.files import encode_json, read_json, write_atomically
from asr_load.results import sound
from asr_load.results.accuracy import Accuracy, loops, measure, rate_for, spoken, variants, wholes
from asr_load.results.cache_ratio import CacheRatio, cache_ratio
from asr_load.results.capacity import CAPACITY, Capacity, conclude_search, read_capacity
from asr_load.results.figures import Figures, figures, figures_of
from asr_load.results.normalizers import Scoring
from asr_load.results.pass_fail import UNPROVEN, Verdict, conclude
from asr_load.results.runfile import Refused, RunInfo, WorkerInfo, on_master_clock, read_run, write_run
from asr_load.results.slo import Goodput, SloResult, judge_slos, parse_slos
from asr_load.results.sound import Measured
from asr_load.results.steady import LeftOut, Steadiness
from asr_load.results.verdict import Validity, cause_and_cure, judge, judge_steadiness, lost_workers
from asr_load.stream.record import RECORDS, LiveRecord, Record, append_lines, read_records

SUMMARY, FORMAT = "summary.json", 1
CHANCE_Z = 1.96
"""Of the normal distribution: 95 of 100 counts lie within so many standard deviations."""

LENGTHS = (0, 5, 10, 20, 30, float("inf"))
"""Bounds of the length buckets, in seconds of audio: from one bound up to, not including, the next."""


class Requests(msgspec.Struct):
    """Counts of requests; warm-up is in none of them."""

    total: int
    success: int
    fail: int
    unfinished: int
    """In flight when the test ended and cut off by it: neither successes nor failures."""
    truncated: int
    """Successes that ran into --max-tokens: by finish_reason length, and by their tokens."""
    out_of_room: int
    """Successes that another limit cut short, as the engine's context is (finish_reason length)."""
    by_outcome: dict[str, int]

    @property
    def failures(self) -> dict[str, int]:
        """Failures by outcome."""
        return {name: count for name, count in self.by_outcome.items() if name not in ("ok", "unfinished")}


class Connections(msgspec.Struct):
    """That were opened; `connect` is what it took, in seconds, TLS included. It is in no latency."""

    opened: int
    connect_mean: float | None
    connect_max: float | None
    dropped: int
    """Closed because something came on them, or their end, while nothing was asked."""
    retried: int
    """Requests that were sent again because a connection that was kept turned out dead; that took `retry_s` each, which
    is in no latency either."""


class OpenLoop(msgspec.Struct):
    """Requests per second of an open loop, over the whole test: `asked` for, in 95 of 100 runs between `low` and `high`
    by the chance of its process; `due` in this one; and `sent`."""

    asked: float
    low: float
    high: float
    due: float
    sent: float


class ByDuration(msgspec.Struct):
    """Successful requests of clips of one length, in seconds; `to_s` None is no upper bound."""

    from_s: float
    to_s: float | None
    n: int
    ttft: Figures
    e2el: Figures
    rtf: Figures
    wer: float | None
    cer: float | None = None


class ByUserClass(msgspec.Struct):
    """Requests of the users of one class: `n` of them successful, which the figures are of, and `fail` not."""

    name: str
    n: int
    fail: int
    ttft: Figures
    itl: Figures
    e2el: Figures
    rtf: Figures
    wer: float | None
    cer: float | None = None


class ByReplica(msgspec.Struct):
    """Requests that went to one address: `share` of all, `n` of them successful, which the figures are of, and `fail`
    not."""

    address: str
    share: float
    n: int
    fail: int
    ttft: Figures
    e2el: Figures
    rtf: Figures


class Coverage(msgspec.Struct):
    """How evenly the clips were sent. N requests over a set of C clips owe each clip floor(N/C) of them, and none has
    more than ceil(N/C); what differs is due to workers that joined late, were lost, or were slower than others."""

    clips: int
    """In the set."""
    sent: int
    """Of them, sent at least once."""
    passes: float
    repeated: int
    """Requests beyond ceil(N/C) of their clip."""
    left_out: int
    """Requests that clips lack to floor(N/C)."""


class Difference(msgspec.Struct):
    """Of two rates; `low` and `high` bound it (95 %)."""

    value: float
    low: float | None
    high: float | None


class LiveAccuracy(msgspec.Struct):
    """What hearing speech as it is spoken costs in accuracy: a realtime run's error rates less those of a run over
    HTTP, over the clips that both transcribed."""

    baseline: str
    """The other run's folder."""
    clips: int
    wer: Difference
    cer: Difference


class Summary(msgspec.Struct):
    """A run's figures. Latencies are of successes alone, in seconds."""

    requests: Requests
    wall_s: float
    audio_s: float
    rtfx: float | None
    requests_per_s: float | None
    output_tokens_per_s: float | None
    output_tokens: int | None
    tokens_per_chunk: float | None
    """These three are None where an answer did not tell its tokens."""
    prompt_tokens: int | None
    cached_tokens: int | None
    """Of the prompts, what the server took from its cache. Both are None where no answer told them."""
    goodput: float | None
    """Requests per second that met every limit of --goodput; None where none was given, or one is on TPOT and an answer
    did not tell its tokens."""
    ttft: Figures
    itl: Figures
    tpot: Figures
    e2el: Figures
    rtf: Figures
    lag: Figures
    ttft_due: Figures
    e2el_due: Figures
    """In an open loop: from when a request was due, so with the wait before it could be sent."""
    wer: float | None
    cer: float | None
    references: int
    by_duration: list[ByDuration]
    coverage: Coverage
    open_loop: OpenLoop | None
    """None for a closed one."""
    connections: Connections
    validity: Validity
    left_out: LeftOut
    steadiness: Steadiness
    slo: list[SloResult]
    passed: bool | None
    """Whether the SLOs hold, in a run that can show it; None where none was given."""
    not_passed: list[str]
    """What other than an SLO stands against it."""
    lost_workers: list[int]
    """Those that were lost, or of whose requests some have no record."""
    refused: int = 0
    """Records that a worker sent and the master did not take, as they cannot be true."""
    by_user_class: list[ByUserClass] = []
    """Of a locustfile with several classes of users; empty with one."""
    by_replica: list[ByReplica] = []
    """Where requests went to several addresses; empty where it was one, or a proxy was between."""
    rate: str = "wer"
    """Which of wer and cer to go by: cer for a language that is written without spaces."""
    normalizer: str = "whisper"
    """How text was normalised before it was compared."""
    normalizer_variants: dict[str, int] = {}
    """How many of `references` were normalised by which variant of it: English, basic, or basic with the marks of a
    script kept or dropped. Empty for `none`."""
    looping: int = 0
    """Successes (of parts of recordings: whole ones) whose transcript goes round in circles: the same words five times
    or more in a row, as the reference has not. WER counts all of it."""
    text_formats: dict[str, int] = {}
    """How many successes had an envelope around their transcript, which was taken off, by its name."""
    ttft_text: Figures = msgspec.field(default_factory=lambda: figures(()))
    """Of those: to the first character behind it."""
    cache_ratio: CacheRatio | None = None
    """Of a run that sent clips' bytes again (--unique once or none)."""
    connect: Figures = msgspec.field(default_factory=lambda: figures(()))
    """Of requests for which a connection was opened."""
    ttfs: Figures = msgspec.field(default_factory=lambda: figures(()))
    done_latency: Figures = msgspec.field(default_factory=lambda: figures(()))
    rtf_live: Figures = msgspec.field(default_factory=lambda: figures(()))
    partial_lag: Figures = msgspec.field(default_factory=lambda: figures(()))
    backlog: Figures = msgspec.field(default_factory=lambda: figures(()))
    revised: Figures = msgspec.field(default_factory=lambda: figures(()))
    setup: Figures = msgspec.field(default_factory=lambda: figures(()))
    send_lag: Figures = msgspec.field(default_factory=lambda: figures(()))
    """These eight are of realtime sessions."""
    dialects: dict[str, int] = {}
    """Successes by the dialect of their session."""
    live_accuracy: LiveAccuracy | None = None
    """Of a realtime run that a report was made of with one over HTTP as its --baseline."""
    error_rate: float | None = None
    """Failures as a share of successes and failures, those with a time stamp in a late second left out."""
    sent_again: int = 0
    """Requests that are one that was refused by a busy server, sent again (--retries): each is one of `requests`."""
    metadata: dict[str, str] = {}
    """What --metadata keeps with the figures."""
    verdict: Verdict | None = None
    """Whether the run passed, its exit code, and why. None in a file of an older version."""
    format: int = FORMAT

    @property
    def server(self) -> str:
        """How the server did, in words: what was asked of it, errors and accuracy."""
        said = []
        if self.verdict and self.verdict.slos:
            said.append(self.verdict.slos_met)
        if self.error_rate is not None:
            said.append(f"errors {self.error_rate:.1%}")
        rate: float | None = getattr(self, self.rate)
        if rate is not None:
            said.append(f"{self.rate.upper()} {rate:.1%}")
        return ", ".join(said) or "no request came to its end"


def run_lines(metadata: dict[str, str]) -> list[str]:
    """What --metadata says of a run, in a line; none without it."""
    said = ", ".join(f"{key}={value}" for key, value in metadata.items())
    return [f"Run: {said}"] if said else []


def rates_line(summary: Summary) -> str:
    """The error rates, the one to go by first, and how text was normalised; of a run with references."""
    rates = {"wer": f"WER {summary.wer or 0:.1%}", "cer": f"CER {summary.cer or 0:.1%}"}
    first = rates.pop(summary.rate)
    why = "" if summary.rate == "wer" else " (of a language without spaces, where a word is what is between two)"
    over = f"over {summary.references} transcripts (normaliser: {summary.normalizer})"
    return f"{first}, {' '.join(rates.values())}{why} {over}{_variants(summary)}"


def normalizer_words(summary: Summary) -> str:
    """The normalizer, and what it did with the run's languages."""
    return f"{summary.normalizer}{_variants(summary)}"


def _variants(summary: Summary) -> str:
    """The variants of the normalizer that were applied, with the number of transcripts of each if there are several."""
    several = len(summary.normalizer_variants) > 1
    said = [f"{name} ({count:,})" if several else name for name, count in summary.normalizer_variants.items()]
    return f"; variant{'s' * several}: {', '.join(said)}" if said else ""


def summarise(records: Iterable[Record], info: RunInfo, search: Capacity | None = None) -> Summary:
    """The figures of a run from its records; `search` where the run was one."""
    return _summarise(on_master_clock(records, info.workers), info, search)


def _summarise(records: list[Record], info: RunInfo, search: Capacity | None) -> Summary:
    part = sound.measured(records, info)
    measured, figured = part.counted, [record for record in part.sound if record.ok]
    good = [record for record in measured if record.ok]
    wall_s = _wall_s(measured, info)
    limits = Goodput(info.goodput) if info.goodput else None
    validity = judge(records, info, part)
    slos = judge_slos(parse_slos(info.slos), part.sound, info.scoring)
    lost = lost_workers(records, info)
    failed = sum(record.failed for record in measured)
    if search is None:
        verdict = conclude(
            info.rules,
            slos,
            success=len(good),
            failed=failed,
            client_bound=validity.verdict == "client-bound",
            lost=lost,
            other_failures=info.other_failures,
            unwritten=info.unwritten,
            cause="" if good or not measured else cause_and_cure(measured, info),
        )
    else:
        verdict = conclude_search(search, info.rules, lost=lost, unwritten=info.unwritten)
    audio_s = sum(record.audio_s for record in good)
    told = all(record.known_tokens is not None for record in good)
    tokens = sum(record.known_tokens or 0 for record in good) if told else None
    chunks = sum(record.chunks for record in good)
    length = [record for record in good if record.finish_reason == "length"]
    limit = {each.name: each.max_tokens for each in info.user_classes}
    truncated = sum(_at_limit(record, limit.get(record.user_class, info.max_tokens)) for record in length)
    pairs, scoring = [(whole.reference, whole.text) for whole in wholes(figured, info.scoring)], info.scoring
    accuracy = measure(pairs, scoring)

    def per_second(amount: float | None) -> float | None:
        return None if amount is None or wall_s <= 0 else amount / wall_s

    def total(name: str) -> int | None:
        counts = [count for record in good if (count := getattr(record, name)) is not None]
        return sum(counts) if counts else None

    return Summary(
        requests=Requests(
            total=len(measured),
            success=len(good),
            fail=failed,
            unfinished=sum(record.unfinished for record in measured),
            truncated=truncated,
            out_of_room=len(length) - truncated,
            by_outcome=dict(sorted(Counter(record.outcome for record in measured).items())),
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
        goodput=_goodput(part, limits, told, per_second),
        error_rate=error_rate(part.sound),
        ttft=figures_of("ttft", figured),
        itl=figures_of("itl", figured),
        tpot=figures_of("tpot", figured),
        e2el=figures_of("e2el", figured),
        rtf=figures_of("rtf", figured),
        ttft_due=figures_of("ttft_due", figured),
        e2el_due=figures_of("e2el_due", figured),
        # How late a request was sent is known of a failure too.
        lag=figures_of("lag", part.sound),
        wer=accuracy.wer,
        cer=accuracy.cer,
        references=accuracy.references,
        by_duration=_by_duration(figured, info.scoring),
        by_user_class=_by_user_class(part.sound, info),
        by_replica=_by_replica(part.sound),
        rate=rate_for(info.language),
        normalizer=info.normalizer,
        normalizer_variants=variants((reference for reference, _ in pairs), scoring),
        looping=sum(loops(*pair, scoring) for pair in pairs),
        text_formats=dict(Counter(record.text_format for record in good if record.text_format != "raw")),
        ttft_text=figures_of("ttft_text", figured),
        cache_ratio=None if info.unique == "dither" else cache_ratio((one for one in records if one.ok), figured),
        connect=figures_of("connect", part.sound),
        ttfs=figures_of("ttfs", figured),
        done_latency=figures_of("done_latency", figured),
        rtf_live=figures_of("rtf_live", figured),
        partial_lag=figures_of("partial_lag", figured),
        backlog=figures_of("backlog", figured),
        revised=figures_of("revised", figured),
        setup=figures_of("setup", figured),
        send_lag=figures_of("send_lag", figured),
        dialects=dict(Counter(record.dialect for record in good if isinstance(record, LiveRecord))),
        sent_again=sum(record.retry_of is not None for record in measured),
        coverage=_all_coverage([record for record in measured if record.retry_of is None], info),
        open_loop=_open_loop(info.workers),
        connections=_connections(measured, info.workers),
        validity=validity,
        left_out=part.left,
        steadiness=judge_steadiness(records, info, part),
        slo=slos,
        passed=verdict.met == verdict.slos and verdict.proven if slos else None,
        not_passed=[reason.text for reason in verdict.reasons if reason.kind in UNPROVEN] if slos else [],
        lost_workers=sorted(lost),
        refused=sum(each.count for each in info.refused),
        metadata=info.metadata,
        verdict=verdict,
    )


def error_rate(records: Collection[Record]) -> float | None:
    """The share of failures among successes and failures; None without either."""
    judged = [record.failed for record in records if not record.unfinished]
    return sum(judged) / len(judged) if judged else None


def _goodput(
    part: Measured, limits: Goodput | None, told: bool, per_second: Callable[[float], float | None]
) -> float | None:
    if limits is None or ("tpot" in limits.limits and not told):
        return None
    met = sum(map(limits.meets, part.sound))
    # Of requests that are excluded, as many are taken to have met the limits as of the others.
    return per_second(met * len(part.counted) / len(part.sound) if part.sound else 0.0)


def _open_loop(workers: list[WorkerInfo]) -> OpenLoop | None:
    counted = [worker.arrivals for worker in workers if worker.arrivals is not None and worker.arrivals.seconds > 0]
    if not counted:
        return None
    longest = max(counted, key=lambda counts: counts.seconds)
    chance = CHANCE_Z * longest.deviation
    counts = (
        longest.expected,
        max(longest.expected - chance, 0.0),
        longest.expected + chance,
        longest.due,
        sum(worker.started for worker in workers),
    )
    return OpenLoop(*(count / longest.seconds for count in counts))


def _wall_s(records: list[Record], info: RunInfo) -> float:
    """From the first request to the last record; for a run that was killed, to the last end that its records know;
    where the last part of a run is left out, to the last request that counts.
    """
    starts = [record.started_at for record in records]
    if info.trim_end and starts:
        return max(starts) - min(starts)
    ends = [worker.ended_at + worker.master_offset_s for worker in info.workers if worker.ended_at is not None]
    ends += [start + (record.stream_end or record.e2el or 0.0) for start, record in zip(starts, records, strict=True)]
    return max(ends) - min(starts) if records else 0.0


def _at_limit(record: Record, max_tokens: int | None) -> bool:
    return max_tokens is not None and (record.known_tokens or 0) >= max_tokens


def _by_user_class(measured: list[Record], info: RunInfo) -> list[ByUserClass]:
    rows = []
    for user_class in info.user_classes:
        own = [record for record in measured if record.user_class == user_class.name]
        good = [record for record in own if record.ok]
        rows.append(
            ByUserClass(
                name=user_class.name,
                n=len(good),
                fail=sum(record.failed for record in own),
                **_of_part(good, measure(spoken(good, info.scoring), info.scoring), "ttft", "itl", "e2el", "rtf"),
            )
        )
    return rows


def _of_part(good: list[Record], accuracy: Accuracy, *metrics: str) -> dict[str, Any]:
    """Figures and error rates of a part of a run."""
    return {name: figures_of(name, good) for name in metrics} | {"wer": accuracy.wer, "cer": accuracy.cer}


def _by_replica(measured: list[Record]) -> list[ByReplica]:
    by_address: dict[str, list[Record]] = {}
    for record in measured:
        if record.replica:
            by_address.setdefault(record.replica, []).append(record)
    rows = []
    for address, own in sorted(by_address.items()) if len(by_address) > 1 else ():
        good = [record for record in own if record.ok]
        rows.append(
            ByReplica(
                address=address,
                share=len(own) / len(measured),
                n=len(good),
                fail=sum(record.failed for record in own),
                **{name: figures_of(name, good) for name in ("ttft", "e2el", "rtf")},
            )
        )
    return rows


def _all_coverage(measured: list[Record], info: RunInfo) -> Coverage:
    """Of several classes, each over its own clips, the sums: each sends its data as often as its users come to it. With
    --mix, clips are sent unevenly by intent, and none is too many or too few."""
    parts = [
        _coverage([record for record in measured if record.user_class == each.name], each.data_clips)
        for each in info.user_classes
    ] or [_coverage(measured, info.data_clips)]
    clips, sent, repeated, left_out = (
        sum(getattr(part, name) for part in parts) for name in ("clips", "sent", "repeated", "left_out")
    )
    passes = len(measured) / clips
    return Coverage(clips, sent, passes, 0, 0) if info.mix else Coverage(clips, sent, passes, repeated, left_out)


def _coverage(records: list[Record], clips: int) -> Coverage:
    counts = Counter(record.clip for record in records)
    owed, more = divmod(len(records), clips)
    most = owed + bool(more)
    short = sum(owed - count for count in counts.values() if count < owed)
    return Coverage(
        clips=clips,
        sent=len(counts),
        passes=len(records) / clips,
        repeated=sum(count - most for count in counts.values() if count > most),
        left_out=short + owed * (clips - len(counts)),
    )


def _connections(measured: list[Record], workers: list[WorkerInfo]) -> Connections:
    opened = sum(worker.connections for worker in workers)
    return Connections(
        opened=opened,
        connect_mean=sum(worker.connecting_s for worker in workers) / opened if opened else None,
        connect_max=max(worker.connecting_max_s for worker in workers) if opened else None,
        dropped=sum(worker.connections_dropped for worker in workers),
        retried=sum(record.retries > 0 for record in measured),
    )


def _by_duration(good: list[Record], scoring: Scoring) -> list[ByDuration]:
    """Latencies by the length of clips, and error rates by that of recordings, which are longer where clips are parts
    of them."""
    rows, recordings = [], list(wholes(good, scoring))
    for low, high in pairwise(LENGTHS):
        inside = [record for record in good if low <= record.audio_s < high]
        pairs = [(whole.reference, whole.text) for whole in recordings if low <= whole.audio_s < high]
        if inside or pairs:
            rows.append(
                ByDuration(
                    from_s=low,
                    to_s=None if high == float("inf") else high,
                    n=len(inside),
                    **_of_part(inside, measure(pairs, scoring), "ttft", "e2el", "rtf"),
                )
            )
    return rows


class Finished(NamedTuple):
    """A run of which the files are there: its records' times are the master's."""

    info: RunInfo
    records: list[Record]
    summary: Summary
    search: Capacity | None = None
    """Of a search for capacity."""
    unreported: Sequence[bytes] = ()
    """The lines of those records that are in workers' own files and not in records.jsonl."""


def read_finished(folder: Path) -> Finished:
    """Read a run's folder, and make its summary anew. Raises InputError."""
    info, kept = read_run(folder), Counter[tuple[int | None, str]]()
    unreported: dict[int, list[bytes]] = {}
    records = list(map(_compact, read_records(folder, kept, unreported)))
    for worker in info.workers:
        worker.from_file += len(unreported.get(worker.worker, ()))
    # What a worker's own file holds was counted before, where it reached the master.
    known = Counter({(each.worker, each.reason): each.count for each in info.refused})
    info.refused = [Refused(worker, why, count) for (worker, why), count in sorted((known | kept).items(), key=str)]
    records = on_master_clock(records, info.workers)
    search = read_capacity(folder) if (folder / CAPACITY).exists() else None
    lines = [line for own in unreported.values() for line in own]
    return Finished(info, records, _summarise(records, info, search), search, lines)


def _compact(record: Record) -> Record:
    """The record in a third of the memory: gaps as numbers side by side, and what many have in common once."""
    record.itl = array("d", record.itl)  # type: ignore[assignment]
    record.clip, record.reference = sys.intern(record.clip), sys.intern(record.reference)
    record.text, record.outcome = sys.intern(record.text), sys.intern(record.outcome)
    record.user_class = sys.intern(record.user_class)
    return record


def write_summary(folder: Path, finished: Finished) -> None:
    """Write summary.json as a whole or not at all. Records that it counts and that were only in workers' files go into
    records.jsonl before, unless a test still writes to that. Raises OSError."""
    try:
        if finished.unreported and append_lines(folder / RECORDS, finished.unreported):
            write_run(folder, finished.info)
    finally:  # a disk that is full for them may have room for it
        write_atomically(folder / SUMMARY, encode_json(finished.summary))


class _Concluded(msgspec.Struct):
    """What of a summary.json tells how the run ended."""

    verdict: Verdict | None = None


def read_verdict(folder: Path) -> Verdict | None:
    """The verdict in a run's summary.json; None where there is none."""
    try:
        return read_json(folder / SUMMARY, _Concluded, "", "a run").verdict
    except InputError:
        return None


def summarise_folder(folder: Path) -> Summary:
    """Make summary.json of a run's folder anew, and return what it holds. Raises InputError."""
    finished = read_finished(folder)
    write_summary(folder, finished)
    return finished.summary
