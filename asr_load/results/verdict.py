"""Whether a run's figures are the server's, or the client had a hand in them."""

from __future__ import annotations

import errno
import math
import os
import statistics
from collections import Counter
from collections.abc import Iterator

import msgspec
import numpy as np

from asr_load.results import sound
from asr_load.results.accuracy import common_preface, left_envelope, spoken
from asr_load.results.runfile import PUNCTUAL_S, ClientHealth, Refused, RunInfo, WorkerInfo
from asr_load.results.sound import CPU_VALID, Measured
from asr_load.results.steady import Outage, Steadiness, load_changes, outage, steadiness
from asr_load.shipped import command
from asr_load.stream.cause import Cause
from asr_load.stream.record import RECORDS, LiveRecord, Record
from asr_load.text import count_of, shorten

LAG_VALID_S, LAG_BOUND_S = 0.010, 0.050
"""p99 of the event loop's lag: an error that large is in the latencies. Below the first it is small beside any TTFT
that a person notices; above the second the client was the bottleneck."""

CPU_BOUND = 0.95
"""Share of a core from which on a client was the bottleneck."""

CPU_OWN = 0.50
"""Share of a core below which a client that is late was not kept by its own work."""

PACKET_LATE_S = 0.020
"""By which packets of speech may be sent late: as long as a packet of telephony."""

LATE_VALID, LATE_BOUND = 0.01, 0.10
"""Share of an open loop's requests that may be sent late."""


class Client(msgspec.Struct):
    """A process that sent load. Seconds, CPU as a share of one core."""

    worker: int
    host: str
    loop_lag_p99: float
    loop_lag_max: float
    cpu_mean: float
    cpu_max: float
    gc_pause_max: float
    clock_offset_s: float
    """Added to its times, it gives the master's: an estimate, wrong by up to `clock_error_s` (None: unknown)."""
    clock_error_s: float | None


class Validity(msgspec.Struct):
    """`verdict`: valid, suspect or client-bound; `reasons`: why it is not valid; `client`: what is known of the client
    alone. Lags and CPU: the worst worker's."""

    verdict: str
    client: str
    """healthy, doubtful, too slow, or not judged (nothing succeeded, or nothing was measured)."""
    reasons: list[str]
    readers: list[str]
    """How answers were read: compiled, python, plain."""
    loop_lag: dict[str, float]
    stamp_lag: dict[str, float]
    """How late answers were read: as late as the loop, unless a thread of its own reads."""
    cpu: dict[str, float]
    clients: list[Client]
    more_workers: int
    """How many more would make a client-bound run a valid one, by CPU; 0 for one that is not client-bound, or that was
    held up by something else on its machine."""
    sound: float | None = None
    """Share of the test's seconds, of all workers, in which the client was not late; None where that was not noted."""


def clock(client: Client) -> str:
    """What is known of a worker's clock, in ms."""
    if client.clock_error_s is None:
        return "unknown"
    # What the master adds to the worker's times, the worker's clock is behind by.
    return f"{-client.clock_offset_s * 1e3:+.1f} ± {client.clock_error_s * 1e3:.1f}"


CLIENT = {"valid": "healthy", "suspect": "doubtful", "client-bound": "too slow"}
"""What a verdict on the clients alone is called."""

CACHED, BLOCK = 0.5, 16
"""Share of a prompt's tokens that no prefix of its own has, and tokens that a cache may hold at once: beyond the first,
and beyond what all prompts share, a prompt's audio came from the cache. (vLLM's blocks are of 16 tokens.)"""

OLDER_S = 60.0
"""By which a record may seem to be older than its run: clocks of machines differ."""

REFUSED_SHARE = 0.01
"""Share of realtime sessions that a server may refuse."""

AT_ONCE_S, CHUNKS, LOST = 0.001, 4, 0.01
"""Chunks within such a time are one piece, and so many in one, on average, no stream: no model makes tokens so fast. A
network that loses packets makes a few such answers too."""

STRETCH_S = 4.0
"""Seconds of audio that an engine decodes at a time, at most: SGLang takes two. A buffer of 4 kB holds some 16 chunks
of 250 bytes, or six seconds of speech."""


