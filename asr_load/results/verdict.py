"""Decide whether a run's figures describe the server, or whether the load generator distorted them."""

from __future__ import annotations

import errno
import math
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec
import numpy as np

from asr_load.results.accuracy import common_preface, left_envelope, reference_pairs
from asr_load.results.record_file import RECORDS
from asr_load.results.runfile import PUNCTUAL_S, ClientHealth, RunInfo, WorkerInfo
from asr_load.results.server_view import ServerView
from asr_load.results.sound import CPU_VALID, Measured
from asr_load.results.steady import Steadiness
from asr_load.shipped import command
from asr_load.stream.cause import Cause
from asr_load.stream.record import RealtimeRecord, Record
from asr_load.text import count_of, shorten

LAG_VALID_S, LAG_BOUND_S = 0.010, 0.050
"""Limits for the p99 of the event loop's lag, which adds to latencies. Below the first limit, the error is small
compared with any TTFT that a person notices; above the second, the client was the bottleneck."""

CPU_BOUND = 0.95
"""Share of a core above which the client was the bottleneck."""

CPU_OWN = 0.50
"""Share of a core below which a late client was not delayed by its own work."""

PACKET_LATE_S = 0.020
"""How late packets of speech may be sent: as long as a packet of telephony."""

LATE_VALID, LATE_BOUND = 0.01, 0.10
"""Limits for the share of an open loop's requests that are sent late."""


class Client(msgspec.Struct):
    """A process that sent load. Times are in seconds, CPU is a share of one core."""

    worker: int
    host: str
    loop_lag_p99: float
    loop_lag_max: float
    cpu_mean: float
    cpu_max: float
    gc_pause_max: float
    clock_offset_s: float
    """Add this to the process's times to get the master's: an estimate, wrong by up to `clock_error_s` (None:
    unknown)."""
    clock_error_s: float | None


OF_HEALTH = ("loop_lag_p99", "loop_lag_max", "cpu_mean", "cpu_max", "gc_pause_max")
"""Fields that a Client copies from its process's health."""


class Validity(msgspec.Struct):
    """The verdict on a run's figures. `verdict` is valid, suspect or client-bound; `reasons` says why it is not valid;
    `client` judges only the load generator. Lags and CPU are those of the worst worker."""

    verdict: str
    client: str
    """healthy, doubtful, too slow, or not judged (no request succeeded, or nothing was measured)."""
    reasons: list[str]
    readers: list[str]
    """Readers that the workers used: compiled, python."""
    loop_lag: dict[str, float]
    stamp_lag: dict[str, float]
    """How late responses were read: the same as the loop lag, unless a separate thread reads."""
    cpu: dict[str, float]
    clients: list[Client]
    more_workers: int
    """How many more workers would make a client-bound run valid, by CPU; 0 if the run is not client-bound, or if
    something else on the machine held it up."""
    sound: float | None = None
    """Share of the test's seconds, over all workers, in which the client was not late; None if this was not
    recorded."""


class Severity(IntEnum):
    """What a doubt makes of a run's figures, the worst last."""

    NOTE = 0
    """The figures are valid."""
    SUSPECT = 1
    CLIENT_BOUND = 2


class Doubt(NamedTuple):
    """A doubt about a run's figures, and its text for people, with the cure."""

    severity: Severity
    text: str


VERDICT = {Severity.NOTE: "valid", Severity.SUSPECT: "suspect", Severity.CLIENT_BOUND: "client-bound"}
"""`Validity.verdict` by the worst doubt."""

CLIENT = {Severity.NOTE: "healthy", Severity.SUSPECT: "doubtful", Severity.CLIENT_BOUND: "too slow"}
"""`Validity.client` by the worst doubt about the clients."""


def _worst(doubts: Iterable[Doubt]) -> Severity:
    return max((doubt.severity for doubt in doubts), default=Severity.NOTE)


CACHED, CACHE_BLOCK = 0.5, 16
"""A prompt's audio came from the cache if more than CACHED of the prompt's tokens were cached, and more than
CACHE_BLOCK tokens beyond the prefix that all prompts share. Caches may hold tokens in blocks (vLLM: 16)."""

