"""Measure how many streams this machine can handle: increase them against a server whose time stamps are known."""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from asr_load import signals
from asr_load.audio.sample import sample
from asr_load.errors import OneLineParser, exits_on_bad_input
from asr_load.results.calibration import TRUSTED_MS, WITHIN_MS, Calibration, CalibrationStep, GoodFor, write_calibration
from asr_load.results.runfile import on_master_clock
from asr_load.results.verdict import peak_chunks_per_s
from asr_load.selftest.ground_truth import ITL_S, Cores, GroundTruthError, load, p50, p99, scripted_server, share_cores
from asr_load.text import count_of

FIRST, LAST = 25, 6400
"""Number of streams in the first trial, and the maximum."""

REFINEMENTS = 2
"""Number of trials between the last number of streams that passed and the first that did not."""

PASSES = 3
"""Requests of each stream, which take 4.4 s together."""

SERVER_LATE_S = TRUSTED_MS / 1e3
"""A server that sends this late at p99 is at its limit. So is one that half of the requests waited for this long, if
not all streams were carried."""

CARRIED = 0.8
"""Minimum share of all streams' chunks that must arrive in the busiest second. A starting stream receives none, so even
an ideal client does not get all: 0.88 of them on average, with responses of 64 chunks. A client below this share cannot
start the next stream in time, so fewer streams than requested were open at once."""