def judge(records: list[Record], info: RunInfo, part: Measured | None = None) -> Validity:
    """Judge a run by the health of its clients and by what its records admit: all of them, and those that count
    (`part`, where it is known). Their times are the master's."""
    part = part or sound.measured(records, info)
    measured = part.counted
    steady = judge_steadiness(records, info, part)
    validity = judge_clients(info.workers, part)
    if any(record.ok for record in measured):
        _judge_by_calibration(records, info.workers, validity)
        _judge_punctuality(info.workers, part, validity)
        _judge_wants(measured, validity)
        _judge_packets(part.sound, validity)
        validity.client = CLIENT[validity.verdict]
    else:
        # There is nothing that the client could have bent.
        validity.verdict, validity.client = "suspect", "not judged"
        validity.reasons = [cause_and_cure(measured, info)] if measured else []
        _judge_wants(measured, validity)
    doubts = _missing(records, info) + _doubts(part, info) + _in_pieces(part, info)
    doubts += _unsent(info.workers) + _mixed_readers(info.workers)
    if steady.verdict == "rising":
        grew = f"latency rose by {steady.growth_s or 0:.2f} s over the run"
        doubts.append(f"{grew}: the load or a queue grew, so these figures are of no steady state")
    if found := _outage(part):
        doubts.append(f"{found.line} of {found.share:.0%} of the run")
    if doubts and validity.verdict == "valid":
        validity.verdict = "suspect"
    validity.reasons += doubts
    if part.why_excluded:
        validity.reasons.append(part.why_excluded)
    if info.insecure:
        validity.reasons.append("whose certificate the server has was not checked (--insecure)")
    return validity


def _mixed_readers(workers: list[WorkerInfo]) -> list[str]:
    """A line where workers that took part read answers in different ways."""
    by_reader: dict[str, list[str]] = {}
    for worker in workers:
        if worker.health is not None:
            by_reader.setdefault(worker.reader, []).append(str(worker.worker))
    if len(by_reader) < 2:
        return []
    ways = "; ".join(f"{reader}: worker {', '.join(numbers)}" for reader, numbers in sorted(by_reader.items()))
    return [f"workers read answers with different readers ({ways}): start all with the same --reader"]


def judge_steadiness(records: list[Record], info: RunInfo, part: Measured | None = None) -> Steadiness:
    """Whether a run was steady, where its load was and all of its records are here; the arguments are those of
    `judge`."""
    part = part or sound.measured(records, info)
    if lost := lost_workers(records, info):
        return Steadiness("not judged", None, f"records of worker {', '.join(map(str, sorted(lost)))} are missing")
    if found := _outage(part):
        return Steadiness("interrupted", None, found.line)
    if not info.loop and load_changes(info.users, part.counted):
        return Steadiness("not judged", None, "the number of users changed")
    if len(info.loop.get("stages", "").split(",")) > 1 or "-" in info.loop.get("stages", ""):
        return Steadiness("not judged", None, "the rate changed")
    return steadiness(part.sound)


def _outage(part: Measured) -> Outage | None:
    """The outage of a run. Successes in late seconds are some all the same; failures in them may be the client's."""
    figured = set(map(id, part.sound))
    return outage([record for record in part.counted if record.ok or id(record) in figured])


def _judge_wants(records: list[Record], validity: Validity) -> None:
    """Whether requests failed for want of something on this side."""
    wants = Counter(record.error for record in records if record.outcome == "client")
    if wants:
        validity.verdict = "client-bound"
        validity.reasons += [f"{count}× {why}" for why, count in wants.most_common(3)]


def _judge_packets(records: list[Record], validity: Validity) -> None:
    """Whether speech was sent as it is spoken. What a socket did not take is no fault of the client's."""
    late = [record.send_lag["p99"] for record in records if isinstance(record, LiveRecord) and record.send_lag]
    if late and (p99 := float(np.percentile(late, 99))) > PACKET_LATE_S:
        validity.verdict = "client-bound"
        limit = PACKET_LATE_S * 1e3
        validity.reasons.append(
            f"packets were sent {p99 * 1e3:.0f} ms after they were due at p99 (valid up to {limit:.0f})"
        )