OLDER_S = 60.0
"""How much older than its run a record may look, because the machines' clocks differ."""

REFUSED_SHARE = 0.01
"""Share of realtime sessions that a server may refuse before the verdict reports it."""

AT_ONCE_S, MANY_CHUNKS, LOST = 0.001, 4, 0.01
"""Chunks within AT_ONCE_S count as one piece. A response with MANY_CHUNKS chunks per piece on average was not streamed,
because no model generates tokens that fast. A network that loses packets also causes a few such responses (LOST)."""

STRETCH_S = 4.0
"""Most seconds of audio that an engine decodes at a time: SGLang takes two. A buffer of 4 kB holds about 16 chunks of
250 bytes, or six seconds of speech."""


def judge(run: Measured, info: RunInfo, steady: Steadiness, server: Sequence[ServerView] = ()) -> Validity:
    """Judge a run by the health of its clients, by its records, by its steadiness, and by what the server counted.
    Times are the master's."""
    validity, of_clients = _judge_health(info.workers, run)
    if any(record.ok for record in run.counted):
        of_clients += [*_calibration(run.records, info.workers), *_punctuality(info.workers, run)]
        of_clients += [*_wants(run.counted), *_late_packets(run.sound)]
        validity.client = CLIENT[_worst(of_clients)]
    else:
        # Without a success, the client had no figure to distort.
        validity.client = "not judged"
        of_clients = [Doubt(Severity.SUSPECT, cause_and_cure(run.counted, info))] if run.counted else []
        of_clients += _wants(run.counted)
    others = [*_missing(run, info), *_doubts(run, info), *_in_pieces(run, info)]
    others += [*_unsent(info.workers), *_mixed_readers(info.workers), *_other_clients(run.records, server)]
    if steady.verdict == "rising":
        grew = f"latency rose by {steady.growth_s or 0:.2f} s over the run"
        others.append(f"{grew}: the load or a queue grew, so these figures do not describe a steady state")
    if run.outage:
        others.append(f"{run.outage.line} ({run.outage.share:.0%} of the run)")
    doubts = of_clients + [Doubt(Severity.SUSPECT, text) for text in others]
    if run.why_excluded:
        doubts.append(Doubt(Severity.NOTE, run.why_excluded))
    if info.insecure:
        doubts.append(Doubt(Severity.NOTE, "the server's certificate was not verified (--insecure)"))
    validity.verdict, validity.reasons = VERDICT[_worst(doubts)], [doubt.text for doubt in doubts]
    return validity


def _mixed_readers(workers: list[WorkerInfo]) -> Iterator[str]:
    """A reason if the workers that took part used different readers."""
    by_reader: dict[str, list[str]] = {}
    for worker in workers:
        if worker.health is not None:
            by_reader.setdefault(worker.reader, []).append(str(worker.worker))
    if len(by_reader) > 1:
        readers = "; ".join(f"{reader}: worker {', '.join(numbers)}" for reader, numbers in sorted(by_reader.items()))
        yield f"workers read responses with different readers ({readers}): start all with the same --reader"


def _other_clients(records: Sequence[Record], server: Sequence[ServerView]) -> Iterator[str]:
    """A reason if the server counted more requests than this test sent."""
    counted = sum(view.requests for view in server if view.requests is not None)
    # A request that found a kept connection dead was sent twice, and may have been counted twice.
    most = max((view.sent for view in server), default=0) + sum(record.retries for record in records)
    if counted > most:
        yield f"the server counted {counted:,} requests, but this test sent {most:,}: something else used it"


def _wants(records: list[Record]) -> list[Doubt]:
    """Requests that failed because a resource ran out on this machine."""
    wants = Counter(record.error for record in records if record.outcome == "client")
    return [Doubt(Severity.CLIENT_BOUND, f"{count}× {why}") for why, count in wants.most_common(3)]


