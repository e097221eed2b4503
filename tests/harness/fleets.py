"""A master and its workers as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import CHECKOUT
from harness.patience import PATIENCE_S
from harness.ports import free_port
from harness.runs import Run, locust

TRANSCRIBE = CHECKOUT / "locustfiles" / "transcribe.py"


SLOW = ("--engine", "scripted", "--tokens", "40", "--itl-ms", "50")


def processes(number: int) -> list[str]:
    """Options for workers on this machine. They use a free port, as two runs on Locust's default port would mix."""
    port = str(free_port())
    return ["--processes", str(number), "--master-bind-port", port, "--master-port", port]


def info(done: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.results / "run.json").read_text())
    return found


def nothing_is_lost(done: Run) -> list[dict[str, Any]]:
    """Check that each request that a worker started has one record in the master's file, and that Locust agrees."""
    records = done.records
    keys = {(record["worker"], record["user"], record["started_at"]) for record in records}
    assert len(keys) == len(records)
    by_worker = Counter(record["worker"] for record in records)
    for worker in info(done)["workers"]:
        assert worker["ended"]
        assert worker["started"] == worker["recorded"] == by_worker[worker["worker"]]
    assert done.summary["requests"]["total"] == len(records) == in_rows(done, "num_requests")
    failed = sum(record["outcome"] not in ("ok", "unfinished") for record in records)
    assert in_rows(done, "num_failures") == failed
    return records


class Fleet:
    """A master and workers, started one by one. `on` is a command prefix that runs the master on another host."""

    def __init__(
        self, host: str, results: Path, *words: str | Path, cwd: Path = CHECKOUT, on: Sequence[str] = ()
    ) -> None:
        self.port = free_port()
        results.mkdir()
        self.results = results
        files = ("--results", results, "--json-file", results / "locust")
        listen = (
            "-f",
            TRANSCRIBE,
            "--master",
            "--master-bind-port",
            str(self.port),
            "--expect-workers-max-wait",
            f"{PATIENCE_S:g}",
        )
        words = ("--spawn-rate", "100", "--no-preflight", *words)
        self.master = locust("--host", host, *listen, *files, *words, cwd=cwd, on=on)

    def worker(
        self, cwd: Path = CHECKOUT, on: Sequence[str] = (), master: str = "127.0.0.1", **env: str
    ) -> subprocess.Popen[str]:
        command = [*on, sys.executable, "-m", "locust", "-f", str(TRANSCRIBE), "--worker"]
        command += ["--master-host", master, "--master-port", str(self.port)]
        return subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "LOCUST_SKIP_MONKEY_PATCH": "", **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def lines(self, name: str = "records.jsonl") -> int:
        file = self.results / name
        return file.read_bytes().count(b"\n") if file.exists() else 0


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_S)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def in_rows(done: Run, name: str) -> int:
    """Sum a field of Locust's own statistics over requests and sessions."""
    return sum(row[name] for (method, _), row in done.rows.items() if method in ("POST", "WS"))
