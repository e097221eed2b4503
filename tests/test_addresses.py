"""Addresses of a name, used in turn: one connection, and complete runs against several servers."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from asr_load.http.addresses import Addresses
from harness.checks import error_of
from harness.fleets import info
from harness.patience import PATIENCE_S
from harness.ports import free_port
from harness.runs import FAST, Run, locust, run
from harness.serving import serve


def all_addresses(port: int) -> list[Any]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{number}", port)) for number in (1, 2, 3)]


@pytest.mark.parametrize("first", [0, 1])
def test_addresses_of_a_name_are_used_in_turn(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr("gevent.socket.getaddrinfo", lambda *_, **__: all_addresses(port))
        turns = Addresses(first)
        gone: list[str] = []
        for _ in range(6):
            sock, name = turns.connect((("speech.example", port),), time.perf_counter() + PATIENCE_S)
            gone.append(name)
            sock.close()
    order = [f"127.0.0.{number}:{port}" for number in (1, 2, 3)]
    assert gone == [*order[first:], *order[:first]] * 2


def test_unreachable_address_leaves_its_share_to_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_server(("127.0.0.3", listener.getsockname()[1])),
    ):
        port = listener.getsockname()[1]
        monkeypatch.setattr("gevent.socket.getaddrinfo", lambda *_, **__: all_addresses(port))
        turns = Addresses()
        gone: list[str] = []
        for _ in range(5):
            sock, name = turns.connect((("speech.example", port),), time.perf_counter() + PATIENCE_S)
            gone.append(name)
            sock.close()
    assert sorted(set(gone)) == [f"127.0.0.1:{port}", f"127.0.0.3:{port}"]
    assert [line.getMessage() for line in caplog.records] == [f"127.0.0.2:{port} cannot be reached: Connection refused"]


def place(url: str) -> str:
    return urlsplit(url).netloc


def test_users_are_spread_evenly_over_replicas(clips: Path, tmp_path: Path) -> None:
    slow = ("--engine", "scripted", "--tokens", "6", "--ttft-ms", "1000", "--itl-ms", "3")
    with serve(*FAST) as one, serve(*slow) as other:
        upstream = f"{place(one)},{place(other)}"
        done = run(
            "http://speech.invalid", clips, tmp_path / "r", "-u", "4", "--requests", "8", "--upstream", upstream,
            "--connections", "new",
        )  # fmt: skip
    assert done.code == 0, done.err
    rows = {row["address"]: row for row in done.summary["by_replica"]}
    assert set(rows) == {place(one), place(other)}
    assert [row["share"] for row in rows.values()] == [0.5, 0.5]
    assert [row["n"] for row in rows.values()] == [4, 4]
    assert rows[place(one)]["ttft"]["p50"] < 1 <= rows[place(other)]["ttft"]["p50"]
    assert "By replica" in done.out
    assert f"│ {place(one)} " in done.out
    assert f"│ {place(other)} " in done.out
    assert info(done)["upstream"] == upstream.split(",")


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_every_address_of_a_name_is_used(clips: Path, tmp_path: Path, workers: int) -> None:
    """In one process, and in a fleet in which each worker has one user."""
    (tmp_path / "hosts").write_text("127.0.0.1 speech.example\n127.0.0.2 speech.example\n")
    hosts = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(tmp_path / "hosts")]
    if shutil.which("unshare") is None or subprocess.run([*hosts, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no hosts of our own here: it takes root")
    with serve(*FAST, "--host", "0.0.0.0") as server:
        url = f"http://speech.example:{urlsplit(server).port}"
        words = ("--host", url, "--data", clips, "--results", tmp_path / "r", "--requests", "12", "-r", "100")
        fleet = ("--processes", str(workers)) if workers else ()
        done = Run(locust("-u", "2", *words, *fleet, on=hosts), tmp_path / "r")
    assert done.code == 0, done.out + done.err
    assert [record["outcome"] for record in done.records] == ["ok"] * 12
    assert [row["address"].split(":")[0] for row in done.summary["by_replica"]] == ["127.0.0.1", "127.0.0.2"]
    assert [row["n"] >= 4 for row in done.summary["by_replica"]] == [True, True]


def test_unreachable_replica_is_reported(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as one, serve(*FAST) as other:
        nobody = f"127.0.0.1:{free_port()}"
        upstream = ",".join((place(one), nobody, place(other)))
        done = run("http://speech.invalid", clips, tmp_path / "r", "-u", "4", "--requests", "8", "--upstream", upstream)
    assert [record["outcome"] for record in done.records] == ["ok"] * 8
    assert f"{nobody} cannot be reached: Connection refused" in done.err
    assert {row["address"] for row in done.summary["by_replica"]} == {place(one), place(other)}


def test_connection_times_are_reported_separately_from_ttft(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", "-u", "2", "--requests", "6", "--connections", "new")
    assert done.summary["connections"]["opened"] == done.summary["connect"]["n"] == 6
    assert all(record["connect"] > 0 for record in done.records)
    assert "│ Connect" in done.out
    assert (info(done)["connections"], info(done)["http_version"]) == ("new", "1.1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--upstream", "http://a:1"], "--upstream http://a:1 is not an address such as 10.0.0.7:30000"),
        (["--upstream", "me:secret-7@a:1"], "--upstream ***@a:1 is not an address"),
        (["--upstream", "a:99999"], "--upstream a:99999 is not an address such as 10.0.0.7:30000"),
        (["--upstream", "a:1", "--proxy", "http://p:1"], "--upstream and the proxy http://p:1"),
        (
            ["--host", "http://b:1"],
            "--host is given twice: it takes one server; name its replicas with --upstream HOST:PORT",
        ),
        (["-Hhttp://b:1"], "--host is given twice: it takes one server"),
        (["--retries", "-1"], "--retries must be 0 or more, not -1"),
    ],
)
def test_invalid_upstream_and_retries_give_a_one_line_error(words: list[str], said: str) -> None:
    error = error_of("-u", "1", "--host", "http://127.0.0.1:9", *words)
    assert error.startswith(said)
    assert "secret-7" not in error


def test_several_hosts_in_host_name_the_upstream_option() -> None:
    error = error_of("-u", "1", "--host", "http://a:1,http://b:2")
    assert "name its replicas with --upstream HOST:PORT,HOST:PORT" in error
