"""Measure how long a server that floods a realtime session blocks the event loop."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from asr_load.selftest.ground_truth import run_on, share_cores
from benchmarks import CHECKOUT, Row
from benchmarks.clips import write_clips
from benchmarks.tls import certified


def measure() -> Iterator[Row]:
    """Measure each flood before, during and after the speech of a session."""
    cores = share_cores()
    with tempfile.TemporaryDirectory() as name:
        clips = write_clips(Path(name) / "clips", 1, 0.5)
        (_, certificate), (_, authority) = certified(Path(name))
        for reader in ("compiled", "python"):
            for scheme, words in (("ws", []), ("wss", [certificate])):
                server = _start("flood_server", *words)
                run_on(server, cores.server)
                assert server.stdout is not None
                client = _start(
                    "flood_client", f"{scheme}://127.0.0.1:{int(server.stdout.readline())}", reader, clips, authority
                )
                run_on(client, cores.client)
                found = json.loads(client.communicate()[0])
                late = {which: lag * 1e3 for which, (lag, _) in found.items()}
                cpu = max(spent for _, spent in found.values()) * 1e3
                server.kill()
                server.wait()
                worst = max(late, key=late.__getitem__)
                what = f"event loop lag during a flood, {scheme}, reader {reader}"
                figure = f"worst of {len(late)}: {worst} the speech; at most {cpu:.0f} ms of CPU between two ticks"
                yield Row(what, figure, "its ticks", late[worst], min(late.values()), late[worst], "ms", "50 or less")


def _start(module: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, words)]
    return subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