def _late_packets(records: list[Record]) -> Iterator[Doubt]:
    """Speech that was sent behind its pace. Time in which the socket took no data is not the client's fault."""
    late = [record.send_lag["p99"] for record in records if isinstance(record, RealtimeRecord) and record.send_lag]
    p99 = float(np.percentile(late, 99)) if late else 0.0
    if p99 > PACKET_LATE_S:
        text = f"packets were sent {p99 * 1e3:.0f} ms late at p99 (limit {PACKET_LATE_S * 1e3:.0f} ms)"
        yield Doubt(Severity.CLIENT_BOUND, text)


def _calibration(records: Sequence[Record], workers: list[WorkerInfo]) -> Iterator[Doubt]:
    """Machines on which the streams' load in the busiest second exceeds what the machine's calibration allows."""
    for host in {worker.host: None for worker in workers if worker.calibration is not None}:
        here = {worker.worker: worker for worker in workers if worker.host == host}
        calibration = next(iter(here.values())).calibration
        known = None if calibration is None else calibration.streams(len(here))
        if calibration is None or known is None:
            continue
        streams, at_least = known
        load = peak_chunks_per_s([record for record in records if record.worker in here])
        rate = calibration.chunks_per_s
        if load > streams * rate:
            text = (
                f"{count_of(len(here), 'worker')} on {host} carried the load of {load / rate:.0f} streams of {rate:g}"
                f" chunks/s; its calibration allows {'at least ' if at_least else ''}{streams} ({command('calibrate')})"
            )
            yield Doubt(Severity.SUSPECT if at_least else Severity.CLIENT_BOUND, text)


def peak_chunks_per_s(records: list[Record]) -> float:
    """Number of chunks received in the busiest second. The records' times must be on one clock."""
    times = [
        record.started_at + record.ttft + np.cumsum([0.0, *record.itl]) for record in records if record.ttft is not None
    ]
    if not times:
        return 0.0
    seconds = np.concatenate(times)
    return float(np.bincount((seconds - seconds.min()).astype(int)).max())


def judge_clients(workers: list[WorkerInfo]) -> Validity:
    """Judge only by the health of the processes, which works while the test runs; the worst process decides."""
    return _judge_health(workers, None)[0]


def _judge_health(workers: list[WorkerInfo], run: Measured | None) -> tuple[Validity, list[Doubt]]:
    """The verdict by the health of the processes, and its doubts. `run`: the requests of a finished test. If late
    seconds are excluded, this judges the others."""
    watched = [(worker, worker.health) for worker in workers if worker.health is not None]
    doubts = [Doubt(Severity.CLIENT_BOUND, run.why_bound)] if run and run.why_bound else []
    doubts += _health(workers, watched, run)
    bound = _worst(doubts) is Severity.CLIENT_BOUND

    def worst(figure: str) -> float:
        return max((getattr(client, figure) for _, client in watched), default=0.0)

    busiest = worst("cpu_mean")
    more = _more_workers([client for _, client in watched]) if bound and busiest > CPU_OWN else 0
    if bound:
        who = "the busiest worker" if len(workers) > 1 else "the client"
        took = f"{who} used {busiest:.0%} of a core, so more workers would not help"
        advice = _advice(more, workers) if more else f"{took}: another program is probably using that machine's CPU"
        doubts.append(Doubt(Severity.CLIENT_BOUND, advice))
    doubts.sort(key=lambda doubt: -doubt.severity)
    validity = Validity(
        verdict=VERDICT[_worst(doubts)],
        client=CLIENT[_worst(doubts)] if watched else "not judged",
        reasons=[doubt.text for doubt in doubts],
        readers=sorted({worker.reader for worker, _ in watched}),
        stamp_lag={"p99": worst("stamp_lag_p99"), "max": worst("stamp_lag_max")},
        loop_lag={"p50": worst("loop_lag_p50"), "p99": worst("loop_lag_p99"), "max": worst("loop_lag_max")},
        cpu={"mean": busiest, "max": worst("cpu_max")},
        clients=[
            Client(
                worker=worker.worker,
                host=worker.host,
                **{name: getattr(client, name) for name in OF_HEALTH},
                clock_offset_s=worker.master_offset_s,
                clock_error_s=worker.master_offset_error_s,
            )
            for worker, client in watched
        ],
        more_workers=more,
        sound=run.share if run else None,
    )
    return validity, doubts


