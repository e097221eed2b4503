"""Whether a run's figures are the server's, or the client had a hand in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import msgspec
import numpy as np

from asr_load.results.runfile import ClientHealth, RunInfo, WorkerInfo
from asr_load.results.steady import steadiness, trim
from asr_load.stream.record import Record

LAG_VALID_S, LAG_BOUND_S = 0.010, 0.050
"""p99 of the event loop's lag: an error that large is in the latencies. Below the first it is small beside any TTFT
that a person notices; above the second the client was the bottleneck."""

CPU_VALID, CPU_BOUND = 0.80, 0.95
"""Share of a core that the event loop used: a thread has one at most, and near its end everything waits for it. Or of
all cores that a machine has, which its workers share."""

CPU_OWN = 0.50
"""Share of a core below which a client that is late was not kept by its own work."""

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
    """`verdict`: valid, suspect or client-bound; `reasons`: why it is not valid. Lags and CPU: the worst worker's."""

    verdict: str
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


def clock(client: Client) -> str:
    """What is known of a worker's clock, in ms."""
    if client.clock_error_s is None:
        return "unknown"
    # What the master adds to the worker's times, the worker's clock is behind by.
    return f"{-client.clock_offset_s * 1e3:+.1f} ± {client.clock_error_s * 1e3:.1f}"


def judge(records: list[Record], info: RunInfo) -> Validity:
    """Judge a run by the health of its clients and by what its records admit: all of them, and those that count."""
    measured, _ = trim(records, info.ramp_up_time, info.cool_down_time)
    steady = steadiness(measured)
    validity = judge_clients(info.workers)
    _judge_by_calibration(records, info.workers, validity)
    _judge_arrivals(info.workers, validity)
    doubts = _missing(records, info) + _doubts(measured, info)
    if steady.verdict == "rising":
        grew = f"latency rose by {steady.growth_s or 0:.2f} s over the run"
        doubts.append(f"{grew}: the load or a queue grew, so these figures are of no steady state")
    if doubts and validity.verdict == "valid":
        validity.verdict = "suspect"
    validity.reasons += doubts
    return validity


def _judge_by_calibration(records: list[Record], workers: list[WorkerInfo], validity: Validity) -> None:
    """Hold what the streams brought in their busiest second, on each machine, against what it was found good for."""
    for host in {worker.host: None for worker in workers if worker.calibration is not None}:
        here = [worker for worker in workers if worker.host == host]
        calibration = here[0].calibration
        known = None if calibration is None else calibration.streams(len(here))
        if calibration is None or known is None:
            continue
        streams, at_least = known
        offsets = {worker.worker: worker.master_offset_s for worker in here}
        load = peak_chunks_per_s([record for record in records if record.worker in offsets], offsets)
        if load <= streams * calibration.chunks_per_s:
            continue
        verdict = "suspect" if at_least else "client-bound"
        if validity.verdict != "client-bound":
            validity.verdict = verdict
        each = calibration.chunks_per_s
        validity.reasons.append(
            f"as much as {load / each:.0f} streams of {each:g} chunks/s on {len(here)} worker(s) of {host}; "
            f"this machine was good for {'at least ' if at_least else ''}{streams} (make calibrate)"
        )


def peak_chunks_per_s(records: list[Record], offsets: dict[int, float]) -> float:
    """Chunks that came in the busiest second; `offsets` are added to the times of each worker's records."""
    times = [
        record.started_at + offsets[record.worker] + record.ttft + np.cumsum([0.0, *record.itl])
        for record in records
        if record.ttft is not None
    ]
    if not times:
        return 0.0
    seconds = np.concatenate(times)
    return float(np.bincount((seconds - seconds.min()).astype(int)).max())


