"""Calibration: how many streams a machine can measure. scripts/calibrate.py measures it; verdicts of later runs use
it."""

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
"""The bound that verdicts use: the lag up to which a run is valid."""


class CalibrationStep(msgspec.Struct):
    """One number of concurrent streams. Errors are in seconds: the client's time stamps compared with the server's."""

    workers: Count
    streams: Count
    chunks_per_s: Amount
    """Chunks received in the busiest second."""
    ttft_p50: Lag
    ttft_p99: Lag
    itl_p50: Lag
    itl_p99: Lag
    upload_p99: Lag
    """Time from the start of a request until its last byte was sent."""
    cpu: Amount
    """CPU of the busiest worker, as a share of a core."""
    server_late_p99: Lag
    """How late the server sent its chunks."""
    accept_p50: Lag
    """Time from when a request's last byte was sent until the server had all of it: the wait for a busy server."""


class GoodFor(msgspec.Struct):
    """The highest number of streams at which the errors' p99 stayed within each number of ms; 0 if the lowest number
    tried exceeded it. `at_least`: the server reached its limit before the client, so the client may manage more."""

    workers: Count
    within_ms: dict[int, Count]
    at_least: bool


class Calibration(msgspec.Struct):
    """Calibration of one machine."""

    host: str
    cores: Count
    """Cores that the client and the server shared."""
    reader: str
    chunks_per_s: Amount
    """Chunk rate of each stream."""
    good_for: list[GoodFor]
    trials: list[CalibrationStep]

    def streams(self, workers: int) -> tuple[int, bool] | None:
        """Number of streams that this many workers can measure together, and whether it is a lower bound. An untested
        number of workers counts as the next lower one that was tested; None below all of them."""
        tried = [good for good in self.good_for if good.workers <= workers and TRUSTED_MS in good.within_ms]
        if not tried:
            return None
        best = max(tried, key=lambda good: good.workers)
        # More workers than were tested may have to share cores that the tested ones had to themselves.
        streams = best.within_ms[TRUSTED_MS]
        return streams, best.at_least or best.workers < workers


def calibration_file() -> Path:
    """Path of this machine's calibration. The host is in its name because machines may share a home folder."""
    host = re.sub(r"[^\w.-]+", "-", socket.gethostname())
    return cache() / f"calibration-{host}.json"


def write_calibration(calibration: Calibration) -> Path:
    """Store the calibration for later runs and return its path. Raises OSError."""
    path = calibration_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encode_json(calibration))
    return path


def read_calibration(cores: int, reader: str) -> Calibration | None:
    """The machine's calibration, if it was made with as many cores and the same reader."""
    try:
        calibration = decode(calibration_file().read_bytes(), Calibration)
    except (OSError, Malformed):
        return None
    return calibration if (calibration.cores, calibration.reader) == (cores, reader) else None