def _judge_by_calibration(records: list[Record], workers: list[WorkerInfo], validity: Validity) -> None:
    """Hold what the streams brought in their busiest second, on each machine, against what it was found good for."""
    for host in {worker.host: None for worker in workers if worker.calibration is not None}:
        here = [worker for worker in workers if worker.host == host]
        calibration = here[0].calibration
        known = None if calibration is None else calibration.streams(len(here))
        if calibration is None or known is None:
            continue
        streams, at_least = known
        numbers = {worker.worker for worker in here}
        load = peak_chunks_per_s([record for record in records if record.worker in numbers])
        if load <= streams * calibration.chunks_per_s:
            continue
        verdict = "suspect" if at_least else "client-bound"
        if validity.verdict != "client-bound":
            validity.verdict = verdict
        each = calibration.chunks_per_s
        validity.reasons.append(
            f"as much as {load / each:.0f} streams of {each:g} chunks/s on {count_of(len(here), 'worker')} of {host}; "
            f"this machine was good for {'at least ' if at_least else ''}{streams} ({command('calibrate')})"
        )


def peak_chunks_per_s(records: list[Record]) -> float:
    """Chunks that came in the busiest second. The records' times are on one clock."""
    times = [
        record.started_at + record.ttft + np.cumsum([0.0, *record.itl]) for record in records if record.ttft is not None
    ]
    if not times:
        return 0.0
    seconds = np.concatenate(times)
    return float(np.bincount((seconds - seconds.min()).astype(int)).max())


def judge_clients(workers: list[WorkerInfo], part: Measured | None = None) -> Validity:
    """Judge by the health of the processes alone, as can be done while the test runs: as bad as the worst of them.
    `part`: the requests of a test that is over; where it excludes late seconds, the others are judged."""
    bound: list[str] = [part.why_bound] if part and part.why_bound else []
    suspect: list[str] = []
    watched = [(worker, worker.health) for worker in workers if worker.health is not None]
    for worker, client in watched:
        who = f"worker {worker.worker}: " if len(workers) > 1 else ""
        loop, stamps = _lags(client, part)
        if loop > LAG_VALID_S:
            late, allowed = loop * 1e3, LAG_VALID_S * 1e3
            text = f"{who}the event loop was late by {late:.1f} ms at p99 (valid up to {allowed:.0f})"
            (bound if loop > LAG_BOUND_S else suspect).append(text)
        if worker.reader == "compiled" and stamps > LAG_VALID_S:
            late, allowed = stamps * 1e3, LAG_VALID_S * 1e3
            text = f"{who}the thread that reads was late by {late:.1f} ms at p99 (valid up to {allowed:.0f})"
            (bound if stamps > LAG_BOUND_S else suspect).append(text)
        if client.cpu_mean > CPU_VALID:
            text = f"{who}the client used {client.cpu_mean:.0%} of its core on average (valid up to {CPU_VALID:.0%})"
            (bound if client.cpu_mean > CPU_BOUND else suspect).append(text)
    for host, cores, share in _full_machines(watched):
        of = f"the {count_of(cores, 'core')} of {host}"
        text = f"the workers used {share:.0%} of {of} on average (valid up to {CPU_VALID:.0%})"
        (bound if share > CPU_BOUND else suspect).append(text)
    busiest = max((client.cpu_mean for _, client in watched), default=0.0)
    more = _more_workers([client for _, client in watched]) if bound and busiest > CPU_OWN else 0
    if more:
        bound.append(_advice(more, workers))
    elif bound:
        took = (
            f"the busiest worker used {busiest:.0%} of a core"
            if len(workers) > 1
            else f"the client used {busiest:.0%} of a core"
        )
        bound.append(f"{took}: more workers would not help; something else takes the processor of that machine")

    def worst(figure: str) -> float:
        return max((getattr(client, figure) for _, client in watched), default=0.0)

    verdict = "client-bound" if bound else "suspect" if suspect else "valid"
    return Validity(
        verdict=verdict,
        client=CLIENT[verdict] if watched else "not judged",
        reasons=bound + suspect,
        readers=sorted({worker.reader for worker, _ in watched}),
        stamp_lag={"p99": worst("stamp_lag_p99"), "max": worst("stamp_lag_max")},
        loop_lag={"p50": worst("loop_lag_p50"), "p99": worst("loop_lag_p99"), "max": worst("loop_lag_max")},
        cpu={"mean": worst("cpu_mean"), "max": worst("cpu_max")},
        clients=[
            Client(
                worker=worker.worker,
                host=worker.host,
                loop_lag_p99=client.loop_lag_p99,
                loop_lag_max=client.loop_lag_max,
                cpu_mean=client.cpu_mean,
                cpu_max=client.cpu_max,
                gc_pause_max=client.gc_pause_max,
                clock_offset_s=worker.master_offset_s,
                clock_error_s=worker.master_offset_error_s,
            )
            for worker, client in watched
        ],
        more_workers=more,
        sound=part.share if part else None,
    )