def _health(
    workers: list[WorkerInfo], watched: list[tuple[WorkerInfo, ClientHealth]], run: Measured | None
) -> Iterator[Doubt]:
    """Yield the processes and machines that were late, or near the limit of their processor."""

    def over(value: float, limit: float, text: str) -> Doubt:
        return Doubt(Severity.CLIENT_BOUND if value > limit else Severity.SUSPECT, text)

    for worker, client in watched:
        who = f"worker {worker.worker}: " if len(workers) > 1 else ""
        loop, stamps = _lags(client, run)
        allowed = f"ms late at p99 (limit {LAG_VALID_S * 1e3:.0f} ms)"
        if loop > LAG_VALID_S:
            yield over(loop, LAG_BOUND_S, f"{who}the event loop was {loop * 1e3:.1f} {allowed}")
        if worker.reader == "compiled" and stamps > LAG_VALID_S:
            yield over(stamps, LAG_BOUND_S, f"{who}the reading thread was {stamps * 1e3:.1f} {allowed}")
        if client.cpu_mean > CPU_VALID:
            used = f"{who}the client used {client.cpu_mean:.0%} of a core on average (limit {CPU_VALID:.0%})"
            yield over(client.cpu_mean, CPU_BOUND, used)
    for host, cores, share in _full_machines(watched):
        all_cores = f"the {count_of(cores, 'core')} of {host}"
        yield over(share, CPU_BOUND, f"the workers used {share:.0%} of {all_cores} on average (limit {CPU_VALID:.0%})")


def _lags(client: ClientHealth, run: Measured | None) -> tuple[float, float]:
    """p99 of the lag of a client's event loop and of its reads, over the seconds that the verdict judges."""
    if run and run.why_excluded and client.late is not None:
        return client.sound_loop_lag_p99, client.sound_stamp_lag_p99
    return client.loop_lag_p99, client.stamp_lag_p99


def _full_machines(watched: list[tuple[WorkerInfo, ClientHealth]]) -> Iterator[tuple[str, int, float]]:
    """Yield the hosts whose workers used more of their cores than is valid: name, cores, share used."""
    for host, cores in {worker.host: worker.cores for worker, _ in watched}.items():
        used = sum(client.cpu_process for worker, client in watched if worker.host == host)
        if cores and used > CPU_VALID * cores:
            yield host, cores, used / cores


def _more_workers(clients: list[ClientHealth]) -> int:
    """Number of workers to add, at least one, so that each stays below the CPU limit if the work spreads evenly."""
    return max(1, math.ceil(sum(client.cpu_mean for client in clients) / CPU_VALID) - len(clients))


def _advice(more: int, workers: list[WorkerInfo]) -> str:
    # "At least": a client without spare time does not show how much more work there was.
    needed = f"{count_of(more, 'more worker')}, {len(workers) + more} in all,"
    text = f"add at least {needed} to keep each below {CPU_VALID:.0%} of a core"
    cores = sum({worker.host: worker.cores for worker in workers}.values())
    if 0 < cores < len(workers) + more:
        text += f"; they now run on {count_of(cores, 'core')}, so start them on another machine"
    return text


def _punctuality(workers: list[WorkerInfo], run: Measured) -> Iterator[Doubt]:
    """Requests that an open loop sent late although a user was free. Excluded requests do not count."""
    started, late = (sum(getattr(worker, name) for worker in workers) for name in ("started", "late"))
    if run.left.late:
        known = set(map(id, run.sound))
        excluded = [record for record in run.counted if id(record) not in known]
        # A record does not show whether a user was free. Requests that may have waited for one were counted as queued.
        queued = sum(worker.queued for worker in workers)
        behind = sum((record.lag or 0.0) - record.retry_s > PUNCTUAL_S for record in excluded)
        late -= min(late, max(behind - queued, 0))
        started = max(started - len(excluded), 0)
    if late > LATE_VALID * started:
        text = f"{late} of {count_of(started, 'request')} went out more than 10 ms late although a user was free"
        yield Doubt(Severity.CLIENT_BOUND if late > LATE_BOUND * started else Severity.SUSPECT, text)


