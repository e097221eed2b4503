"""Through nginx, HAProxy and Envoy to the embedded server: correct latencies, and an outcome for each fault."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from asr_load.results.summary import read_finished, summarise
from harness.gateways import gateway
from harness.patience import PATIENCE_S
from harness.peer import OVER_TLS, Client, ca_file
from harness.records import health
from harness.runs import FAST, Run, run
from harness.serving import chat_body, running, serve, wait_until
from harness.stamps import late_by

KINDS = ("nginx", "haproxy", "envoy")
PATH = "/v1/chat/completions"
BODY: list[bytes | memoryview] = [json.dumps(chat_body()).encode()]

pytestmark = pytest.mark.long


def through(url: str, clips: Path, folder: Path, *words: str | Path, preflight: bool = False) -> Run:
    return run(url, clips, folder, "--ca", ca_file(), *words, preflight=preflight)


HELD_UP = ("the event loop was", "the reading thread was", "the client used")


def doubts_beside_lag(done: Run) -> list[str]:
    """Reasons for doubt in a run, except a stalled load generator, as this machine does other things too."""
    return [reason for reason in done.summary["validity"]["reasons"] if not reason.startswith(HELD_UP)]


def doubts_at_ease(done: Run) -> list[str]:
    """Reasons for doubt in a run's records, judged as if nothing had held up the load generator."""
    finished = read_finished(done.results)
    info, records = finished.info, finished.records
    for worker in info.workers:
        worker.health = health()
    return summarise(records, info).validity.reasons


@pytest.mark.parametrize("kind", KINDS)
def test_latencies_through_a_gateway_are_those_of_the_server(kind: str, clips: Path, tmp_path: Path) -> None:
    stamps = tmp_path / "stamps.jsonl"
    itl_s = 0.2
    script = ("--engine", "scripted", "--tokens", "4", "--ttft-ms", "100", "--itl-ms", str(itl_s * 1e3))
    with serve(*script, "--stamps", str(stamps)) as server, gateway(kind, tmp_path / kind, server) as front:
        done = through(front.url, clips, tmp_path / "r", "-u", "4", "--requests", "8")
    assert done.code == 0, done.out + done.err
    assert all(record["output_tokens"] == record["chunks"] == 4 for record in done.records)
    late = late_by(done, stamps)
    assert min(late) > 0
    assert np.median(late) < itl_s  # before the server sends the next chunk; `benchmarks.run truth` prints the value
    assert doubts_beside_lag(done) == []


@pytest.mark.parametrize("reader", OVER_TLS)
@pytest.mark.parametrize("kind", KINDS)
def test_connection_closed_by_an_idle_gateway_is_replaced(kind: str, reader: str, tmp_path: Path) -> None:
    with serve(*FAST) as server, gateway(kind, tmp_path / kind, server, idle_s=1) as front:
        client = Client(reader)
        told, took = [], []
        for pause in (0.0, 1.6, 0.0, 1.6):
            time.sleep(pause)
            began = time.perf_counter()
            told.append(client.send(front.url + PATH, BODY))
            took.append(time.perf_counter() - began)
        client.user_connection.close()
    opened = client.user_connection.shared
    assert [record.outcome for record in told] == ["ok"] * 4
    # Neither a new connection nor a first attempt is part of a latency.
    for record, whole in zip(told, took, strict=True):
        assert record.ttft is not None
        assert record.retry_s + (record.connect or 0) + record.ttft <= whole
    if kind != "envoy":  # Envoy accepts one more request, with `connection: close`
        assert [record.retries for record in told] == [0] * 4
        assert (opened.count, opened.dropped) == (3, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_gateway_restart_gives_cut_and_connect_failures(kind: str, clips: Path, tmp_path: Path) -> None:
    script = ("--engine", "scripted", "--tokens", "30", "--ttft-ms", "50", "--itl-ms", "20")
    with (
        serve(*script) as server,
        gateway(kind, tmp_path / kind, server) as front,
        ThreadPoolExecutor(1) as pool,
    ):
        words = ("-u", "4", "-t", "12", "--stall-timeout", "5")
        running_load = pool.submit(through, front.url, clips, tmp_path / "r", *words)
        records = tmp_path / "r" / "records.jsonl"
        wait_until(lambda: records.is_file() and records.stat().st_size > 0, "the first records are there")
        time.sleep(0.3)  # the streams of the four users, 0.6 s each, are in flight
        # Stop it in this thread: some programs end with the thread that started them.
        front.stop()
        time.sleep(1)
        front.start()
        done = running_load.result()
    outcomes = Counter(record["outcome"] for record in done.records)
    assert set(outcomes) <= {"ok", "cut", "connect", "unfinished"}, outcomes
    assert outcomes["cut"] >= 1
    assert outcomes["connect"] >= 1
    last = max(record["started_at"] for record in done.records if record["ok"])
    assert last > max(record["started_at"] for record in done.records if record["outcome"] == "connect")


@pytest.mark.parametrize("kind", KINDS)
def test_gateway_without_its_server_gives_http_502_or_503(kind: str, clips: Path, tmp_path: Path) -> None:
    with running(*FAST) as (server, process), gateway(kind, tmp_path / kind, server) as front:
        process.terminate()
        process.wait(PATIENCE_S)
        done = through(front.url, clips, tmp_path / "r", "-u", "1", "--requests", "2")
    refusal = "http_502" if kind == "nginx" else "http_503"
    assert [record["outcome"] for record in done.records] == [refusal] * 2
    assert done.records[0]["error"]


@pytest.mark.parametrize("kind", KINDS)
def test_gateway_balances_over_two_servers_of_which_one_stops(kind: str, clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as one, running(*FAST) as (other, process), gateway(kind, tmp_path / kind, one, other) as front:
        both = through(front.url, clips, tmp_path / "both", "-u", "2", "--requests", "20", preflight=True)
        process.terminate()
        process.wait(PATIENCE_S)
        alone = through(front.url, clips, tmp_path / "alone", "-u", "2", "--requests", "10")
    assert [record["outcome"] for record in both.records] == ["ok"] * 20
    outcomes = Counter(record["outcome"] for record in alone.records)
    assert outcomes["ok"] >= 3
    assert set(outcomes) <= {"ok", "http_502", "http_503"}, outcomes
    assert len(alone.records) == 10


def test_responses_buffered_by_a_proxy_are_reported_as_not_streamed(clips: Path, tmp_path: Path) -> None:
    reasons: dict[bool, list[str]] = {}
    script = ("--engine", "scripted", "--tokens", "60", "--ttft-ms", "50", "--itl-ms", "10")
    for buffering in (False, True):
        with (
            serve(*script) as server,
            gateway("nginx", tmp_path / "g", server, buffering=buffering) as front,
        ):
            done = through(front.url, clips, tmp_path / f"r{buffering}", "-u", "2", "--requests", "8")
        assert [record["outcome"] for record in done.records] == ["ok"] * 8
        reasons[buffering] = doubts_at_ease(done) if buffering else doubts_beside_lag(done)
    assert reasons[False] == []
    (said,) = reasons[True]
    assert said.startswith("8 of 8 responses arrived in one or a few pieces, not as a stream")