def _lags(client: ClientHealth, part: Measured | None) -> tuple[float, float]:
    """p99 of how late a client's event loop and its reads were, over the seconds that a verdict is about."""
    if part and part.why_excluded and client.late is not None:
        return client.sound_loop_lag_p99, client.sound_stamp_lag_p99
    return client.loop_lag_p99, client.stamp_lag_p99


def _full_machines(watched: list[tuple[WorkerInfo, ClientHealth]]) -> Iterator[tuple[str, int, float]]:
    """Hosts whose workers used more of its cores than is valid: name, cores, share of them."""
    for host, cores in {worker.host: worker.cores for worker, _ in watched}.items():
        used = sum(client.cpu_process for worker, client in watched if worker.host == host)
        if cores and used > CPU_VALID * cores:
            yield host, cores, used / cores


def _more_workers(clients: list[ClientHealth]) -> int:
    """So many that each would be below the limit for CPU, were the work of all spread evenly; at least one."""
    return max(1, math.ceil(sum(client.cpu_mean for client in clients) / CPU_VALID) - len(clients))


def _advice(more: int, workers: list[WorkerInfo]) -> str:
    # At least: a client that has no time left does not show how much more there was to do.
    needed = f"{count_of(more, 'more worker')}, {len(workers) + more} in all,"
    text = f"it takes at least {needed} to keep each below {CPU_VALID:.0%}"
    cores = sum({worker.host: worker.cores for worker in workers}.values())
    if 0 < cores < len(workers) + more:
        text += f"; they run on {count_of(cores, 'core')} now, so on another machine"
    return text


def _judge_punctuality(workers: list[WorkerInfo], part: Measured, validity: Validity) -> None:
    """Whether an open loop's requests were sent when they were due, where a user was free: of those that are not
    excluded."""
    started, late = (sum(getattr(worker, name) for worker in workers) for name in ("started", "late"))
    if part.left.late:
        figured = {id(record) for record in part.sound}
        excluded = [record for record in part.counted if id(record) not in figured]
        # A record does not tell whether a user was free: those that may have waited for one were counted as queued.
        queued = sum(worker.queued for worker in workers)
        behind = sum((record.lag or 0.0) - record.retry_s > PUNCTUAL_S for record in excluded)
        late -= min(late, max(behind - queued, 0))
        started = max(started - len(excluded), 0)
    if late > LATE_VALID * started:
        validity.reasons.append(f"{late} of {started} requests were sent more than 10 ms late though a user was free")
        if late > LATE_BOUND * started:
            validity.verdict = "client-bound"
        elif validity.verdict == "valid":
            validity.verdict = "suspect"


def _unsent(workers: list[WorkerInfo]) -> list[str]:
    """What of an open loop's requests no user was free for."""
    started, queued, unsent = (
        sum(getattr(worker, name) for worker in workers) for name in ("started", "queued", "unsent")
    )
    reasons = []
    if queued > LATE_VALID * started:
        text = f"{queued} of {started} requests were due before a user was free"
        reasons.append(f"{text}: -u is the most in flight, and the server did not keep up with the rate within it")
    if unsent:
        reasons.append(f"{unsent} more requests were due before the end of the test, and no user was free to send them")
    return reasons


def lost_workers(records: list[Record], info: RunInfo) -> dict[int, str]:
    """What is missing of a run that came to its end, in words, by the worker."""
    if not info.ended:
        return {}
    recorded = Counter(record.worker for record in records)
    lost = {}
    for worker in info.workers:
        if not worker.ended:
            lost[worker.worker] = lost_line(worker, info.began_at)
        elif recorded[worker.worker] < worker.started:
            missing = worker.started - recorded[worker.worker]
            lost[worker.worker] = f"worker {worker.worker}: {missing} of its {worker.started} requests have no record"
    return lost