def _unsent(workers: list[WorkerInfo]) -> Iterator[str]:
    """Reasons for the open loop's requests that found no free user."""
    started, queued, unsent = (
        sum(getattr(worker, name) for worker in workers) for name in ("started", "queued", "unsent")
    )
    if queued > LATE_VALID * started:
        text = f"{queued} of {count_of(started, 'request')} fell due before a user was free"
        yield f"{text}: -u limits how many are in flight, and the server could not keep up with the rate"
    if unsent:
        yield f"{count_of(unsent, 'more request')} fell due before the end of the test, but no user was free"


def _cached(good: list[Record]) -> bool:
    """Whether prompts came from the server's cache, apart from the prefix that all prompts share."""
    known = [
        (record.cached_tokens, record.prompt_tokens) for record in good if record.cached_tokens and record.prompt_tokens
    ]
    shared = min((cached for cached, _ in known), default=0)
    return any(
        cached > CACHED * prompt and (cached > shared + CACHE_BLOCK or prompt - cached <= CACHE_BLOCK)
        for cached, prompt in known
    )


FEWER = "the server is overloaded: lower -u or the rate"

CAUSES: dict[str, str] = {
    Cause.REFUSED: "is the server running there? (--ready-timeout waits for it)",
    Cause.UNREACHABLE: "check the address in --host and any firewall, or wait longer (--connect-timeout)",
    Cause.NAME: "check the spelling of --host, and that this machine can resolve the name",
    Cause.TLS: "check the scheme, the port and the certificate of --host (see TLS in docs/troubleshooting.md)",
    Cause.PLAIN: "the server expects TLS: use https:// in --host",
    Cause.PROXY: "check the proxy's address and user (--proxy), or bypass it with NO_PROXY",
    Cause.BUSY: FEWER,
    Cause.CONTEXT: "the clip and --max-tokens exceed the model's context: prepare shorter clips (--max-duration,"
    " --chunk-long), lower --max-tokens, or start the engine with a longer context",
}
"""Cures for failed requests, by cause."""

CURES = {
    outcome: cure
    for outcomes, cure in (
        ("http_401 ws_401", "set OPENAI_API_KEY or --api-key"),
        ("http_403", "set OPENAI_API_KEY or --api-key to a key with permission for this request"),
        ("http_404", "check the port and path of --host, --api, and that the server has --model"),
        ("http_405 http_501", "this address does not accept such requests: check the port in --host, and --api"),
        (
            "http_413",
            "configure the server, or the proxy before it, to accept larger bodies (nginx: client_max_body_size)",
        ),
        ("http_400 http_422", "if the server does not accept a field, omit it (--omit)"),
        ("http_429", FEWER),
        (
            "http_503 ws_503",
            "the server is not ready (--ready-timeout waits for it) or overloaded (lower -u or the rate)",
        ),
        ("http_502 http_504", "a proxy or gateway got no response from the server behind it: is it running?"),
        ("connect", CAUSES[Cause.REFUSED]),
        ("stalled", "check in the server's log that it is working, or wait longer (--stall-timeout)"),
        ("timeout", "check in the server's log that it is working, or wait longer (--total-timeout)"),
        ("ws_403 ws_404", "check that the model supports realtime and that the server has `websockets` installed"),
        ("rejected", "see docs/realtime.md for what each engine accepts"),
        ("no_final", "check the server's log; docs/realtime.md lists known problems of the engines"),
        ("empty", "check that --model accepts audio and that --prompt asks for a transcript"),
        ("protocol", "check that the server is OpenAI-compatible and that --api is the right API"),
        ("client", "the failure is on this machine, not on the server"),
    )
    for outcome in outcomes.split()
}
"""Cures by outcome, for failures without a known cause."""

SAYS_MORE = ("http_503", "ws_503")
"""Outcomes whose cure says more than that of their cause."""


def cause_and_cure(records: list[Record], info: RunInfo) -> str:
    """Why no request succeeded, by the most frequent failure, and what to do about it."""
    failures = Counter((record.outcome, record.error or "", record.cause) for record in records if record.failed)
    if not failures:
        return "no request finished: run the test for longer (-t), or let requests finish (--stop-timeout)"
    (outcome, error, cause), count = failures.most_common(1)[0]
    return f"no request succeeded: {count}× {what_failed(outcome, error, info.host, cause)}"


