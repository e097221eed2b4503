"""Whether memory grows over half an hour: not part of `make bench`, run by `python -m benchmarks.run soak`."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asr_load.stream.record import RECORDS
from asr_load.trial import run_on, scripted_server, share_cores
from benchmarks import CHECKOUT, Row
from benchmarks.memory import megabytes

STREAMS, MINUTES, EVERY_S = 100, 30, 15.0
SETTLED_MINUTES = 5
"""Caches fill at first: of the clips, of Locust's rows, of the collector."""


def measure() -> Iterator[Row]:
    """Memory that is no file's, of one process with the records of all its streams."""
    cores = share_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with scripted_server(folder, cores.server) as server:
            command = [sys.executable, "-m", "locust", "--locustfile", "locustfiles/transcribe.py", "--headless"]
            command += ["--only-summary", "--loglevel", "ERROR", "--host", server.url, "--results", str(folder / "r")]
            command += ["--users", str(STREAMS), "--spawn-rate", "50", "--stop-timeout", "30"]
            process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL)
            run_on(process, cores.client)
            samples = []
            try:
                ends = time.monotonic() + MINUTES * 60
                while time.monotonic() < ends:
                    time.sleep(EVERY_S)
                    samples.append(megabytes(process.pid, "Pss_Anon:"))
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(60)
        with (folder / "r" / RECORDS).open("rb") as lines:
            requests = sum(1 for _ in lines)
    settled = np.array(samples[int(SETTLED_MINUTES * 60 / EVERY_S) :])
    per_hour = float(np.polyfit(np.arange(len(settled)) * EVERY_S / 3600, settled, 1)[0])
    yield Row(
        f"memory over {MINUTES} minutes at {STREAMS} streams ({requests:,} requests)",
        f"{settled[0]:.1f} MB after {SETTLED_MINUTES} minutes, {settled[-1]:.1f} MB at the end",
        "itself",
        value=per_hour,
        low=float(settled.min() - settled[0]),
        high=float(settled.max() - settled[0]),
        unit="MB an hour by its trend; MB less and more than at first",
        aim="no growth",
    )
