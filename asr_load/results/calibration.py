"""What a machine can be trusted with as a client: measured by scripts/calibrate.py, used by later runs' verdicts."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import msgspec

from asr_load.decode import Malformed, decode
from asr_load.files import encode_json, write_atomically
from asr_load.shipped import cache
from asr_load.stream.record import Amount, Count, Lag

WITHIN_MS = (1, 5, 10)
"""Bounds on the p99 of the error of TTFT and ITL."""

TRUSTED_MS = 10
"""The bound that the verdict goes by: the lag up to which a run is valid."""


class CalibrationStep(msgspec.Struct):
    """So many streams at once. Errors are in seconds, of the client's stamps against the server's."""

    workers: Count
    streams: Count
    chunks_per_s: Amount
    """As they came, in the busiest second."""
    ttft_p50: Lag
    ttft_p99: Lag
    itl_p50: Lag
    itl_p99: Lag
    upload_p99: Lag
    """Start of a request to its last byte being sent."""
    cpu: Amount
    """Of the busiest worker, as a share of a core."""
    server_late_p99: Lag
    """How late the server sent what was due."""
    accept_p50: Lag
    """The last byte of a request being sent to the server having it all: the wait for a server that is full."""


class GoodFor(msgspec.Struct):
    """The most streams at which the errors' p99 stayed within so many ms; 0 where the fewest that were tried were too
    many. `at_least`: the server was full before the client, which may be good for more."""

    workers: Count
    within_ms: dict[int, Count]
    at_least: bool


class Calibration(msgspec.Struct):
    """Of one machine."""

    host: str
    cores: Count
    """That the client and the server had together."""
    reader: str
    chunks_per_s: Amount
    """Of each stream."""
    good_for: list[GoodFor]
    trials: list[CalibrationStep]

    def streams(self, workers: int) -> tuple[int, bool] | None:
        """How many streams so many workers are good for together, and whether that is the least they are good for. One
        that was not tried is taken to do as much for each worker as the next fewer one that was; None below all."""
        tried = [good for good in self.good_for if good.workers <= workers and TRUSTED_MS in good.within_ms]
        if not tried:
            return None
        best = max(tried, key=lambda good: good.workers)
        # More workers than were tried may share the cores that the last ones had for themselves.
        streams = best.within_ms[TRUSTED_MS]
        return streams, best.at_least or best.workers < workers


def calibration_file() -> Path:
    """Where this machine's calibration is kept: a home may be shared by several machines."""
    host = re.sub(r"[^\w.-]+", "-", socket.gethostname())
    return cache() / f"calibration-{host}.json"


def write_calibration(calibration: Calibration) -> Path:
    """Keep it for later runs, and return where. Raises OSError."""
    path = calibration_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encode_json(calibration))
    return path


def read_calibration(cores: int, reader: str) -> Calibration | None:
    """What this machine was found good for, if it was with as many cores and the same way of reading."""
    try:
        calibration = decode(calibration_file().read_bytes(), Calibration)
    except (OSError, Malformed):
        return None
    return calibration if (calibration.cores, calibration.reader) == (cores, reader) else None