def what_failed(outcome: str, error: str, host: str, cause: str = "") -> str:
    """Describe a failure and its cure, by its cause or, if that is unknown, by its outcome."""
    if outcome != "connect":
        failure = f"{outcome.removeprefix('http_')}: {error}"
    elif cause == Cause.REFUSED or error == REFUSED_TEXT:
        failure = f"{error[:1].lower()}{error[1:]} by {host}"
    else:
        failure = f"{host}: {error}"
    known = cause in CAUSES and outcome not in SAYS_MORE
    cure = CAUSES[cause] if known else CURES.get(outcome, "check the server's log")
    return f"{failure.rstrip('.?! ')}: {cure}"


REFUSED_TEXT = os.strerror(errno.ECONNREFUSED)
"""Error text of records of older versions, which have no cause."""


def _missing(run: Measured, info: RunInfo) -> Iterator[str]:
    if not info.ended:
        yield "the run did not finish: its process was killed"
    for refused in info.refused:
        if refused.worker is None:
            which = f"skipped {count_of(refused.count, 'line')} of {RECORDS}"
        else:
            which = f"refused {count_of(refused.count, 'record')} of worker {refused.worker}"
        yield f"{which}: {refused.reason}"
    yield from run.lost.values()


def _pieces(record: Record) -> int:
    """Number of pieces in which a response arrived: chunks within a millisecond are one."""
    return 1 + int(np.count_nonzero(np.asarray(record.itl) >= AT_ONCE_S))


def _decodes_stretches(answers: list[Record]) -> bool:
    """Whether an engine that decodes a few seconds of audio at a time may explain the responses of a transcription API.
    SGLang does this with Qwen3-ASR, so there are about as many pieces as stretches of audio. A proxy holds back whole
    responses, or as much as fits its buffer of 4 kB or more, which is far more speech."""
    return sum(record.audio_s for record in answers) <= STRETCH_S * sum(map(_pieces, answers))


def _in_pieces(run: Measured, info: RunInfo) -> Iterator[str]:
    """A reason if something between the engine and the client holds responses back. Only responses that were read on
    time count, because a late client reads separate chunks as one piece."""
    on_time = {
        worker.worker
        for worker in info.workers
        if worker.health is not None and _lags(worker.health, run)[1] <= LAG_VALID_S
    }
    chunked: dict[str, list[Record]] = {}
    for record in run.good:
        if record.chunks >= MANY_CHUNKS and record.worker in on_time and not isinstance(record, RealtimeRecord):
            chunked.setdefault(record.user_class, []).append(record)
    apis = {each.name: each.api for each in info.user_classes}
    judged = [
        record
        for name, answers in chunked.items()
        if apis.get(name, info.api) != "transcriptions" or not _decodes_stretches(answers)
        for record in answers
    ]
    held = sum(record.chunks >= MANY_CHUNKS * _pieces(record) for record in judged)
    if held > LOST * len(judged):
        arrived = f"{held} of {count_of(len(judged), 'response')} arrived in one or a few pieces, not as a stream"
        cure = "a proxy may buffer them (nginx: set proxy_buffering off)"
        yield f"{arrived}: {cure}, so TTFT and ITL are not the engine's"


FIRST_TIMES, FIRST_S, FIRST_OF = 10, 1.0, 10
"""The first request was slow if its TTFT is FIRST_TIMES the median and FIRST_S above it, in at least FIRST_OF
requests."""


def _slow_first(good: list[Record]) -> Iterator[str]:
    """A reason if the engine seems to compile at its first request."""
    if len(good) < FIRST_OF:
        return
    first = min(good, key=lambda record: record.started_at).ttft or 0.0
    median = statistics.median(record.ttft or 0.0 for record in good)
    if first >= max(FIRST_TIMES * median, median + FIRST_S):
        times = f", {first / median:.0f} times the median" if median else ""
        yield f"the first request took {first:.1f} s to its first token{times}: exclude it with --warmup-requests 10"