def lost_line(worker: WorkerInfo, began_at: float) -> str:
    """That a worker was lost, and when since the test began."""
    when = "" if worker.lost_at is None else f" {worker.lost_at - began_at:.0f} s after the start"
    lost = f"worker {worker.worker} on {worker.host} was lost{when}: "
    if worker.from_file:
        return f"{lost}{worker.from_file} of its records were read from its file"
    return f"{lost}what it had not reported is missing"


def _cached(good: list[Record]) -> int:
    """How many prompts came from the server's cache, beyond the beginning that all have in common."""
    known = [
        (record.cached_tokens, record.prompt_tokens) for record in good if record.cached_tokens and record.prompt_tokens
    ]
    shared = min((cached for cached, _ in known), default=0)
    return sum(
        cached > CACHED * prompt and (cached > shared + BLOCK or prompt - cached <= BLOCK) for cached, prompt in known
    )


SERVERS_LOG = "the server's log may tell more"

FEWER = "the server wants fewer requests: lower -u or the rate"

CAUSES: dict[str, str] = {
    Cause.REFUSED: "is the server running there? (--ready-timeout waits)",
    Cause.UNREACHABLE: "check the address in --host, and that no firewall is between (--connect-timeout waits longer)",
    Cause.NAME: "check the spelling of --host, and that this machine can look the name up",
    Cause.TLS: "check the scheme, the port and the certificate of --host (see TLS in docs/troubleshooting.md)",
    Cause.PLAIN: "the server expects TLS: use https:// in --host",
    Cause.PROXY: "check the proxy's address and user (--proxy), or bypass it with NO_PROXY",
    Cause.BUSY: FEWER,
    Cause.CONTEXT: "the clip and --max-tokens exceed the model's context: prepare shorter clips (--max-duration,"
    " --chunk-long), lower --max-tokens, or start the engine with a longer context",
}
"""What helps where requests fail, by the cause."""

CURES = {
    "http_401": "set OPENAI_API_KEY or --api-key",
    "http_403": "set OPENAI_API_KEY or --api-key to a key that may do this",
    "http_404": "is the port in --host right, --api the server's, and --model one that it serves?",
    **dict.fromkeys(
        ("http_405", "http_501"), "nothing takes requests at this address: check the port in --host, and --api"
    ),
    "http_413": "let the server, or the proxy before it, take larger bodies (nginx: client_max_body_size)",
    "http_422": "a field that the server does not take can be left out (--omit)",
    "http_400": "a field that the server does not take can be left out (--omit)",
    "http_429": FEWER,
    **dict.fromkeys(
        ("http_503", "ws_503"),
        "the server is not ready (--ready-timeout waits), or wants fewer requests (-u, the rate)",
    ),
    **dict.fromkeys(
        ("http_502", "http_504"), "a proxy or gateway got no answer from the server behind it: is that one running?"
    ),
    "connect": CAUSES[Cause.REFUSED],
    "stalled": "is the server at work? Its log may tell; --stall-timeout waits longer",
    "timeout": "is the server at work? Its log may tell; --total-timeout waits longer",
    **dict.fromkeys(
        ("ws_403", "ws_404"), "is the model one that can, and is `websockets` installed beside the server?"
    ),
    "ws_401": "set OPENAI_API_KEY or --api-key",
    "rejected": "see docs/realtime.md for what each engine takes",
    "no_final": "the server's log may tell; docs/realtime.md has the engines' traps",
    "empty": "is --model one that hears, and --prompt one that asks it for a transcript?",
    "protocol": "is it an OpenAI-compatible server, and --api its?",
    "client": "this machine was in want of it, and not the server",
}
"""The same by the outcome, where no cause is known."""

SAYS_MORE = ("http_503", "ws_503")
"""Outcomes whose cure covers more than that of their cause."""


def cause_and_cure(records: list[Record], info: RunInfo) -> str:
    """Why nothing succeeded, by the most frequent failure, and what helps."""
    failures = Counter((record.outcome, record.error or "", record.cause) for record in records if record.failed)
    if not failures:
        return "no request came to its end: let the test run longer (-t), or its streams end (--stop-timeout)"
    (outcome, error, cause), count = failures.most_common(1)[0]
    return f"nothing succeeded: {count}× {what_failed(outcome, error, info.host, cause)}"


