"""Messages to a master, from strangers and from rogue workers."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
import zmq
from locust import __version__
from locust.env import Environment
from locust.rpc import Message
from locust.runners import MasterRunner
from locust.stats import RequestStats

from asr_load.audio.shard import Shards
from asr_load.load import fleet_socket
from asr_load.settings import credentials
from asr_load.stream.record import Record, encode_record
from conftest import CHECKOUT
from harness.fleets import TRANSCRIBE, Fleet, end
from harness.patience import PATIENCE_S
from harness.ports import free_port
from harness.records import record, worker_info
from harness.runs import Run
from harness.serving import serve, wait_until

PACED = ("--engine", "scripted", "--tokens", "8", "--ttft-ms", "20", "--itl-ms", "5")
TOKEN = "a-token-of-more-than-16-characters"


class Rogue:
    """Anyone who can reach the port of a master."""

    def __init__(self, port: int, name: str) -> None:
        self.name = name
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, name.encode())
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def send(self, type: Any, data: Any, name: str | None = None) -> None:
        self.send_bytes(msgpack.dumps((type, data, name or self.name)))

    def send_bytes(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def hears(self, type: str, timeout_s: float = PATIENCE_S) -> Any:
        """The data of the next message of this type, or None if none arrives in time."""
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            if self.socket.poll(round(left * 1000)):
                found = msgpack.loads(self.socket.recv(), strict_map_key=False)
                if found[0] == type:
                    return found[1]
        return None


@contextmanager
def rogue(port: int, name: str) -> Iterator[Rogue]:
    made = Rogue(port, name)
    try:
        yield made
    finally:
        made.socket.close()


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


BYTES: list[tuple[bytes, ...]] = [
    (b"",),
    (b"\xc1",),
    (b"no msgpack at all",),
    (msgpack.dumps(7),),
    (msgpack.dumps(["heartbeat"]),),
    (msgpack.dumps(["heartbeat", None, None]),),
    (msgpack.dumps([None, None, "x"]),),
    (msgpack.dumps({"__datetime__": True, "as_str": "x"}),),
    (nested(5000),),
    (b"one", b"two"),
]
MESSAGES: list[tuple[Any, Any]] = [
    ("heartbeat", None),
    ("heartbeat", {"state": [], "current_cpu_usage": "x"}),
    ("heartbeat", {"state": "elsewhere", "current_cpu_usage": 1.0}),
    ("heartbeat", {"state": "ready", "current_cpu_usage": math.nan}),
    ("stats", None),
    ("stats", {"stats": 1, "errors": {}, "stats_total": {}}),
    ("spawning_complete", {"user_classes_count": {"SpeechUser": "many"}, "user_count": 1}),
    ("logs", {"worker_id": "another", "logs": []}),
    ("logs", 5),
    ("exception", {}),
    ("asr_time", None),
    ("asr_refuse", None),
    ("locustfile", None),
    ("client_ready", {"a": 1}),
]


@pytest.mark.long
def test_stranger_cannot_end_a_test_with_any_message(clips: Path, tmp_path: Path) -> None:
    """Real workers take part in the test, and lose nothing."""
    with serve(*PACED) as host:
        words = ("--data", clips, "-u", "4", "-t", "8", "--stop-timeout", "5", "--expect-workers", "2")
        fleet = Fleet(host, tmp_path / "r", *words)
        workers = [fleet.worker(), fleet.worker()]
        try:
            wait_until(lambda: fleet.lines() > 5, "records of both workers")
            for number, frames in enumerate(BYTES):
                with rogue(fleet.port, f"bytes{number}") as stranger:
                    stranger.send_bytes(*frames)
            for number, (type, data) in enumerate(MESSAGES):
                for known in (False, True):
                    with rogue(fleet.port, f"message{number}{known}") as stranger:
                        if known and type != "client_ready":
                            stranger.send("client_ready", __version__)
                            stranger.hears("ack")
                        stranger.send(type, data)
            with rogue(fleet.port, "liar") as stranger:
                stranger.send("quit", None, name="another")
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, *workers)
    real = [worker for worker in json.loads((done.results / "run.json").read_text())["workers"] if worker["ended"]]
    assert len(real) == 2
    assert sum(worker["recorded"] for worker in real) == len(done.records) == done.summary["requests"]["success"] > 20
    assert "Traceback" not in done.err
    assert "dropped worker bytes0: it sent a malformed message" in done.err
    assert "dropped worker liar: it sent a 'quit' message in the name of another" in done.err


def reporting(ids: list[str], absurd_info: bool) -> Callable[[Rogue, dict[str, Any]], None]:
    """A worker that sends one good record and several implausible ones, and then its own state."""

    def work(worker: Rogue, job: dict[str, Any]) -> None:
        number, now = job["parsed_options"]["asr_fleet"]["numbers"][worker.name], time.time()

        def made(seq: int, **changes: Any) -> Record:
            return record(seq, **({"clip": ids[0], "worker": number, "started_at": now} | changes))

        true = made(1)
        lines: list[Any] = [encode_record(one) for one in (true, true, made(2, clip="nowhere"), made(3, worker=77))]
        lines += [encode_record(made(4, started_at=now + 1e9)), encode_record(made(5, e2el=0.1))]
        lines += [encode_record(made(6)).replace(b"0.41", b"1e400")]
        info = worker_info(worker=number, started=7, recorded=7, users=-1 if absurd_info else 1)
        entry = {
            "name": "x",
            "method": "POST",
            "last_request_timestamp": now,
            "start_time": now,
            "num_requests": 0,
            "num_none_requests": 0,
            "num_failures": 0,
            "total_response_time": 0,
            "max_response_time": 0,
            "min_response_time": None,
            "total_content_length": 0,
            "response_times": {},
            "num_reqs_per_sec": {},
            "num_fail_per_sec": {},
        }
        report = {"records": lines, "worker": msgspec.to_builtins(info)}
        data = {
            "stats": [],
            "stats_total": entry,
            "errors": {},
            "user_count": 1,
            "user_classes_count": {"SpeechUser": 1},
        }
        worker.send("stats", {**data, "asr_load": report})

    return work


@pytest.mark.long
@pytest.mark.parametrize("absurd_info", [False, True])
def test_rogue_worker_cannot_distort_the_summary(clips: Path, tmp_path: Path, absurd_info: bool) -> None:
    ids = sorted(Shards(clips).ids())
    with serve(*PACED) as host:
        words = ("--data", clips, "-u", "4", "-t", "6", "--expect-workers", "2", "--allow-lost-workers")
        fleet = Fleet(host, tmp_path / "r", *words)
        workers = [fleet.worker()]
        try:
            wait_until(lambda: listens(fleet.port), "the master")
            with rogue(fleet.port, "rogue") as stranger:
                stranger.send("client_ready", __version__)
                job = stranger.hears("spawn")
                assert job is not None
                assert "sk-" not in json.dumps(job)
                reporting(ids, absurd_info)(stranger, job)
                done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, *workers)
    number = job["parsed_options"]["asr_fleet"]["numbers"]["rogue"]
    own = [one for one in done.records if one["worker"] == number]
    if absurd_info:
        assert not own
        assert "dropped worker rogue: its report is malformed (Expected `int` >= 0 - at `$.worker.users`)" in done.err
    else:
        assert [one["seq"] for one in own] == [1]
        assert done.summary["refused"] == 6
        assert re.search(r"refused \d+ records? of worker [01]:", done.out)
    assert done.summary["requests"]["success"] == len(done.records) > 10
    assert done.summary["ttft"]["max"] < done.summary["wall_s"]


def listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.long
def test_only_workers_with_the_token_can_join(clips: Path, tmp_path: Path) -> None:
    environ = {**os.environ, credentials.TOKEN: TOKEN}
    results = tmp_path / "r"
    with serve(*PACED) as host, pytest.MonkeyPatch.context() as patch:
        patch.setenv(credentials.TOKEN, TOKEN)
        words = ("--data", clips, "-u", "4", "--requests", "20", "--expect-workers", "2")
        fleet = Fleet(host, results, *words)
        stranger = None
        try:
            patch.delenv(credentials.TOKEN)
            wait_until(lambda: listens(fleet.port), "the master")
            # A stranger without a token gets no reply. A worker with another token learns why.
            with rogue(fleet.port, "stranger") as unknown:
                unknown.send("client_ready", __version__)
                assert unknown.hears("ack", 3) is None
            command = [sys.executable, "-m", "locust", "-f", str(TRANSCRIBE), "--worker"]
            command += ["--master-port", str(fleet.port)]
            stranger = subprocess.Popen(
                command,
                cwd=CHECKOUT,
                env={**environ, "LOCUST_SKIP_MONKEY_PATCH": "", credentials.TOKEN: TOKEN + "x"},
                stderr=subprocess.PIPE,
                text=True,
            )
            workers = [fleet.worker(ASR_LOAD_FLEET_TOKEN=TOKEN) for _ in range(2)]
            done = Run(fleet.master, fleet.results)
            assert stranger.stderr is not None
            said = next(line for line in stranger.stderr if "does not respond" in line)
        finally:
            end(fleet.master, *([stranger] if stranger else []), *workers)
            if stranger and stranger.stderr:
                stranger.stderr.close()
    assert "does it have the same fleet token? This worker has one" in said
    assert done.code == 0, done.err
    assert len(done.records) == 20
    assert TOKEN not in done.err + done.out + "".join(file.read_text() for file in results.glob("*.json*"))
    assert "no fleet token" not in done.err


@pytest.mark.long
@pytest.mark.parametrize("named", [(), ("--master-bind-host=",)])
def test_master_without_a_token_listens_only_on_loopback(clips: Path, tmp_path: Path, named: tuple[str, ...]) -> None:
    words: list[str | Path] = ["--data", clips, "-u", "1", "--requests", "3", "--expect-workers", "1", *named]
    with serve(*PACED) as host:
        fleet = Fleet(host, tmp_path / "r", *words)
        try:
            wait_until(lambda: listens(fleet.port), "the master")
            listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
            (line,) = [one.split() for one in listening.splitlines() if f":{fleet.port:04X} " in one and " 0A " in one]
            assert line[1].startswith("0100007F:")
            worker = fleet.worker()
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, worker)
    assert done.code == 0
    assert "no fleet token: only workers on this machine can join" in done.err


def test_worker_ends_if_its_master_no_longer_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locust waits sixty times for a reply, five seconds each."""
    monkeypatch.setattr(fleet_socket, "WORD_AFTER_S", 0.01)
    monkeypatch.setattr(fleet_socket, "SILENT_S", 0.05)
    worker = SimpleNamespace(retry=0, master_host="127.0.0.1", master_port=free_port())
    with gevent.Timeout(PATIENCE_S), pytest.raises(ConnectionError, match="nothing listens on"):
        fleet_socket._telling(lambda _: gevent.sleep(2 * PATIENCE_S))(worker)