def climb(first: int, trial: Callable[[int], CalibrationStep]) -> Iterator[CalibrationStep]:
    """Yield trials with doubled numbers of streams until the client fails one, or the server reaches its limit; then
    trials between the last two numbers."""
    good, streams = 0, first
    while streams <= LAST:
        step = trial(streams)
        yield step
        if server_full(step):
            return
        if not trusted(step, TRUSTED_MS):
            break
        good, streams = streams, streams * 2
    else:
        return
    bad = streams
    for _ in range(REFINEMENTS if good else 0):
        step = trial((good + bad) // 2)
        yield step
        if trusted(step, TRUSTED_MS):
            good = step.streams
        else:
            bad = step.streams


def carried(trial: CalibrationStep) -> bool:
    """Whether all streams were open at once."""
    return trial.chunks_per_s >= CARRIED * trial.streams / ITL_S


def server_full(trial: CalibrationStep) -> bool:
    """Whether the server was the bottleneck, so that the trial shows nothing about the client."""
    return trial.server_late_p99 > SERVER_LATE_S or (not carried(trial) and trial.accept_p50 > SERVER_LATE_S)


def trusted(trial: CalibrationStep, limit_ms: int) -> bool:
    """Whether the client carried all streams, with the errors' p99 within the limit."""
    return carried(trial) and max(trial.ttft_p99, trial.itl_p99) * 1e3 <= limit_ms


def good_for(trials: list[CalibrationStep]) -> GoodFor:
    """The result of the trials with one number of workers."""
    usable = sorted((trial for trial in trials if not server_full(trial)), key=lambda trial: trial.streams)
    most = {}
    for limit in WITHIN_MS:
        most[limit] = 0
        for trial in usable:
            if not trusted(trial, limit):
                break
            most[limit] = trial.streams
    return GoodFor(trials[0].workers, most, at_least=all(trusted(trial, TRUSTED_MS) for trial in usable))


def run_step(streams: int, workers: int, cores: Cores, folder: Path) -> tuple[CalibrationStep, str]:
    """Run a number of streams on a number of workers, all started within a second. Returns the trial and the reader.
    Raises GroundTruthError."""
    folder.mkdir()
    options: list[object] = ["--users", streams, "--spawn-rate", streams, "--requests", PASSES * streams]
    options += ["--data", str(sample()), "--stop-timeout", 30]
    if workers > 1:
        port = free_port()
        options += ["--processes", workers, "--master-bind-port", port, "--master-port", port]
    with scripted_server(folder, cores.server) as server:
        outcome = load(server, folder / "results", cores.client, *options)
    clients = outcome.info.workers
    trial = CalibrationStep(
        workers=workers,
        streams=streams,
        chunks_per_s=peak_chunks_per_s(on_master_clock(outcome.records, clients)),
        ttft_p50=p50(outcome.ttft_errors),
        ttft_p99=p99(outcome.ttft_errors),
        itl_p50=p50(outcome.itl_errors),
        itl_p99=p99(outcome.itl_errors),
        upload_p99=float(np.percentile([record.upload or 0.0 for record in outcome.records], 99)),
        cpu=max(client.health.cpu_process for client in clients if client.health is not None),
        server_late_p99=p99(outcome.server_lateness),
        accept_p50=p50(outcome.accept_waits),
    )
    return trial, clients[0].reader


def free_port() -> int:
    """A TCP port that is free at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _row(trial: CalibrationStep) -> list[str]:
    errors = (trial.ttft_p50, trial.ttft_p99, trial.itl_p50, trial.itl_p99, trial.upload_p99)
    cells = [f"{error * 1e3:.2f}" for error in (*errors, trial.server_late_p99, trial.accept_p50)]
    return [str(trial.workers), str(trial.streams), f"{trial.chunks_per_s:.0f}", *cells, f"{trial.cpu:.0%}"]


def _table(trials: list[CalibrationStep]) -> Table:
    table = Table(title="Errors relative to the server's time stamps, in ms", title_justify="left")
    names = "workers, streams, chunks/s, TTFT p50, p99, ITL p50, p99, upload p99, server late, wait, CPU"
    for name in names.split(", "):
        table.add_column(name, justify="right")
    for trial in trials:
        table.add_row(*_row(trial))
    return table


def _line(good: GoodFor) -> str:
    streams = ", ".join(f"{good.within_ms[limit]} within {limit} ms" for limit in WITHIN_MS)
    full = " (or more: the server reached its limit first)" if good.at_least else ""
    return f"{count_of(good.workers, 'worker')}: good for {streams}{full}"


@exits_on_bad_input
def main() -> int:
    """Command line of scripts/calibrate.py. The exit code is 1 if a trial failed."""
    parser = OneLineParser(
        f"Measure how many streams of {1 / ITL_S:.0f} chunks/s this machine can receive with accurate time stamps, with"
        " one worker and with one per core that the server does not use. Takes about two minutes."
    )
    parser.parse_args()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 110
    cores = share_cores()
    server_cores, client_cores = (count_of(len(some), "core") for some in (cores.server, cores.client))
    print(f"Server on {server_cores}, client on {client_cores}", flush=True)
    trials: list[CalibrationStep] = []
    found: list[GoodFor] = []
    reader = ""
    try:
        with signals.raising(), tempfile.TemporaryDirectory() as name:

            def trial(workers: int, streams: int) -> CalibrationStep:
                nonlocal reader
                step, reader = run_step(streams, workers, cores, Path(name) / f"{workers}-{streams}")
                print(f"  {count_of(workers, 'worker')}, {count_of(streams, 'stream')}: {_brief(step)}", flush=True)
                return step

            for workers in sorted({1, len(cores.client)}):
                # Several workers carry at least about as many streams as one.
                first = max(FIRST, found[0].within_ms[TRUSTED_MS] if found else 0)
                steps = list(climb(first, partial(trial, workers)))
                trials += steps
                found.append(good_for(steps))
    except signals.Interrupted as stopped:
        signals.say(f"stopped; no result was written ({signal.Signals(stopped.number).name})")
        raise
    except GroundTruthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(_table(trials))
    print("server late: how late the server sent chunks, p99; wait: time until it accepted a request, p50")
    for good in found:
        print(_line(good))
    calibration = Calibration(
        host=socket.gethostname(),
        cores=len(cores.server | cores.client),
        reader=reader,
        chunks_per_s=1 / ITL_S,
        good_for=found,
        trials=trials,
    )
    print(f"Verdicts of later runs use {write_calibration(calibration)}")
    return 0


def _brief(trial: CalibrationStep) -> str:
    return f"errors at p99: TTFT {trial.ttft_p99 * 1e3:.2f} ms, ITL {trial.itl_p99 * 1e3:.2f} ms; CPU {trial.cpu:.0%}"