def what_failed(outcome: str, error: str, host: str, cause: str = "") -> str:
    """A failure in words, and what helps: by its cause and, where that is not known, by its outcome."""
    if outcome != "connect":
        said = f"{outcome.removeprefix('http_')}: {error}"
    elif cause == Cause.REFUSED or error == REFUSED:
        said = f"{error[:1].lower()}{error[1:]} by {host}"
    else:
        said = f"{host}: {error}"
    known = cause in CAUSES and outcome not in SAYS_MORE
    cure = CAUSES[cause] if known else CURES.get(outcome, SERVERS_LOG)
    return f"{said.rstrip('.?! ')}: {cure}"


REFUSED = os.strerror(errno.ECONNREFUSED)
"""What a record of an older version, which has no cause, says of it."""


def _missing(records: list[Record], info: RunInfo) -> list[str]:
    killed = [] if info.ended else ["the run did not come to its end: its process was killed"]
    refused = [f"{_left_out(each)}: {each.reason}" for each in info.refused]
    return [*killed, *refused, *lost_workers(records, info).values()]


def _left_out(refused: Refused) -> str:
    if refused.worker is None:
        return f"skipped {count_of(refused.count, 'line')} of {RECORDS}"
    return f"refused {count_of(refused.count, 'record')} of worker {refused.worker}"


def _pieces(record: Record) -> int:
    """In how many pieces an answer came: chunks within a millisecond are one."""
    return 1 + int(np.count_nonzero(np.asarray(record.itl) >= AT_ONCE_S))


def _decodes_stretches(answers: list[Record]) -> bool:
    """Whether the answers of a transcription API may come from an engine that decodes a few seconds of audio at a time,
    and sends what it heard in them at once, as SGLang does with Qwen3-ASR: there are then about as many pieces as
    stretches of audio. A proxy holds back whole answers, or by the 4 kB and more of its buffer, far more speech."""
    return sum(record.audio_s for record in answers) <= STRETCH_S * sum(map(_pieces, answers))


def _in_pieces(part: Measured, info: RunInfo) -> list[str]:
    """Whether something between the engine and here holds answers back. A client that reads late sees chunks that came
    one by one as one piece: only those are judged that were read on time."""
    on_time = {
        worker.worker
        for worker in info.workers
        if worker.health is not None and _lags(worker.health, part)[1] <= LAG_VALID_S
    }
    chunked: dict[str, list[Record]] = {}
    for record in part.sound:
        if record.ok and record.chunks >= CHUNKS and record.worker in on_time and not isinstance(record, LiveRecord):
            chunked.setdefault(record.user_class, []).append(record)
    apis = {each.name: each.api for each in info.user_classes}
    judged = [
        answers
        for name, answers in chunked.items()
        if apis.get(name, info.api) != "transcriptions" or not _decodes_stretches(answers)
    ]
    held = sum(record.chunks >= CHUNKS * _pieces(record) for answers in judged for record in answers)
    if held <= LOST * sum(map(len, judged)):
        return []
    came = f"{held} of {sum(map(len, judged))} answers were not streamed, but came in one piece or a few"
    return [
        f"{came}: something on the way holds them back, as a proxy that buffers (nginx: proxy_buffering off), and"
        " TTFT and ITL are not the engine's"
    ]


FIRST_TIMES, FIRST_S, FIRST_OF = 10, 1.0, 10
"""How many times the median the first TTFT is where an engine was not ready, by how many seconds more, and among
how many requests."""


def _slow_first(good: list[Record]) -> str:
    """Of an engine that compiles at its first request; empty where it did not."""
    if len(good) < FIRST_OF:
        return ""
    first = min(good, key=lambda record: record.started_at).ttft or 0.0
    median = statistics.median(record.ttft or 0.0 for record in good)
    if first < max(FIRST_TIMES * median, median + FIRST_S):
        return ""
    times = f"{first / median:.0f} times the median" if median else "and the median next to none"
    return f"the first request took {first:.1f} s to its first token, {times}: leave it out with --warmup-requests 10"


