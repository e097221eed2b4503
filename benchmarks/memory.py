"""Compare the memory of a user and of a worker with Locust's."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from asr_load.selftest.calibrate import free_port
from asr_load.selftest.ground_truth import Server, scripted_server, share_cores
from benchmarks import CHECKOUT, NAIVE, Row
from benchmarks.clips import write_clips

USERS, WORKERS, CLIPS = 200, 3, 2_000
SETTLE_S = 8.0


def measure() -> Iterator[Row]:
    """Measure the proportional set size during streaming (processes that share a page each count part of it). For a
    user, count only anonymous memory, because the system can reclaim pages of the shards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "naive.py").write_text(NAIVE)
        clips = write_clips(folder / "clips", CLIPS, seconds=10.0)
        size = sum(file.stat().st_size for file in clips.iterdir()) / 1e6
        with scripted_server(folder, share_cores().server, "--ttft-ms", 1000) as server:
            users, workers = {}, {}
            for which in ("ours", "bare"):

                def run(name: str, kind: str, *options: object, ours: bool = which == "ours") -> list[float]:
                    if not ours:
                        return _of_all(kind, server, "naive.py", *options, cwd=folder)  # a folder without locust.conf
                    data = ("--data", clips, "--results", folder / name)
                    return _of_all(kind, server, "locustfiles/transcribe.py", *options, *data)

                one, many = (run(str(count), "Pss_Anon:", "--users", count)[0] for count in (1, USERS))
                users[which] = (many - one) / (USERS - 1) * 1e3
                fleet = run("fleet", "Pss:", "--users", WORKERS, "--processes", WORKERS)
                workers[which] = sum(fleet[1:]) / WORKERS
    yield _row(f"memory of a user ({USERS} of them)", users["ours"], users["bare"], "kB", "")
    extra = workers["ours"] - workers["bare"]
    yield Row(
        f"memory of an extra worker, {size:.0f} MB of shards ({WORKERS} workers)",
        f"{workers['ours']:.1f} MB",
        f"Locust with one bare HttpUser: {workers['bare']:.1f} MB",
        value=extra,
        low=extra,
        high=extra,
        unit="MB more",
        aim="under 60 MB more",
    )


def _row(what: str, ours: float, bare: float, unit: str, aim: str) -> Row:
    times = ours / bare
    against = f"Locust with one bare HttpUser: {bare:.1f} {unit}"
    return Row(what, f"{ours:.1f} {unit}", against, value=times, low=times, high=times, unit="times", aim=aim)


def _of_all(kind: str, server: Server, file: object, *options: object, cwd: Path = CHECKOUT) -> list[float]:
    """Memory of Locust's process, first the master's, and of its workers, some seconds after all users have started."""
    port = free_port()
    command = [sys.executable, "-m", "locust", "-f", file, "--headless", "--spawn-rate", 50, "--host", server.url]
    command += ["--only-summary", "--loglevel", "ERROR", "--master-bind-port", port, "--master-port", port, *options]
    process = subprocess.Popen([*map(str, command)], cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(SETTLE_S)
        return [megabytes(pid, kind) for pid in (process.pid, *_children(process.pid))]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended meanwhile
            continue
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


def megabytes(pid: int, kind: str) -> float:
    """Memory of a process by the kernel's count: `Pss:`, or `Pss_Anon:` for anonymous memory only."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e3