@contextmanager
def master(token: str, folder: Path) -> Iterator[MasterRunner]:
    """The master of an environment with this token; without one if it is empty."""
    file = folder / "token"
    file.write_text(token)
    options = Namespace(fleet_token_file=str(file) if token else None)
    runner = Environment(parsed_options=options).create_master_runner("127.0.0.1", 0)
    try:
        yield runner
    finally:
        runner.greenlet.kill(block=False)
        runner.server.socket.context.destroy(linger=0)


def test_each_environment_of_a_process_has_its_own_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(credentials.TOKEN, raising=False)
    fleet_socket.install()
    mechanisms, keys = [], []
    for token in ("a" * 16, "b" * 16, "", "a" * 16):
        with master(token, tmp_path) as runner:
            mechanisms.append(runner.server.socket.getsockopt(zmq.MECHANISM))
            keys.append(fleet_socket._keys_of_runner(runner))
            # A new socket of the same runner is encrypted too, whatever its options are by then.
            runner.environment.parsed_options = Namespace(fleet_token_file=None)
            runner.master_bind_port, before = 0, runner.server.socket.context
            runner.reset_connection()
            before.term()
            assert runner.server.socket.getsockopt(zmq.MECHANISM) == mechanisms[-1]
    assert mechanisms == [zmq.CURVE, zmq.CURVE, zmq.NULL, zmq.CURVE]
    assert keys[0] == keys[3] != keys[1]


