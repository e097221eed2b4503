"""SIGINT and SIGTERM at any moment of any command: one line, a suitable exit code, nothing left running, and a record
of each request that the server received.

A moment is a state that the command has reached, or a time after it starts to handle signals; on a busy machine, the
latter hits other states. SIGNALS=N adds N random times to each command; SIGNALS=60 covers every 100 ms.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import zmq
from locust.rpc import Message

from asr_load import signals
from conftest import CHECKOUT
from harness.ports import free_port
from harness.serving import running_streams, serve, wait_until

pytestmark = pytest.mark.long

SERVER = ("--engine", "scripted", "--tokens", "20", "--ttft-ms", "100", "--itl-ms", "20")
"""Options for streams of half a second."""

PATIENCE_S = 90.0
"""Long enough for busy machines."""

ENDLESS = ("-t", "3600", "--stop-timeout", "3600", "--stage-time", "3600")
"""Options of a test that only ends by a signal."""

STEPS, STEP_S = 60, 0.1
TRIED = int(os.environ.get("SIGNALS", "0"))


@dataclass
class Server:
    url: str
    stamps: Path

    def ids(self, run: str) -> set[str]:
        """Ids of the requests of a run that the server received."""
        seen = [json.loads(line)["request_id"] for line in self.stamps.read_text().splitlines()]
        return {id for id in seen if id.startswith(f"{run}-")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    stamps = tmp_path_factory.mktemp("server") / "stamps"
    with serve(*SERVER, "--stamps", str(stamps)) as url:
        yield Server(url, stamps)


class Life:
    """A command that runs in a new session, with its output and results so far."""

    def __init__(self, words: list[str], results: Path, log: Path) -> None:
        self.results, self._log = results, log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=CHECKOUT,
                env={**os.environ, "LOCUST_SKIP_MONKEY_PATCH": "", "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def records(self) -> list[str]:
        """Request ids of the records, one per record."""
        file = self.results / "records.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [
            f"{self.run}-{record['worker']}-{record['seq']}"
            for record in (json.loads(line) for line in lines if line.endswith("\n"))
        ]

    @property
    def has_begun(self) -> bool:
        """Whether there is something to judge: a record, or a search."""
        return bool(self.records) or (self.results / "capacity.json").exists()

    @property
    def run(self) -> str:
        id: str = json.loads((self.results / "run.json").read_text())["id"]
        return id

    def catches_signals(self) -> bool:
        """Whether the process handles SIGTERM, which plain Python does not."""
        return catches(self.process.pid, signal.SIGTERM)

    def reach(self, moment: Callable[[Life], bool]) -> None:
        """Wait until the command reaches this moment or ends."""
        wait_until(lambda: self.process.poll() is not None or moment(self), "the moment")

    def left(self) -> list[str]:
        """Command lines of the processes left in the session."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "status"]):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.info["cmdline"] or []))
        return found

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


