"""Poll metrics pages, in a separate process: parsing the page of an engine takes tens of milliseconds of CPU, during
which a load generator would read no response."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import msgspec

from asr_load.engine.endpoint import Source
from asr_load.engine.metrics_page import Page, Poll, read_page
from asr_load.http.failure import words
from asr_load.http.server_info import NO_ANSWER, ask
from asr_load.text import Intake

MAX_PAGE_BYTES = 2 << 20
"""Maximum length of a page: twenty times that of SGLang's."""


def scrape(source: Source) -> Poll:
    """Read a metrics page. Whatever goes wrong is the `error` of the poll."""
    t, began = time.time(), time.monotonic()
    page, error = Page(), ""
    try:
        status, body = ask(source.url, source.headers, source.transport, limit=MAX_PAGE_BYTES)
    except NO_ANSWER as exception:
        error = Intake(source.secrets).line(words(exception))
    else:
        page, error = _read(status, body)
    took = time.monotonic() - began
    return Poll(**msgspec.structs.asdict(page), url=source.name, t=t, took=took, error=error)


def _read(status: int, body: bytes) -> tuple[Page, str]:
    """The page in a response, or an empty one and the error."""
    if status != HTTPStatus.OK:
        return Page(), f"the server returned {status}"
    if len(body) > MAX_PAGE_BYTES:
        return Page(), f"the page is longer than {MAX_PAGE_BYTES >> 20} MiB"
    try:
        page = read_page(body.decode("utf-8", "replace"))
    except Exception:  # the parser raises errors of many classes for text that is no metrics page
        return Page(), "the page is not in Prometheus' text format"
    return page, "" if page else "the page has no metric that asr-load knows"


def scrape_all(sources: Sequence[Source]) -> list[Poll]:
    """Read several pages at once."""
    greenlets = [gevent.spawn(scrape, source) for source in sources]
    gevent.joinall(greenlets)
    return [greenlet.get() for greenlet in greenlets]


class _Task(msgspec.Struct):
    """What the polling process is to do; it reads this from its standard input."""

    sources: list[Source]
    interval: float
    file: str


class Poller:
    """A process that polls pages until `stop`, and appends each poll to a file. It ends with this process."""

    def __init__(self, sources: Sequence[Source], interval: float, file: Path) -> None:
        task = msgspec.json.encode(_Task(list(sources), interval, str(file))) + b"\n"
        theirs, self._input = os.pipe()
        # gevent's Popen would fork, which copies all page tables and so stops this process for longer. Ctrl-C in a
        # terminal must not reach the process, hence setsid: it ends when its input is closed.
        command = [sys.executable, "-m", __name__]
        try:
            self._pid = os.posix_spawn(
                sys.executable, command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 0)], setsid=True
            )
        except OSError:
            os.close(self._input)
            raise
        finally:
            os.close(theirs)
        os.write(self._input, task)

    def stop(self) -> None:
        """End the process. A poll in progress is lost."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._input)


def append_polls(file: Path, polls: Sequence[Poll]) -> None:
    """Append polls to a file, each as one line. Raises OSError."""
    lines = b"".join(msgspec.json.encode(poll) + b"\n" for poll in polls)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    try:
        os.write(descriptor, lines)  # at once, because another process may append too
    finally:
        os.close(descriptor)


def main() -> int:
    """Poll until the parent process closes standard input or ends."""
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Task)
    loops: list[Any] = [gevent.spawn(_poll, task, source) for source in task.sources]
    gevent.socket.wait_read(sys.stdin.fileno())
    gevent.killall(loops)
    return 0


def _poll(task: _Task, source: Source) -> None:
    due = time.monotonic()
    while True:
        with contextlib.suppress(OSError):  # a full disk ends the test through its records
            append_polls(Path(task.file), [scrape(source)])
        due = max(due + task.interval, time.monotonic())
        gevent.sleep(due - time.monotonic())


if __name__ == "__main__":
    sys.exit(main())
