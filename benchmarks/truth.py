"""Measure the error of reported latencies against the scripted server's stamps (see asr_load/selftest)."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asr_load.selftest.ground_truth import ITL_S, GroundTruthRun, load, p50, p99, scripted_server, share_cores
from benchmarks import CHECKOUT, Row
from benchmarks.tls import certified

sys.path.append(str(CHECKOUT / "tests"))
from harness.gateways import gateway, program
from harness.peer import ca_file

RISING = (64, 800)
"""Streams and requests of a load that rises by ten streams per second."""

HERD = (256, 256)
"""Streams and requests of a load that starts all at once."""

FEW = (4, 60)
"""Streams and requests of a load light enough for every reader, so that their results must agree."""

READERS = ("compiled", "python")

GATEWAYS = ("nginx", "haproxy")
"""Gateways between client and server, if installed; nginx does not buffer."""


def measure() -> Iterator[Row]:
    """Measure with the client and the server on separate cores, if there are two."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from _rows(_outcome(folder / "rising", *RISING, 10), RISING[0])
        yield from _herd(_outcome(folder / "herd", *HERD, HERD[0]))
        yield from _rows(_outcome(folder / "rising-tls", *RISING, 10, tls=True), RISING[0], ", TLS")
        yield from _herd(_outcome(folder / "herd-tls", *HERD, HERD[0], tls=True), ", TLS")
        for reader in READERS:
            yield _agreement(_outcome(folder / reader, *FEW, 10, "--reader", reader), reader)
            yield _agreement(
                _outcome(folder / f"{reader}-tls", *FEW, 10, "--reader", reader, tls=True), reader, ", TLS"
            )
        for kind in filter(program, GATEWAYS):
            yield _behind(kind, folder / kind)


def _outcome(
    folder: Path, streams: int, requests: int, rate: int, *options: object, tls: bool = False
) -> GroundTruthRun:
    cores = share_cores()
    folder.mkdir()
    serve, trust = certified(folder) if tls else ((), ())
    with scripted_server(folder, cores.server, *serve) as server:
        load_options = ("--users", streams, "--spawn-rate", rate, "--requests", requests, *options, *trust)
        return load(server, folder / "results", cores.client, *load_options, "--data", "asr_data/sample")


def _behind(kind: str, folder: Path) -> Row:
    """How late chunks through a gateway are stamped, including the time in the gateway."""
    cores = share_cores()
    folder.mkdir()
    with scripted_server(folder, cores.server) as server, gateway(kind, folder / "gateway", server.url) as front:
        behind = dataclasses.replace(server, url=front.url)
        words = ("--users", FEW[0], "--requests", FEW[1], "--ca", ca_file(), "--data", "asr_data/sample")
        outcome = load(behind, folder / "results", cores.client, *words)
    late = np.concatenate([came - left for came, left in zip(outcome.received, outcome.sent, strict=True)])
    return Row(
        f"chunks at {FEW[0]} streams through {kind}, TLS (n={late.size})",
        f"late p50 {p50(late) * 1e3:.2f}, p99 {p99(late) * 1e3:.2f} ms",
        "the server's own stamps",
        value=p50(late) * 1e3,
        low=float(late.min()) * 1e3,
        high=float(late.max()) * 1e3,
        unit="ms at p50, from min to max",
        aim="p50 within 2 ms",
    )


def _agreement(outcome: GroundTruthRun, reader: str, over: str = "") -> Row:
    errors = np.concatenate([outcome.ttft_errors, outcome.itl_errors])
    most = float(np.abs(errors).max()) * 1e3
    return Row(
        f"TTFT and gaps at {FEW[0]} streams{over}, {reader} reader (n={errors.size})",
        f"error p50 {p50(errors) * 1e3:.2f}, p99 {p99(errors) * 1e3:.2f}, max {most:.2f} ms",
        "the server's own stamps",
        value=p99(errors) * 1e3,
        low=p50(errors) * 1e3,
        high=most,
        unit="ms at p99, from p50 to max",
        aim="p99 within 1 ms",
    )


def _rows(outcome: GroundTruthRun, streams: int, over: str = "") -> Iterator[Row]:
    for metric, errors in (("TTFT", outcome.ttft_errors), ("ITL", outcome.itl_errors)):
        yield Row(
            f"{metric} at {streams} streams{over}, {ITL_S * 1e3:.0f} ms between tokens (n={errors.size})",
            f"error p50 {p50(errors) * 1e3:.2f}, p99 {p99(errors) * 1e3:.2f}, max {np.abs(errors).max() * 1e3:.2f} ms",
            f"the server's own stamps; mean {np.mean(errors) * 1e3:+.3f} ms",
            value=p99(errors) * 1e3,
            low=p50(errors) * 1e3,
            high=float(np.abs(errors).max()) * 1e3,
            unit="ms at p99, from p50 to max",
            aim="p99 within 0.3 ms",
        )
    yield Row(
        f"records with wrong token counts{over}",
        f"{outcome.wrong_counts} of {len(outcome.records)}",
        "what the server sent",
        value=outcome.wrong_counts,
        low=outcome.wrong_counts,
        high=outcome.wrong_counts,
        unit="records",
        aim="none",
    )


def _herd(outcome: GroundTruthRun, over: str = "") -> Iterator[Row]:
    """Errors when all streams start at once. The time that the server takes to accept them is part of TTFT."""
    errors, waits = outcome.ttft_errors, outcome.accept_waits
    yield Row(
        f"TTFT of {HERD[0]} streams that start together{over}",
        f"error p50 {p50(errors) * 1e3:.2f}, p99 {p99(errors) * 1e3:.2f}, max {np.abs(errors).max() * 1e3:.2f} ms",
        f"the server's own stamps; it received requests {np.median(waits) * 1e3:.1f} ms after they were sent (median)",
        value=p50(errors) * 1e3,
        low=float(np.abs(errors).min()) * 1e3,
        high=float(np.abs(errors).max()) * 1e3,
        unit="ms at p50, from min to max",
        aim="p50 within 1 ms",
    )