def catches(pid: int, stop: signal.Signals) -> bool:
    """Whether a process blocks a signal or has a handler for it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    masks = re.findall(r"^Sig(?:Blk|Cgt):\s*(\w+)", status, re.M)
    return any(int(mask, 16) >> (stop - 1) & 1 for mask in masks)


def fleet(kind: str) -> list[str]:
    port = str(free_port())
    return {
        "fleet": ["--processes", "2", "--master-bind-port", port, "--master-port", port],
        "master": ["--master", "--expect-workers", "2", "--master-bind-port", port],
        "worker": ["--worker", "--master-port", port],
        "workers": ["--worker", "--processes", "2", "--master-port", port],
    }[kind]


def words_of(command: str, server: Server, clips: Path, folder: Path) -> list[str]:
    files = ["--data", str(clips), "--results", str(folder / "r"), "--host", server.url, "--stop-timeout", "10"]
    load = ["--headless", "-u", "3", "-r", "10", "-t", "2", "--only-summary"]
    asr_load = ["-m", "asr_load.cli.main"]
    words = {
        "run": [*asr_load, "run", *load, *files],
        "locust": ["-m", "locust", *load, *files],
        "fleet": [*asr_load, "run", *load, *files, *fleet("fleet")],
        "master": [*asr_load, "run", *load, *files, *fleet("master")],
        "worker": [*asr_load, "run", *fleet("worker")],
        "workers": [*asr_load, "run", *fleet("workers")],
        "web UI": [*asr_load, "run", *files, "--web-port", str(free_port())],
        "autostart": [*asr_load, "run", *load[1:], *files, "--autostart", "--web-port", str(free_port())],
        "shape": [*asr_load, "run", *load, *files, "--shape", "ramp", "--stages", "2", "--stage-time", "1"],
        "search": [
            *asr_load, "capacity", "--headless", "-u", "2", *files, "--slo", "ttft:p95:5000", "--step-time", "2",
            "--allow-client-bound",
        ],
        "repeats": [*asr_load, "run", "--repeats", "2", *load, *files],
        "prepare": ["scripts/prepare.py", "--dataset", str(clips.parent / "set"), "--out", str(folder / "r"),
                    "--processes", "2"],
        "report": ["scripts/report.py", str(folder / "r")],
        "serve": ["scripts/serve.py", "--port", "0", *SERVER],
        "calibrate": ["scripts/calibrate.py"],
        "bench": ["scripts/bench.py", "--dataset", str(clips.parent / "set"), *files, "--concurrency", "3"],
    }  # fmt: skip
    return words[command]


def after(seconds: float) -> Callable[[Life], bool]:
    """A moment this many seconds after the command started to handle signals."""
    began: list[float] = []

    def moment(life: Life) -> bool:
        if not began and life.catches_signals():
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] >= seconds

    return moment


def says(text: str) -> Callable[[Life], bool]:
    return lambda life: text in life.said


def has_records(life: Life) -> bool:
    return (life.results / "records.jsonl").exists() and (life.results / "records.jsonl").stat().st_size > 0


MOMENTS: dict[str, dict[str, Callable[[Life], bool]]] = {
    "run": {
        "first line": after(0),
        "imports": after(0.3),
        "init": says("Starting Locust"),
        "begun": says("Ramping to"),
        "records": has_records,
        "drain": says("--run-time limit reached"),
        "end": says("Shutting down"),
    },
    "locust": {"init": says("Starting Locust"), "records": has_records},
    "fleet": {
        "first line": after(0),
        "init": says("Starting Locust"),
        "workers": says("reported as ready"),
        "records": has_records,
        "drain": says("--run-time limit reached"),
    },
    "master": {"init": says("Starting Locust"), "waiting": says("waiting for workers")},
    "worker": {"waiting": says("waiting for a master")},
    "workers": {"waiting": says("waiting for a master")},
    "web UI": {"init": says("Starting Locust"), "idle": says("Starting web interface")},
    "autostart": {"records": has_records},
    "shape": {"records": has_records},
    "search": {"init": says("Starting Locust"), "records": has_records},
    "repeats": {"first run": says("run 1 of 2"), "imports": after(1.0)},
    "prepare": {"first line": after(0), "imports": after(0.5), "work": after(2.0)},
    "report": {"first line": after(0), "imports": after(0.5)},
    "serve": {"first line": after(0), "serving": says("asr_server: scripted on")},
    "calibrate": {"imports": after(0.3), "load": says("Server on")},
    "bench": {"first line": after(0), "prepared": says("clips,"), "load": after(4.0)},
}


def cases() -> Iterator[tuple[str, str, Callable[[Life], bool], signal.Signals]]:
    """Each command with each of its moments, alternating between the signals."""
    chance, both = random.Random(0), itertools.cycle((signal.SIGINT, signal.SIGTERM))
    for command, moments in MOMENTS.items():
        for name, moment in moments.items():
            yield command, name, moment, next(both)
        # During its imports, Locust responds to Ctrl-C with a stack trace.
        for step in sorted(chance.sample(range(STEPS), TRIED)) if command != "locust" else ():
            yield command, f"{step * STEP_S:.1f} s", after(step * STEP_S), next(both)


Case = tuple[str, Callable[[Life], bool], signal.Signals]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param((command, moment, stop), id=f"{command}-{name}-{stop.name}")
        for command, name, moment, stop in cases()
    ],
)
def test_signal_at_any_moment_of_any_command(
    server: Server, clips: Path, finished: Path, tmp_path: Path, case: Case
) -> None:
    command, moment, stop = case
    if command == "report":
        shutil.copytree(finished, tmp_path / "r")
    life = Life(words_of(command, server, clips, tmp_path), tmp_path / "r", tmp_path / "log")
    code, left = ended(life, moment, lambda: life.process.send_signal(stop))
    said = life.said
    assert "Traceback" not in said, said
    assert not left
    fits = code == 128 + stop
    if command in ("prepare", "report"):  # they may finish earlier
        fits = fits or code == 0
    elif command not in ("worker", "workers", "serve", "calibrate", "repeats") and life.has_begun:
        fits = code in (0, 1)
        nothing_is_lost(life, server)
    assert fits, (code, said)
    if code == 128 + stop:
        lines = [line for line in said.splitlines() if re.search("stopped|: stopping", line)]
        # A series of runs prints its line in addition to that of the run that it stopped.
        (line,) = [line for line in lines if line.startswith("stopped after run ")] or lines
        assert stop.name in line or "is not complete" in line


LATE = """
import os, signal
from asr_load import signals
signals.catch()
class Late:
    def __del__(self):
        os.kill(os.getpid(), {number})
