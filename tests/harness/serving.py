"""Start the embedded server for a test, on a free port, and end it."""

import base64
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from harness.forked import Forked
from harness.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parent.parent.parent
SERVE = ROOT / "scripts" / "serve.py"
_READY = re.compile(r"asr_server: \w+ on (https?://\S+)")


@contextmanager
def ending(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Terminate a process at the end of the block. Kill it if it does not end."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()


@contextmanager
def running(*args: str, on: Sequence[str] = ()) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server with these options: its URL and its process, which ends with the block.

    `on` is a command prefix that runs it on another host.
    """
    command = [*on, sys.executable, str(SERVE), "--port", "0", *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    with process.stdout, ending(process):
        line = process.stdout.readline()
        ready = _READY.match(line)
        assert ready, f"the server did not start: {line!r}, exit code {process.poll()}"
        yield ready[1], process


@contextmanager
def serve(*args: str, on: Sequence[str] = ()) -> Iterator[str]:
    """A server with these options: its URL, such as http://127.0.0.1:40001."""
    if on:
        with running(*args, on=on) as (url, _):
            yield url
        return
    process = Forked("server", ["--port", "0", *args], ROOT, os.environ)
    wait_until(lambda: "\n" in process.out or process.ended(), "the server")
    ready = _READY.match(process.out)
    assert ready, f"the server did not start: {process.communicate(PATIENCE_S)}"
    try:
        yield ready[1]
    finally:
        if not process.ended():
            process.terminate()
        process.communicate(PATIENCE_S)


def run_to_end(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the server with options that make it end by itself."""
    command = [sys.executable, str(SERVE), *args]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S, check=False, env=env or None
    )


def chat_body(audio: bytes = b"RIFF", **fields: Any) -> dict[str, Any]:
    """The body of a streamed chat completion with usage; `fields` replace or add to it."""
    url = "data:audio/wav;base64," + base64.b64encode(audio).decode()
    content = [{"type": "audio_url", "audio_url": {"url": url}}, {"type": "text", "text": "Transcribe."}]
    body = {"model": "default", "messages": [{"role": "user", "content": content}], "stream": True}
    return body | {"stream_options": {"include_usage": True}} | fields


def connect(url: str) -> http.client.HTTPConnection:
    """A plain connection, which shows faults as close to the socket as possible."""
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)


def post(
    url: str, body: dict[str, Any] | bytes, headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """POST a chat completion on a new connection: status, headers and the complete body.

    Raises:
        OSError, http.client.HTTPException: the connection failed.
    """
    connection = connect(url)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"} | (headers or {}))
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def events(body: bytes) -> list[Any]:
    """The data of each event, decoded from JSON; `[DONE]` as text."""
    data = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [entry.decode() if entry == b"[DONE]" else json.loads(entry) for entry in data]


def text_of(body: bytes) -> str:
    """All content of a stream."""
    choices = [choice for event in events(body) if event != "[DONE]" for choice in event.get("choices", [])]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def wait_until(reached: Callable[[], Any], what: str, pause: Callable[[float], object] = time.sleep) -> Any:
    """Wait until a condition holds, and return its value. `pause` sleeps between two checks."""
    until = time.monotonic() + PATIENCE_S
    while not (found := reached()):
        assert time.monotonic() < until, f"{what}: not within {PATIENCE_S:g} s"
        pause(0.02)
    return found


def running_streams(host: str) -> int:
    """The number of requests that the server is serving, by its own metrics."""
    return gauges(host)[0]


def gauges(host: str) -> tuple[int, int]:
    """The numbers of requests that the server is serving and that wait in its queue."""
    with urlopen(f"{host}/metrics", timeout=PATIENCE_S) as answer:
        page = answer.read().decode()
    running, queued = (re.search(rf"sglang:num_{name}_reqs\{{[^}}]*\}} (\d+)", page) for name in ("running", "queue"))
    return int(running[1]) if running else 0, int(queued[1]) if queued else 0
