"""Processes of Locust and of the embedded server, forked from one that has already imported it, as imports take most of
the time of a short run.

This file is also the program that forks. A job is a folder with job.json: the arguments, the working directory and the
environment. The process writes its output to files in that folder, and its exit status to a pipe.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO


class Forked:
    """A running process with the methods of subprocess.Popen that wait for its end. `program` is locust or server."""

    returncode: int

    def __init__(self, program: str, words: Sequence[str | Path], cwd: Path, env: Mapping[str, str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="forked-"))
        os.mkfifo(self._folder / "ended")
        self._ended = os.open(self._folder / "ended", os.O_RDONLY | os.O_NONBLOCK)
        job = {"words": list(map(str, words)), "cwd": str(cwd), "env": dict(env)}
        (self._folder / "job.json").write_text(json.dumps(job))
        os.write(_parent(program).fileno(), f"{self._folder}\n".encode())

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end. Return its standard output and standard error."""
        if not self.ended(timeout):
            raise subprocess.TimeoutExpired("a forked process", timeout)
        self.returncode = os.waitstatus_to_exitcode(int(os.read(self._ended, 100)))
        os.close(self._ended)
        printed = self.out, (self._folder / "err").read_text()
        shutil.rmtree(self._folder)
        return printed

    def ended(self, timeout: float = 0) -> bool:
        return bool(select.select([self._ended], [], [], timeout)[0])

    @property
    def out(self) -> str:
        """Standard output so far."""
        file = self._folder / "out"
        return file.read_text() if file.exists() else ""

    def terminate(self) -> None:
        os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    @property
    def _pid(self) -> int:
        return int((self._folder / "pid").read_text())


@functools.cache
def _parent(program: str) -> IO[bytes]:
    """The pipe to the forking process, which reads the folders of jobs from it. That process ends with this one."""
    env = {**os.environ, "LOCUST_SKIP_MONKEY_PATCH": ""}
    started = subprocess.Popen([sys.executable, __file__, program], stdin=subprocess.PIPE, env=env)
    assert started.stdin is not None

    def end() -> None:
        assert started.stdin is not None
        started.stdin.close()
        started.wait()

    atexit.register(end)
    return started.stdin


def _import_locust() -> None:
    import jiwer  # noqa: F401
    import kaldialign  # noqa: F401
    import locust.main  # noqa: F401
    import whisper_normalizer.english  # noqa: F401

    import asr_load.load.lifecycle
    import asr_load.load.preflight
    import asr_load.load.user  # noqa: F401


def _import_server() -> None:
    import uvicorn.logging
    import uvicorn.loops.uvloop  # noqa: F401

    import asr_server.app
    import asr_server.metrics
    import asr_server.scripted
    import asr_server.transport  # noqa: F401


def _jobs() -> Path:
    """Fork for each folder received, until there are no more. Return only in the processes that run a job."""
    fork, waitpid = os.fork, os.waitpid
    if "gevent" in sys.modules:  # gevent's fork would create an event loop that all processes share
        from gevent import monkey

        fork, waitpid = (monkey.get_original("os", name) for name in ("fork", "waitpid"))
    left = b""
    while data := os.read(0, 65536):
        *lines, left = (left + data).split(b"\n")
        for folder in map(Path, map(os.fsdecode, lines)):
            if fork() == 0:
                if (process := fork()) == 0:
                    return folder
                _, status = waitpid(process, 0)
                (folder / "ended").write_text(str(status))
                os._exit(0)
        _reap(waitpid)
    os._exit(0)


def _reap(waitpid: Callable[[int, int], tuple[int, int]]) -> None:
    with contextlib.suppress(ChildProcessError):
        while waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(folder: Path, program: str) -> None:
    """Turn this process into one that a shell would have started for the job."""
    (folder / "pid").write_text(str(os.getpid()))
    job = json.loads((folder / "job.json").read_text())
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    sys.path[0], sys.argv = job["cwd"], [program, *job["words"]]


if __name__ == "__main__":
    if sys.argv[1] == "locust":
        _import_locust()
        _become(_jobs(), "locust")
        runpy.run_module("locust", run_name="__main__", alter_sys=True)
    else:
        _import_server()
        _become(_jobs(), "serve.py")
        from asr_server.main import main

        main()
