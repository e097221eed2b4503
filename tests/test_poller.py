"""Polling of metrics pages: bad pages, and the process that polls."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import msgspec
import pytest

from asr_load.engine.endpoint import Source
from asr_load.engine.metrics_page import POLLS, Poll
from asr_load.engine.poller import MAX_PAGE_BYTES, Poller, append_polls, scrape, scrape_all
from asr_load.http import server_info
from asr_load.http.transport import Transport
from harness.patience import PATIENCE_S
from harness.proxies import listening, never_ending
from harness.serving import wait_until

PAGE = b"vllm:num_requests_running 3\n"
SECRET = "correct-horse-battery"


def source(address: str, path: str = "/metrics") -> Source:
    url = f"http://{address}{path}"
    return Source(url, {"Authorization": f"Bearer {SECRET}"}, Transport(), (SECRET,), url)


@contextmanager
def serving(body: bytes, status: str = "200 OK", heads: list[bytes] | None = None) -> Iterator[str]:
    """The address of a server that gives each request this response."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            head = connection.recv(1 << 16)
            if heads is not None:
                heads.append(head)
            connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    with listening(serve) as address:
        yield address


def test_page_is_read() -> None:
    heads: list[bytes] = []
    with serving(PAGE, heads=heads) as address:
        poll = scrape(source(address, "/metrics?model=a"))
    assert (poll.error, poll.engine, poll.gauges) == ("", "vLLM", {"running": 3.0})
    assert poll.url == f"http://{address}/metrics?model=a"
    assert 0 < poll.took < PATIENCE_S
    assert heads[0].startswith(b"GET /metrics?model=a HTTP/1.1\r\n")
    assert b"Authorization: Bearer " + SECRET.encode() in heads[0]


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", "404 Not Found", "the server returned 404"),
        (b'{"iteration": 1}', "200 OK", "the page is not in Prometheus' text format"),
        (b"<html></html>", "200 OK", "the page is not in Prometheus' text format"),
        (b"\xff\xfe\x00", "200 OK", "the page is not in Prometheus' text format"),
        (b"node_cpu_seconds_total 5\n", "200 OK", "the page has no metric that asr-load knows"),
        (b"vllm:num_requests_running NaN\n", "200 OK", "the page has no metric that asr-load knows"),
        (PAGE + b"#" * MAX_PAGE_BYTES, "200 OK", "the page is longer than 2 MiB"),
    ],
    ids=["404", "JSON", "HTML", "bytes", "unknown", "NaN", "long"],
)
def test_bad_page_is_an_error_of_its_poll(body: bytes, status: str, error: str) -> None:
    with serving(body, status) as address:
        poll = scrape(source(address))
    assert (poll.error, bool(poll)) == (error, False)


def test_page_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_info, "PATIENCE_S", 0.5)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with (
        never_ending(head, b"1\r\na\r\n") as drips,
        never_ending(head, b"10000\r\n%b\r\n" % bytes(1 << 16), 0) as floods,
    ):
        polls = scrape_all([source(drips), source(floods)])
    assert polls[0].error == "no complete response within 0.5 s"
    assert polls[1].error.startswith(("the page is longer", "no complete response", "a response of more than"))


def test_secret_in_an_error_is_removed() -> None:
    with serving(b"", f"{SECRET} OK") as address:
        assert SECRET not in scrape(source(address)).error


def polls_in(folder: Path) -> list[Poll]:
    file = folder / POLLS
    return [msgspec.json.decode(line, type=Poll) for line in file.read_bytes().splitlines()] if file.exists() else []


def test_polls_are_appended(tmp_path: Path) -> None:
    for t in (1.0, 2.0):
        append_polls(tmp_path / POLLS, [Poll(url="u", t=t, took=0.0)])
    assert [poll.t for poll in polls_in(tmp_path)] == [1.0, 2.0]


def test_process_polls_until_it_is_stopped(tmp_path: Path) -> None:
    with serving(PAGE) as address, serving(b"", "404 Not Found") as missing:
        poller = Poller([source(address), source(missing)], 0.05, tmp_path / POLLS)
        wait_until(lambda: len(polls_in(tmp_path)) >= 6, "six polls", pause=lambda _: gevent.sleep(0.01))
        poller.stop()
        polls = polls_in(tmp_path)
    for url, error in ((address, ""), (missing, "the server returned 404")):
        of_page = [poll for poll in polls if poll.url == f"http://{url}/metrics"]
        assert len(of_page) > 1
        assert {poll.error for poll in of_page} == {error}
    assert SECRET not in (tmp_path / POLLS).read_text()


def test_process_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from pathlib import Path\n"
        "from asr_load.engine.poller import Poller\n"
        "from asr_load.engine.endpoint import Source\n"
        "from asr_load.http.transport import Transport\n"
        f"source = Source('http://127.0.0.1:1/', {{}}, Transport(), (), 'u')\n"
        f"print(Poller([source], 0.05, Path({str(tmp_path / POLLS)!r}))._pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(parent.stdout.readline())
        wait_until(lambda: bool(polls_in(tmp_path)), "a poll")
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not _runs(pid), "the end of the polling process")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")