late = Late()  # deleted with the module's names, when the handlers are gone
"""


@pytest.mark.parametrize("stop", signals.STOPS)
def test_signal_during_interpreter_shutdown_keeps_the_exit_code(stop: signal.Signals) -> None:
    done = subprocess.run([sys.executable, "-c", LATE.format(number=int(stop))], check=False)
    assert done.returncode == 0


def ended(life: Life, moment: Callable[[Life], bool], act: Callable[[], object]) -> tuple[int, list[str]]:
    """Do something at a moment of a command. Return its exit code and the processes that it left running."""
    try:
        life.reach(moment)
        act()
        return life.process.wait(PATIENCE_S), life.left()
    finally:
        life.kill()


def nothing_is_lost(life: Life, server: Server) -> None:
    """Check that there is a summary, and one record of each request that the server received."""
    assert (life.results / "summary.json").exists()
    wait_until(lambda: running_streams(server.url) == 0, "the server has noticed")
    assert len(set(life.records)) == len(life.records)
    assert server.ids(life.run) <= set(life.records)


@pytest.fixture(scope="module")
def finished(server: Server, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    results = tmp_path_factory.mktemp("finished") / "r"
    command = [sys.executable, "-m", "asr_load.cli.main", "run"]
    words = [*command, "--headless", "-u", "2", "--requests", "4", "--no-preflight"]
    files = ["--host", server.url, "--data", str(clips), "--results", str(results)]
    environment = {**os.environ, "LOCUST_SKIP_MONKEY_PATCH": ""}
    subprocess.run([*words, *files], cwd=CHECKOUT, env=environment, capture_output=True, check=True)
    return results


def test_ctrl_c_in_a_terminal_ends_the_option_check_of_bench(server: Server, clips: Path, tmp_path: Path) -> None:
    """The process that checks the options receives it too."""
    life = Life(words_of("bench", server, clips, tmp_path), tmp_path / "r", tmp_path / "log")
    checks: list[psutil.Process] = []

    def checking(life: Life) -> bool:
        checks[:] = [
            child
            for child in psutil.Process(life.process.pid).children()
            if "check_options" in " ".join(child.cmdline()) and catches(child.pid, signal.SIGINT)
        ]
        return bool(checks)

    code, _ = ended(life, checking, lambda: os.killpg(life.process.pid, signal.SIGINT))
    assert (code, life.said) == (130, "stopped (SIGINT)\n")
    assert not any(check.is_running() for check in checks)


def test_ctrl_c_in_a_terminal_ends_a_fleet_in_order(server: Server, clips: Path, tmp_path: Path) -> None:
    """The master and its workers receive it, but their streams may finish."""
    words = [*words_of("fleet", server, clips, tmp_path), *ENDLESS]
    life = Life(words, tmp_path / "r", tmp_path / "log")
    code, left = ended(life, has_records, lambda: os.killpg(life.process.pid, signal.SIGINT))
    assert (code, left) == (0, []), life.said
    assert life.said.count(": stopping the test") == 1
    assert "Traceback" not in life.said
    nothing_is_lost(life, server)
    assert "unfinished" not in (life.results / "records.jsonl").read_text()


@pytest.mark.parametrize("command", ["run", "fleet", "shape"])
def test_second_ctrl_c_cuts_requests_off_and_records_them(clips: Path, tmp_path: Path, command: str) -> None:
    stamps = tmp_path / "stamps"
    with serve("--engine", "scripted", "--tokens", "5000", "--itl-ms", "50", "--stamps", str(stamps)) as url:
        words = [*words_of(command, Server(url, stamps), clips, tmp_path), *ENDLESS, "--no-preflight"]
        life = Life(words, tmp_path / "r", tmp_path / "log")

        def twice() -> None:
            life.process.send_signal(signal.SIGINT)
            life.reach(says("requests in flight may finish within 3600 s"))
            life.process.send_signal(signal.SIGINT)

        code, left = ended(life, lambda _: running_streams(url) > 0, twice)
        assert (code, left) == (1, []), life.said
        assert "Traceback" not in life.said
        nothing_is_lost(life, Server(url, stamps))
    outcomes = {json.loads(line)["outcome"] for line in (life.results / "records.jsonl").read_text().splitlines()}
    assert outcomes == {"unfinished"}


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_idle_workers_end_with_the_command_that_forked_them(clips: Path, tmp_path: Path, stop: signal.Signals) -> None:
    server = Server("http://127.0.0.1:9", tmp_path / "stamps")
    words = words_of("master", server, clips, tmp_path)
    master = Life([*words, "--expect-workers", "9", "--no-preflight"], tmp_path / "r", tmp_path / "master.log")
    port = words[words.index("--master-bind-port") + 1]
    workers = ["-m", "asr_load.cli.main", "run", "--worker", "--processes", "2", "--master-port", port]
    life = Life(workers, tmp_path / "none", tmp_path / "workers.log")
    try:
        moment = lambda _: master.said.count("reported as ready") == 2  # noqa: E731
        code, left = ended(life, moment, lambda: life.process.send_signal(stop))
        assert master.process.poll() is None
    finally:
        master.kill()
    assert (code, left) == (128 + stop, []), life.said
    assert f"{stop.name}: stopping the workers of this command" in life.said
    assert "Traceback" not in life.said


def test_workers_end_when_their_master_is_killed(clips: Path, tmp_path: Path) -> None:
    """The master is killed while it waits for streams that take very long."""
    stamps = tmp_path / "stamps"
    with serve("--engine", "scripted", "--tokens", "9000", "--itl-ms", "100", "--stamps", str(stamps)) as url:
        words = [*words_of("fleet", Server(url, stamps), clips, tmp_path), *ENDLESS, "--no-preflight"]
        life = Life([*words, "--max-tokens", "9000"], tmp_path / "r", tmp_path / "log")
        try:
            life.reach(lambda _: running_streams(url) == 3)
            life.process.send_signal(signal.SIGINT)
            life.reach(says("requests in flight may finish within 3600 s"))
            life.process.kill()
            life.process.wait(PATIENCE_S)
            wait_until(lambda: not life.left(), "the workers have ended")
        finally:
            life.kill()
    own = "".join(file.read_text() for file in (tmp_path / "r").glob("worker-*.jsonl"))
    assert [json.loads(line)["outcome"] for line in own.splitlines()] == ["unfinished"] * 3


def test_worker_ends_when_its_master_dies_before_its_first_heartbeat(tmp_path: Path) -> None:
    """Without a first heartbeat, Locust waits forever."""
    (tmp_path / "quick.py").write_text(
        "from asr_load.load import interruption\n"
        "from locustfiles.transcribe import SpeechUser as SpeechUser\n"
        "interruption.SILENT_S = 3.0\n"
    )
    with zmq.Context() as context, context.socket(zmq.ROUTER) as master:
        port = master.bind_to_random_port("tcp://127.0.0.1")
        life = Life(["-m", "locust", "-f", str(tmp_path / "quick.py"), "--worker", "--master-port", str(port)],
                    tmp_path / "r", tmp_path / "log")  # fmt: skip
        try:
            assert master.poll(round(PATIENCE_S * 1e3))
            worker, _ = master.recv_multipart()
            master.send_multipart([worker, Message("ack", {"index": 0}, "master").serialize()])
            assert life.process.wait(PATIENCE_S) == 1
        finally:
            life.kill()
            context.destroy(linger=0)
    assert "the master is gone: stopping this worker" in life.said
    assert "Traceback" not in life.said


FORKED = """
import os, time
from asr_load import signals
signals.catch()
child = signals.fork_child(os.fork)
print(child, flush=True)
time.sleep(3600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a child looks for its parent")
def test_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", FORKED], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = {int(parent.stdout.readline()), int(parent.stdout.readline())} - {0}
        parent.kill()
    (child,) = children
    try:
        wait_until(lambda: not is_running(child), "the child has ended")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
