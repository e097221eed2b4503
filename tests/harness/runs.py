"""A run of `locust` as a process, and its output and files."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import CHECKOUT
from harness.forked import Forked
from harness.patience import PATIENCE_S

FAST = ("--engine", "scripted", "--tokens", "6", "--ttft-ms", "20", "--itl-ms", "3")


def locust(
    *words: str | Path,
    new_group: bool = False,
    cwd: Path = CHECKOUT,
    env: dict[str, str] | None = None,
    on: Sequence[str] = (),
) -> subprocess.Popen[str]:
    command = [*on, sys.executable, "-m", "locust", "--headless", "--only-summary", *map(str, words)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**(env or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=new_group,
    )


def asr_load(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `asr-load` with these words to its end, in the checkout."""
    code = "import sys; from asr_load.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


class Run:
    """The output and files of a finished `locust` process."""

    def __init__(self, process: subprocess.Popen[str] | Forked, results: Path) -> None:
        try:
            self.out, self.err = process.communicate(timeout=5 * PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        self.code = process.returncode
        self.results = results

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.results / "records.jsonl").read_text().splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.results / "summary.json").read_text())
        return found

    @property
    def rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Locust's own statistics (--json-file), by type and name."""
        found = json.loads((self.results / "locust.json").read_text())
        return {(row["method"], row["name"]): row for row in found}


def run(host: str, clips: Path, results: Path, *words: str | Path, preflight: bool = False, **env: str) -> Run:
    """Run `locust` with these options to its end. Without `preflight`, only the requests of the test are sent."""
    results.mkdir(exist_ok=True)
    if not preflight:
        words = (*words, "--no-preflight")
    files = ("--data", clips, "--results", results, "--json-file", results / "locust")
    command = ("--headless", "--only-summary", "--host", host, *files, "--spawn-rate", "100", *words)
    return Run(Forked("locust", command, CHECKOUT, environment(**env)), results)


def check_in_new_process(code: str) -> None:
    """Run Python code, with tests/ as its folder, in a process that has imported nothing of asr-load yet. Fails if it
    raises."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT / "tests",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def environment(**env: str) -> dict[str, str]:
    """The environment of a process that sends load."""
    return {**os.environ, "LOCUST_SKIP_MONKEY_PATCH": "", **env}


POST = ("POST", "/v1/chat/completions")


@contextmanager
def canned(
    answers: list[bytes], tls: ssl.SSLContext | None = None, *, refuses: bool = False
) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives each request the next response, as bytes, and closes the connection after a response without
    a length.

    Yields its URL and the requests it received. An empty response closes the connection without a byte. With `refuses`,
    the server has one connection, which fails the TLS handshake or does not speak TLS.
    """
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            plain, _ = server.accept()
            with contextlib.suppress(OSError):
                if tls is None:
                    plain.recv(1 << 20)
                    plain.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                else:
                    with tls.wrap_socket(plain, server_side=True) as connection:
                        connection.recv(1)
            plain.close()

        def work() -> None:
            pending = list(answers)
            while pending:
                plain, _ = server.accept()
                with tls.wrap_socket(plain, server_side=True) if tls else plain as connection:
                    while pending:
                        request = b""
                        while not request.endswith(b"}") and (data := connection.recv(1 << 20)):
                            request += data
                        if not request:
                            break
                        asked.append(request)
                        answer = pending.pop(0)
                        connection.sendall(answer)
                        if b"content-length" not in answer.lower():
                            break

        thread = threading.Thread(target=refuse if refuses else work, daemon=True)
        thread.start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.getsockname()[1]}", asked
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"only {len(asked)} requests came"


def answer(text: str, *, length: bool) -> bytes:
    event = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body if length else f"{head}\r\n".encode() + body
