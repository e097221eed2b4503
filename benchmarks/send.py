"""Compare the cost of posting a long clip with the socket's own cost and with `json=`.

The client runs in a separate process (send_client.py), because gevent patches it.
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
from benchmarks.tls import certified

SECONDS, REQUESTS, ROUNDS = 30.0, 50, 9


def measure() -> Iterator[Row]:
    """Post clips of 30 s: 1.3 MB of base64."""
    cores = share_cores()
    with tempfile.TemporaryDirectory() as name:
        clips = write_clips(Path(name) / "clips", 4, SECONDS)
        (_, certificate), (_, authority) = certified(Path(name))
        command = [sys.executable, "-m", "benchmarks.sink", str(certificate)]
        sink = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
        run_on(sink, cores.server)
        try:
            assert sink.stdout is not None
            ports = sink.stdout.readline().split()
            words = [*ports, authority, clips, REQUESTS, ROUNDS]
            command = [sys.executable, "-m", "benchmarks.send_client", *map(str, words)]
            client = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
            run_on(client, cores.client)
            output, _ = client.communicate(timeout=120)
        finally:
            sink.terminate()
            sink.wait(10)
    spent: dict[str, list[float]] = json.loads(output)
    for way in ("", ", TLS"):
        sent, bare = spent[f"connection{way}"], spent[f"bytes{way}"]
        yield Row(
            f"handing 1.3 MB to the kernel{way}",
            f"{statistics.median(sent) * 1e3:.2f} ms of CPU",
            f"{'SSLSocket.' if way else ''}sendall of ready bytes: {statistics.median(bare) * 1e3:.2f} ms",
            **ratio(sent, bare),  # type: ignore[arg-type]
            aim="at most 1.2 times",
        )
    raw, ours, naive = spent["bytes"], spent["harness"], spent["json"]
    yield Row(
        "posting 1.3 MB and reading a short response",
        f"{statistics.median(ours) * 1e3:.2f} ms of CPU",
        f"sendall of ready bytes on a bare socket: {statistics.median(raw) * 1e3:.2f} ms",
        **ratio(ours, raw),  # type: ignore[arg-type]
        aim="at most 0.5 ms",
    )
    first, tenth = spent["first"], spent["tenth"]
    yield Row(
        "a user's first request on an open connection",
        f"{statistics.median(first) * 1e3:.2f} ms of CPU",
        f"its tenth: {statistics.median(tenth) * 1e3:.2f} ms",
        **ratio(first, tenth),  # type: ignore[arg-type]
        aim="equal",
    )
    yield Row(
        "the same with requests and json=",
        f"{statistics.median(naive) * 1e3:.2f} ms of CPU",
        f"asr-load: {statistics.median(ours) * 1e3:.2f} ms",
        **ratio(naive, ours),  # type: ignore[arg-type]
    )
