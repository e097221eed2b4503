"""Starts the embedded server for a test, on a free port, and ends it."""

import base64
import http.client
import json
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

ROOT = Path(__file__).resolve().parent.parent.parent
SERVE = ROOT / "scripts" / "serve.py"
_READY = re.compile(r"asr_server: \w+ on (https?://\S+)")


@contextmanager
def running(*args: str, on: Sequence[str] = ()) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server with these options: its URL and its process, which is ended with the block.

    `on`: the words before its command, which put it on a host of its own.
    """
    command = [*on, sys.executable, str(SERVE), "--port", "0", *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        ready = _READY.match(line)
        assert ready, f"the server did not start: {line!r}, exit code {process.poll()}"
        yield ready[1], process
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.stdout.close()


@contextmanager
def serve(*args: str, on: Sequence[str] = ()) -> Iterator[str]:
    """A server with these options: its URL, such as http://127.0.0.1:40001."""
    with running(*args, on=on) as (url, _):
        yield url


def run_to_end(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the server where it must end by itself."""
    command = [sys.executable, str(SERVE), *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20, check=False, env=env or None)


def chat_body(audio: bytes = b"RIFF", **fields: Any) -> dict[str, Any]:
    """A streamed chat completion with usage; `fields` replace or add."""
    url = "data:audio/wav;base64," + base64.b64encode(audio).decode()
    content = [{"type": "audio_url", "audio_url": {"url": url}}, {"type": "text", "text": "Transcribe."}]
    body = {"model": "default", "messages": [{"role": "user", "content": content}], "stream": True}
    return body | {"stream_options": {"include_usage": True}} | fields


def connect(url: str) -> http.client.HTTPConnection:
    """A plain connection: faults are looked at as close to the socket as can be."""
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)


def post(
    url: str, body: dict[str, Any] | bytes, headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """POST a chat completion on a connection of its own: status, headers, the whole body.

    Raises:
        OSError, http.client.HTTPException: what the connection did instead.
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
    """The data of each event, decoded from JSON; `[DONE]` as it is."""
    data = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [entry.decode() if entry == b"[DONE]" else json.loads(entry) for entry in data]


def text_of(body: bytes) -> str:
    """All content of a stream."""
    choices = [choice for event in events(body) if event != "[DONE]" for choice in event.get("choices", [])]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def wait_until(reached: Callable[[], bool], what: str) -> None:
    """Wait for a condition; half a minute is for machines that are busy with other things."""
    until = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < until, f"{what}: not within 30 s"
        time.sleep(0.05)


def running_streams(host: str) -> int:
    """How many requests the server is serving, by its own metrics."""
    with urlopen(f"{host}/metrics", timeout=10) as answer:
        found = re.search(r"sglang:num_running_reqs\{[^}]*\} (\d+)", answer.read().decode())
    return int(found[1]) if found else 0