def _refusals(records: list[Record]) -> list[str]:
    """Whether the server refused realtime sessions, after each of which its user pauses: fewer sessions than were asked
    for spoke at once."""
    sessions = [record for record in records if isinstance(record, LiveRecord)]
    refused = [record for record in sessions if record.outcome == "rejected" or record.outcome.startswith("ws_")]
    if len(refused) <= REFUSED_SHARE * len(sessions):
        return []
    why, _ = Counter(shorten(record.error or record.outcome, 80) for record in refused).most_common(1)[0]
    return [
        f"the server refused {len(refused)} of {len(sessions)} realtime sessions ({why}): the figures are those of the"
        " sessions that it accepted; lower -u, or raise the server's limit"
    ]


def _sent_before(info: RunInfo) -> list[str]:
    """That the server may have the run's clips in its caches, from earlier runs."""
    if not info.sent_before:
        return []
    runs = f"an earlier test ({info.sent_before[-1]})"
    if len(info.sent_before) > 1:
        runs = f"{len(info.sent_before)} earlier tests (the last: {info.sent_before[-1]})"
    return [
        f"the same clips were sent to this server before, in {runs}: its caches may have answered; restart the server,"
        " or prepare the clips as WAV and leave out --unique none"
    ]


def _repeated(records: list[Record], info: RunInfo) -> list[str]:
    """That clips were sent again as they were, by --unique of each user class."""
    ways = {each.name: (each.unique, each.data_sha256) for each in info.user_classes}
    whole = info.unique, info.data_sha256
    sent = Counter((*ways.get(record.user_class, whole), record.clip) for record in records)
    repeats = Counter[str]()
    for (unique, *_), count in sent.items():
        repeats[unique] += count - 1
    return [
        f"{count} requests repeated a clip's bytes (--unique {unique}): caches may have answered"
        for unique, count in sorted(repeats.items())
        if count and unique != "dither"
    ]


def _doubts(part: Measured, info: RunInfo) -> list[str]:
    records = part.counted
    good = [record for record in records if record.ok]
    doubts = _refusals(records) if good else []
    if not records:
        doubts.append("no request was sent")
    paces = {how.get("pace", 1.0) for how in (info.realtime, *(each.realtime for each in info.user_classes))} - {1.0}
    for pace in sorted(paces):
        how = f"{pace:g} times as fast as it is spoken" if pace else "as fast as the socket took it"
        doubts.append(f"not realtime: speech was sent {how} (--pace)")
    older = sum(record.started_at < info.began_at - OLDER_S for record in records)
    if older:
        doubts.append(f"{older} records are older than the run: those of another one are among them")
    # A realtime engine says what it has decoded since the last time, and its tokens, if any, are of audio.
    one_shot = [record for record in good if not isinstance(record, LiveRecord)]
    if 0 < len(one_shot) < len(good):
        doubts.append("speech and uploads are in the same figures: see them apart, by user class")
    guessed = sum(record.output_tokens_source == "chunks" for record in one_shot)
    if guessed:
        doubts.append(f"{guessed} answers came without usage: how many tokens they had is not known")
    whole = sum(not record.streamed for record in good)
    if whole:
        doubts.append(f"{whole} answers were not streamed: their TTFT is their latency")
    if line := _slow_first([record for record in part.sound if record.ok]):
        doubts.append(line)
    if line := _around_transcripts(good, info):
        doubts.append(line)
    if _cached(good):
        cached, prompts = (
            sum(getattr(record, name) or 0 for record in good) for name in ("cached_tokens", "prompt_tokens")
        )
        doubts.append(f"{cached:,} of {prompts:,} prompt tokens came from the server's cache")
    doubts += _sent_before(info)
    doubts += _repeated(records, info)
    return doubts


def _around_transcripts(good: list[Record], info: RunInfo) -> str:
    """Text that is scored with transcripts and is none of their speech; empty without any."""
    if envelope := left_envelope(good):
        count, name = envelope
        return f"{count} transcripts still have the envelope of {name} around them: use --text-format {name}"
    if preface := common_preface(spoken(good, info.scoring), info.scoring):
        count, words = preface[0], shorten(preface[1], 80)
        return (
            f"{count} transcripts begin with '{words}', and no reference does: WER counts it; ask for"
            " the transcript alone (--prompt)"
        )
    return ""
