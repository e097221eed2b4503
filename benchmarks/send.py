"""What posting a long clip costs, held against the socket's own cost and against `json=`.

The client is a process of its own (send_client.py): gevent patches it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from asr_load.selftest.ground_truth import run_on, share_cores
from benchmarks import CHECKOUT, Row, ratio
from benchmarks.clips import write_clips

SECONDS, REQUESTS, ROUNDS = 30.0, 50, 9


def measure() -> Iterator[Row]:
    """Clips of 30 s: 1.3 MB of base64."""
    cores = share_cores()
    with tempfile.TemporaryDirectory() as name:
        clips = write_clips(Path(name) / "clips", 4, SECONDS)
        sink = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sink"], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
        )
        run_on(sink, cores.server)
        try:
            assert sink.stdout is not None
            port = sink.stdout.readline().strip()
            command = [sys.executable, "-m", "benchmarks.send_client", port, str(clips), str(REQUESTS), str(ROUNDS)]
            client = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
            run_on(client, cores.client)
            output, _ = client.communicate(timeout=120)
        finally:
            sink.terminate()
            sink.wait(10)
    spent: dict[str, list[float]] = json.loads(output)
    raw, ours, naive = spent["bytes"], spent["harness"], spent["json"]
    yield Row(
        "posting 1.3 MB and reading a short answer",
        f"{statistics.median(ours) * 1e3:.2f} ms of CPU",
        f"sendall of ready bytes on a bare socket: {statistics.median(raw) * 1e3:.2f} ms",
        **ratio(ours, raw),  # type: ignore[arg-type]
        aim="at most 0.5 ms",
    )
    yield Row(
        "the same with requests and json=",
        f"{statistics.median(naive) * 1e3:.2f} ms of CPU",
        f"the harness: {statistics.median(ours) * 1e3:.2f} ms",
        **ratio(naive, ours),  # type: ignore[arg-type]
    )