def _refusals(records: list[Record]) -> Iterator[str]:
    """A reason if the server refused realtime sessions. A user pauses after a refusal, so fewer sessions than requested
    were open at once."""
    sessions = [record for record in records if isinstance(record, RealtimeRecord)]
    refused = [record for record in sessions if record.outcome == "rejected" or record.outcome.startswith("ws_")]
    if len(refused) > REFUSED_SHARE * len(sessions):
        why, _ = Counter(shorten(record.error or record.outcome, 80) for record in refused).most_common(1)[0]
        yield (
            f"the server refused {len(refused)} of {count_of(len(sessions), 'realtime session')} ({why}): the figures"
            " describe only those that it accepted; lower -u, or raise the server's limit"
        )


def _sent_before(info: RunInfo) -> Iterator[str]:
    """A reason if the server's caches may hold the run's clips from earlier runs."""
    if info.sent_before:
        runs = f"an earlier test ({info.sent_before[-1]})"
        if len(info.sent_before) > 1:
            runs = f"{len(info.sent_before)} earlier tests (the last: {info.sent_before[-1]})"
        yield (
            f"the same clips were sent to this server before, in {runs}: its caches may have answered; restart the"
            " server, or prepare the clips as WAV and remove --unique none"
        )


def _repeated(records: list[Record], info: RunInfo) -> Iterator[str]:
    """A reason for each value of --unique with which clips were sent again unchanged."""
    sets = {each.name: (each.unique, each.data_sha256) for each in info.user_classes}
    whole = info.unique, info.data_sha256
    sent = Counter((*sets.get(record.user_class, whole), record.clip) for record in records)
    repeats = Counter[str]()
    for (unique, *_), count in sent.items():
        repeats[unique] += count - 1
    for unique, count in sorted(repeats.items()):
        if count and unique != "dither":
            yield f"{count_of(count, 'request')} repeated a clip's bytes (--unique {unique}): caches may have answered"


def _doubts(run: Measured, info: RunInfo) -> Iterator[str]:
    records = run.counted
    good = [record for record in records if record.ok]
    if good:
        yield from _refusals(records)
    if not records:
        yield "no request was sent"
    paces = {how.get("pace", 1.0) for how in (info.realtime, *(each.realtime for each in info.user_classes))} - {1.0}
    for pace in sorted(paces):
        how = f"at {pace:g} times its speed" if pace else "as fast as the socket accepted it"
        yield f"not realtime: speech was sent {how} (--pace)"
    if older := sum(record.started_at < info.began_at - OLDER_S for record in records):
        yield f"{count_of(older, 'record')} began before the run: records of another run are mixed in"
    # A realtime engine reports usage since its last report, and its tokens, if any, are of audio.
    one_shot = [record for record in good if not isinstance(record, RealtimeRecord)]
    if 0 < len(one_shot) < len(good):
        yield "these figures mix realtime sessions and uploads; see the table by user class"
    if guessed := sum(record.output_tokens_source == "chunks" for record in one_shot):
        yield f"{count_of(guessed, 'response')} came without usage: token counts are unavailable"
    if whole := sum(not record.streamed for record in good):
        yield f"{count_of(whole, 'response')} came without streaming, so TTFT equals latency"
    yield from _slow_first(run.good)
    yield from _around_transcripts(good, info)
    if _cached(good):
        cached, prompts = (
            sum(getattr(record, name) or 0 for record in good) for name in ("cached_tokens", "prompt_tokens")
        )
        yield f"{cached:,} of {prompts:,} prompt tokens came from the server's cache"
    yield from _sent_before(info)
    yield from _repeated(records, info)


def _around_transcripts(good: list[Record], info: RunInfo) -> Iterator[str]:
    """A reason if transcripts contain text other than the speech."""
    if envelope := left_envelope(good):
        count, name = envelope
        yield f"the envelope of {name} is still around {count_of(count, 'transcript')}: use --text-format {name}"
    elif preface := common_preface(reference_pairs(good, info.scoring), info.scoring):
        count, words = preface[0], shorten(preface[1], 80)
        yield (
            f"{count} transcripts begin with '{words}', and no reference does: WER counts these words as errors;"
            " ask for only the transcript (--prompt)"
        )