def judge_clients(workers: list[WorkerInfo]) -> Validity:
    """Judge by the health of the processes alone, as can be done while the test runs: as bad as the worst of them."""
    bound: list[str] = []
    suspect: list[str] = []
    watched = [(worker, worker.health) for worker in workers if worker.health is not None]
    for worker, client in watched:
        who = f"worker {worker.worker}: " if len(workers) > 1 else ""
        if client.lag_p99 > LAG_VALID_S:
            late, allowed = client.lag_p99 * 1e3, LAG_VALID_S * 1e3
            text = f"{who}the event loop was late by {late:.1f} ms at p99 (valid up to {allowed:.0f})"
            (bound if client.lag_p99 > LAG_BOUND_S else suspect).append(text)
        if worker.reader == "compiled" and client.stamp_lag_p99 > LAG_VALID_S:
            late, allowed = client.stamp_lag_p99 * 1e3, LAG_VALID_S * 1e3
            text = f"{who}the thread that reads was late by {late:.1f} ms at p99 (valid up to {allowed:.0f})"
            (bound if client.stamp_lag_p99 > LAG_BOUND_S else suspect).append(text)
        if client.cpu_mean > CPU_VALID:
            text = f"{who}the client used {client.cpu_mean:.0%} of its core on average (valid up to {CPU_VALID:.0%})"
            (bound if client.cpu_mean > CPU_BOUND else suspect).append(text)
    for host, cores, share in _full_machines(watched):
        text = f"the workers used {share:.0%} of the {cores} core(s) of {host} on average (valid up to {CPU_VALID:.0%})"
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

    return Validity(
        verdict="client-bound" if bound else "suspect" if suspect else "valid",
        reasons=bound + suspect,
        readers=sorted({worker.reader for worker, _ in watched}),
        stamp_lag={"p99": worst("stamp_lag_p99"), "max": worst("stamp_lag_max")},
        loop_lag={"p50": worst("lag_p50"), "p99": worst("lag_p99"), "max": worst("lag_max")},
        cpu={"mean": worst("cpu_mean"), "max": worst("cpu_max")},
        clients=[
            Client(
                worker=worker.worker,
                host=worker.host,
                loop_lag_p99=client.lag_p99,
                loop_lag_max=client.lag_max,
                cpu_mean=client.cpu_mean,
                cpu_max=client.cpu_max,
                gc_pause_max=client.gc_pause_max,
                clock_offset_s=worker.master_offset_s,
                clock_error_s=worker.master_offset_error_s,
            )
            for worker, client in watched
        ],
        more_workers=more,
    )


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
    text = f"it takes at least {more} more worker(s), {len(workers) + more} in all, to keep each below {CPU_VALID:.0%}"
    cores = sum({worker.host: worker.cores for worker in workers}.values())
    if 0 < cores < len(workers) + more:
        text += f"; there are {cores} core(s) where they run now, so on another machine"
    return text


def _judge_arrivals(workers: list[WorkerInfo], validity: Validity) -> None:
    """Whether an open loop's requests were sent when they were due."""
    started = sum(worker.started for worker in workers)
    late, queued, unsent = (sum(getattr(worker, name) for worker in workers) for name in ("late", "queued", "unsent"))
    reasons = []
    if late > LATE_VALID * started:
        reasons.append(f"{late} of {started} requests were sent more than 10 ms late though a user was free")
        if late > LATE_BOUND * started:
            validity.verdict = "client-bound"
    if queued > LATE_VALID * started:
        text = f"{queued} of {started} requests were due before a user was free"
        reasons.append(f"{text}: -u is the most in flight, and the server did not keep up with the rate within it")
    if unsent:
        reasons.append(f"{unsent} more requests were due before the end of the test, and no user was free to send them")
    if reasons and validity.verdict == "valid":
        validity.verdict = "suspect"
    validity.reasons += reasons


def lost_workers(records: list[Record], info: RunInfo) -> dict[int, str]:
    """What is missing of a run that came to its end, in words, by the worker."""
    if not info.ended:
        return {}
    found = Counter(record.worker for record in records)
    lost = {}
    for worker in info.workers:
        if not worker.ended:
            lost[worker.worker] = lost_line(worker, info.began_at)
        elif found[worker.worker] < worker.started:
            missing = worker.started - found[worker.worker]
            lost[worker.worker] = f"worker {worker.worker}: {missing} of its {worker.started} requests have no record"
    return lost


def lost_line(worker: WorkerInfo, began_at: float) -> str:
    """That a worker was lost, and when since the test began."""
    when = "" if worker.lost_at is None else f" {worker.lost_at - began_at:.0f} s after the start"
    return f"worker {worker.worker} on {worker.host} was lost{when}: what it had not reported is missing"


def _missing(records: list[Record], info: RunInfo) -> list[str]:
    killed = [] if info.ended else ["the run did not come to its end: its process was killed"]
    return [*killed, *lost_workers(records, info).values()]


def _doubts(records: list[Record], info: RunInfo) -> list[str]:
    doubts: list[str] = []
    good = [record for record in records if record.ok]
    if records and not good:
        doubts.append("no request succeeded: there are no latencies")
    if not records:
        doubts.append("no request was sent")
    guessed = sum(record.output_tokens_source == "chunks" for record in good)
    if guessed:
        doubts.append(f"{guessed} answers came without usage: their tokens are counted by chunks")
    whole = sum(not record.streamed for record in good)
    if whole:
        doubts.append(f"{whole} answers were not streamed: their TTFT is their latency")
    if info.unique == "none":
        repeats = sum(count - 1 for count in Counter(record.clip for record in records).values())
        if repeats:
            doubts.append(f"{repeats} requests repeated a clip's bytes (--unique none): caches may have answered")
    return doubts