def report_of_locust() -> dict[str, Any]:
    """A worker's report of its statistics, as a master gets it."""
    stats = RequestStats()
    response_times: list[Any] = [12, 0.5, 1234.5, None]
    for response_time in response_times:
        stats.log_request("POST", "/v1/x", response_time, 100)
    stats.log_error("POST", "/v1/x", ValueError("why"))
    data = {
        "stats": stats.serialize_stats(),
        "stats_total": stats.total.get_stripped_report(),
        "errors": stats.serialize_errors(),
        "user_count": 1,
        "user_classes_count": {"SpeechUser": 1},
    }
    found: dict[str, Any] = msgpack.loads(msgpack.dumps(data), strict_map_key=False)
    return found


def test_statistics_of_locust_are_accepted() -> None:
    assert fleet_socket._why_invalid("worker", Message("stats", report_of_locust(), "worker")) == ""


def in_two_days() -> int:
    return round(time.time() + 2 * fleet_socket.DAY_S)


@pytest.mark.parametrize("row", ["stats", "stats_total"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_requests", -1),
        ("total_response_time", math.nan),
        ("max_response_time", math.inf),
        ("min_response_time", -0.5),
        ("response_times", {-1.0: 1}),
        ("response_times", {12: -1}),
        ("num_reqs_per_sec", {1: -1}),
        ("num_fail_per_sec", {-1: 1}),
        ("last_request_timestamp", in_two_days),
        ("start_time", math.inf),
        ("num_reqs_per_sec", lambda: {in_two_days(): 1}),
    ],
)
def test_impossible_statistics_are_rejected(row: str, name: str, value: object) -> None:
    data = report_of_locust()
    entry = data[row][0] if row == "stats" else data[row]
    entry[name] = value() if callable(value) else value
    with pytest.raises(ValueError, match=r"Expected|in the future"):
        fleet_socket._why_invalid("worker", Message("stats", data, "worker"))
