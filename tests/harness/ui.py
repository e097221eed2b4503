"""Locust's web UI as a process, and what a user does in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from conftest import CHECKOUT
from harness.fleets import end
from harness.patience import PATIENCE_S
from harness.ports import free_port
from harness.serving import wait_until


class Ui:
    """A `locust` process with its web UI, and its workers."""

    def __init__(self, page: str, results: Path, processes: list[subprocess.Popen[str]], log: Path) -> None:
        self.page, self.results, self.processes, self._log = page, results, processes, log

    def post(self, path: str, **fields: str | int | float | list[str]) -> dict[str, Any]:
        with urlopen(f"{self.page}{path}", urlencode(fields, doseq=True).encode(), timeout=PATIENCE_S) as answer:
            text = answer.read()
        found: dict[str, Any] = json.loads(text) if text.startswith(b"{") else {"text": text.decode()}
        return found

    def text_of(self, path: str) -> str:
        with urlopen(f"{self.page}{path}", timeout=PATIENCE_S) as answer:
            text: str = answer.read().decode()
        return text

    def get(self, path: str) -> dict[str, Any]:
        with urlopen(f"{self.page}{path}", timeout=PATIENCE_S) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def start(self, **fields: str | int | float) -> None:
        answer = self.post("/swarm", **{"user_count": 4, "spawn_rate": 100, **fields})
        assert answer["success"], answer

    def folder(self, number: int) -> Path:
        return self.results if number == 1 else self.results.with_name(f"{self.results.name}-{number}")

    def lines(self, number: int) -> int:
        file = self.folder(number) / "records.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def ended(self, number: int) -> bool:
        return (self.folder(number) / "summary.json").exists()

    def summary(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder(number) / "summary.json").read_text())
        return found

    def asked(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder(number) / "run.json").read_text())
        return found

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")


@contextmanager
def ui(
    kind: str,
    host: str,
    clips: Path,
    folder: Path,
    *words: str,
    files: Sequence[str] = (),
    workers: Sequence[str] = (),
    preflight: bool = False,
    **env: str,
) -> Iterator[Ui]:
    """Start Locust's web UI. `workers` are options of separate workers. `preflight` sends a trial request first."""
    web, port = str(free_port()), str(free_port())
    results, log = folder / "r", folder / "log"
    locust = [sys.executable, "-m", "locust", *files]
    options = ["--host", host, "--data", str(clips), "--results", str(results), "--web-port", web, *words]
    options += [] if preflight else ["--no-preflight"]
    listen, join = ["--master-bind-port", port], ["--master-port", port]
    commands = {
        "one process": [[*locust, *options]],
        "--processes": [[*locust, *options, "--processes", "2", *listen, *join]],
        "master and workers": [[*locust, *options, "--master", *listen], *[[*locust, "--worker", *join, *workers]] * 2],
        "a master alone": [[*locust, *options, "--master", *listen]],
    }[kind]
    patched = {**os.environ, "LOCUST_SKIP_MONKEY_PATCH": "", **env}
    with log.open("wb") as said:
        processes = [
            subprocess.Popen(command, cwd=CHECKOUT, env=patched, stdout=said, stderr=said, text=True)
            for command in commands
        ]
    running = Ui(f"http://127.0.0.1:{web}", results, processes, log)
    try:
        wait_until(lambda: answers(running) or processes[0].poll() is not None, "the page")
        assert processes[0].poll() is None, running.said
        if kind not in ("one process", "a master alone"):
            wait_until(lambda: len(running.get("/stats/requests")["workers"]) == 2, "two workers")
        yield running
    finally:
        for process in processes[:1]:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        end(*processes)


def answers(running: Ui) -> bool:
    try:
        with urlopen(running.page, timeout=PATIENCE_S):
            return True
    except OSError:
        return False
