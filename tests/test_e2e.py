"""Real processes: `locust` with the locustfile against the embedded server, and the files that they write."""

from __future__ import annotations

import csv
import json
import math
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from conftest import CHECKOUT
from harness.fleets import processes
from harness.forked import Forked
from harness.patience import PATIENCE_S
from harness.runs import FAST, POST, Run, answer, canned, environment, locust, run
from harness.serving import chat_body, connect, gauges, serve, wait_until
from harness.socket_readers import STAMPED


def test_run_with_45_requests_writes_all_files(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", "-u", "4", "--requests", "45")
    assert done.code == 0, done.err
    assert "Total: 45, Success: 45, Fail: 0" in done.out
    records = done.records
    assert sorted(record["seq"] for record in records) == list(range(45))
    sent = Counter(record["clip"] for record in records)
    assert sent == {f"clip{number:02d}": 2 if number < 15 else 1 for number in range(30)}
    assert len({(record["worker"], record["user"], record["started_at"]) for record in records}) == 45
    for record in records:
        assert (record["outcome"], record["ok"], record["http_status"], record["error"]) == ("ok", True, 200, None)
        assert (record["chunks"], len(record["itl"]), record["output_tokens"]) == (6, 5, 6)
        assert (record["output_tokens_source"], record["finish_reason"]) == ("usage", "stop")
        assert record["ttft"] + sum(record["itl"]) == pytest.approx(record["e2el"], abs=1e-9)
        # A late server sends its tokens at once, and one read may take them all.
        assert 0 < record["upload"] <= record["headers"] <= record["ttft"] <= record["e2el"] <= record["stream_end"]
        assert record["ttft"] >= 0.019  # the server sends nothing in the first 20 ms
        assert record["audio_s"] == 0.1
        assert record["reference"] == f"text of {record['clip']}"
    # 15 ms lie between the first and the last token. In at least one of 45 responses they arrive separately.
    assert max(record["e2el"] - record["ttft"] for record in records) >= 0.014
    summary = done.summary
    nothing = dict.fromkeys(("fail", "unfinished", "truncated", "out_of_room"), 0)
    assert summary["requests"] == {"total": 45, "success": 45, **nothing, "by_outcome": {"ok": 45}}
    assert summary["audio_s"] == pytest.approx(4.5)
    assert summary["itl"]["n"] == 45 * 5
    rows = done.rows
    assert rows[POST]["num_requests"] == 45
    assert {method: row["num_requests"] for (method, _), row in rows.items()} == {
        "POST": 45,
        "TTFT": 45,
        "ITL": 225,
        "TPOT": 45,
    }
    info = json.loads((done.results / "run.json").read_text())
    assert (
        info["workers"][0]["connections"] == info["workers"][0]["users"] == 4
    )  # one connection per user, for all its requests
    again = subprocess.run(
        [sys.executable, "scripts/report.py", done.results], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert again.stdout == done.out
    assert done.summary == summary


FAULTS = {
    "400": "http_400",
    "401": "http_401",
    "404": "http_404",
    "429": "http_429",
    "500": "http_500",
    "503": "http_503",
    "redirect": "http_307",
    "error": "stream_error",
    "error-midstream": "stream_error",
    "early-end": "cut",
    "reset": "cut",
    "no-end": "cut",
    "stall": "stalled",
    "hang": "stalled",
    "half-event": "protocol",
    "bad-utf8": "protocol",
    "bad-json": "protocol",
    "giant-event": "protocol",
    "empty": "empty",
    "abort": "aborted",
    "no-done": "ok",
    "no-usage": "ok",
    "slow-headers": "ok",
    "multi": "ok",
    "reasoning": "ok",
    "json": "ok",
}


@pytest.mark.long
@pytest.mark.parametrize("reader", STAMPED)
def test_each_fault_has_its_outcome_and_the_run_continues(clips: Path, tmp_path: Path, reader: str) -> None:
    faults = {f"clip{number:02d}": name for number, name in enumerate(FAULTS)}
    rules = [word for clip, name in faults.items() for word in ("--fault", f"{name}@{clip}")]
    with serve(*FAST, "--slow-s", "0.3", *rules) as host:
        done = run(
            host, clips, tmp_path / "r", "-u", "3", "--requests", "30", "--stall-timeout", "3", "--reader", reader
        )
    assert json.loads((done.results / "run.json").read_text())["workers"][0]["reader"] == reader
    assert done.code == 1  # some requests failed
    records = {record["clip"]: record for record in done.records}
    assert len(done.records) == len(records) == 30
    expected = {clip: FAULTS[name] for clip, name in faults.items()}
    assert {clip: records[clip]["outcome"] for clip in faults} == expected
    assert all(records[clip]["outcome"] == "ok" for clip in records if clip not in faults)
    failures = {clip for clip, outcome in expected.items() if outcome != "ok"}
    rows = done.rows
    assert (rows[POST]["num_requests"], rows[POST]["num_failures"]) == (30, len(failures))
    assert rows["TTFT", "/v1/chat/completions time to first token"]["num_requests"] == 30 - len(failures)
    by_fault = {name: records[clip] for clip, name in faults.items()}
    for clip in failures:
        assert records[clip]["error"], records[clip]
        assert records[clip]["ok"] is False
    for status in (400, 401, 404, 429, 500, 503):
        assert by_fault[str(status)]["http_status"] == status
    assert by_fault["hang"]["http_status"] is None
    assert by_fault["error"]["http_status"] == 200
    assert by_fault["redirect"]["error"].startswith("redirected to ")
    assert by_fault["stall"]["chunks"] > 0
    assert by_fault["no-usage"]["output_tokens_source"] == "chunks"
    assert by_fault["slow-headers"]["headers"] > 0.3
    assert (by_fault["multi"]["chunks"], by_fault["multi"]["output_tokens"]) == (2, 6)
    assert by_fault["reasoning"]["text"] == by_fault["no-done"]["text"]
    assert by_fault["reasoning"]["output_tokens"] > by_fault["no-done"]["output_tokens"]
    assert (by_fault["json"]["chunks"], by_fault["json"]["output_tokens"]) == (1, 6)
    assert done.summary["requests"]["by_outcome"] == dict(sorted(Counter({**expected}.values()).items())) | {
        "ok": 30 - len(failures)
    }


def test_refused_connection_is_a_connect_failure(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST, "--fault", "refuse@clip02") as host:
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "5")
    records = done.records
    # The kept connection is reset before the first byte of the response, and the new one is refused.
    assert [record["outcome"] for record in records] == ["ok", "ok", "connect", "ok", "ok"]
    assert (records[2]["error"], records[2]["http_status"]) == ("Connection refused", None)


def test_run_without_a_server_records_connect_failures(clips: Path, tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # a bound port that does not listen
        host = f"http://127.0.0.1:{bound.getsockname()[1]}"
        done = run(host, clips, tmp_path / "r", "-u", "2", "--requests", "2")
    assert done.code == 1
    assert [record["outcome"] for record in done.records] == ["connect", "connect"]
    assert "Average TTFT: n/a" in done.out
    assert done.rows[POST]["num_failures"] == 2


def test_full_queue_under_status_200_is_a_failure(clips: Path, tmp_path: Path) -> None:
    words = ("--engine", "scripted", "--ttft-ms", "600000", "--slots", "1", "--max-queued-requests", "1")
    with serve(*words) as host, ExitStack() as others:
        for _ in range(2):  # one is served and one waits, during the whole run
            connection = others.enter_context(closing(connect(host)))
            connection.request("POST", "/v1/chat/completions", json.dumps(chat_body()))
        wait_until(lambda: gauges(host) == (1, 1), "a full queue")
        done = run(host, clips, tmp_path / "r", "-u", "6", "--requests", "6")
    assert [(record["outcome"], record["error"], record["http_status"]) for record in done.records] == [
        ("stream_error", "The request queue is full.", 200)
    ] * 6


def test_total_timeout_ends_a_long_response(clips: Path, tmp_path: Path) -> None:
    with serve("--engine", "scripted", "--tokens", "5000", "--itl-ms", "10") as host:
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "1", "--total-timeout", "1")
    (record,) = done.records
    assert (record["outcome"], record["ok"]) == ("timeout", False)
    assert record["chunks"] > 1


@pytest.mark.long
def test_imports_do_not_shorten_the_run_time(clips: Path, tmp_path: Path) -> None:
    with serve("--engine", "scripted", "--tokens", "500", "--itl-ms", "50") as host:
        # In a new process, as a forked one has imported everything before.
        words = ("--data", clips, "--results", tmp_path / "r", "-u", "2", "-r", "100", "-t", "3", "--stop-timeout", "0")
        done = Run(locust("--host", host, *words), tmp_path / "r")
    assert (tmp_path / "r" / "run.json").exists(), done.err
    began = json.loads((tmp_path / "r" / "run.json").read_text())["began_at"]
    assert all(record["ended_at"] - began > 2.5 for record in done.records)
    assert len(done.records) == 2


SLOW_START = """
import gevent
from asr_load.load import plugin
from locustfiles.transcribe import SpeechUser

choose = plugin.choose
plugin.choose = lambda reader: gevent.sleep(1.5) or choose(reader)
"""


def test_run_time_shorter_than_the_start_leaves_complete_files(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_START)
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", "-f", tmp_path / "slow.py", "-u", "1", "-t", "1")
    assert (tmp_path / "r" / "run.json").exists(), done.err
    assert done.summary["requests"]["total"] == len(done.records)


def test_stop_timeout_lets_requests_finish_after_the_run_time(clips: Path, tmp_path: Path) -> None:
    with serve("--engine", "scripted", "--tokens", "20", "--itl-ms", "40") as host:
        done = run(host, clips, tmp_path / "r", "-u", "3", "-t", "3", "--stop-timeout", "10")
    assert done.code == 0
    assert {record["outcome"] for record in done.records} == {"ok"}
    assert done.rows[POST]["num_requests"] == len(done.records) >= 3


def test_request_on_a_dead_kept_connection_is_retried(clips: Path, tmp_path: Path) -> None:
    # The second request finds its connection dead before any response. It is sent again, in the same record.
    answers = [answer("one", length=True), b"", answer("two", length=True)]
    with canned(answers) as (host, asked):
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "2")
    assert [record["text"] for record in done.records] == ["one", "two"]
    assert done.code == 0
    assert asked[1] == asked[2]


def test_new_connection_that_dies_is_a_failure(clips: Path, tmp_path: Path) -> None:
    with canned([b"", answer("two", length=False), b"HTTP/1.1 banana\r\n\r\n"]) as (host, asked):
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "3")
    assert [record["outcome"] for record in done.records] == ["cut", "ok", "protocol"]
    assert len(asked) == 3


def test_audio_of_requests_is_unique_by_default(clips: Path, tmp_path: Path) -> None:
    for unique, different in (("dither", 40), ("none", 30)):
        with canned([answer("x", length=True)] * 40) as (host, asked):
            done = run(host, clips, tmp_path / unique, "-u", "1", "--requests", "40", "--unique", unique)
        bodies = {request.partition(b"\r\n\r\n")[2] for request in asked}
        assert len(bodies) == different
        assert ("repeated a clip's bytes" in done.out) == (unique == "none")


@pytest.mark.long
def test_shuffle_with_a_seed_is_reproducible(clips: Path, tmp_path: Path) -> None:
    orders = []
    with serve(*FAST) as host:
        for name in ("a", "b"):
            words = ("-u", "1", "--requests", "35", "--order", "shuffle", "--seed", "3")
            orders.append([record["clip"] for record in run(host, clips, tmp_path / name, *words).records])
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0])
    assert len(set(orders[0][:30])) == 30


def test_other_apis_run_end_to_end(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        for api in ("chat-input-audio", "transcriptions"):
            done = run(host, clips, tmp_path / api, "-u", "2", "--requests", "4", "--api", api)
            assert done.code == 0, done.out
            assert all(record["chunks"] == 6 for record in done.records)


SECRET = "sk-very-secret-4711"


def test_secrets_are_written_nowhere(clips: Path, tmp_path: Path) -> None:
    # The server repeats the key in its error, as some proxies do.
    body = json.dumps({"error": {"message": f"bad key {SECRET}"}})
    refusal = f"HTTP/1.1 401 Unauthorized\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    with canned([refusal] * 3) as (host, asked):
        words = ("-u", "1", "--requests", "1", "--loglevel", "DEBUG")
        in_path = run(host, clips, tmp_path / "path", *words, "--endpoint", f"/v1/chat/completions?api-key={SECRET}")
        by_env = run(host, clips, tmp_path / "env", *words, OPENAI_API_KEY=SECRET)
        by_header = run(host, clips, tmp_path / "header", *words, "--header", f"Authorization=Bearer {SECRET}")
    assert f"POST /v1/chat/completions?api-key={SECRET} ".encode() in asked[0]
    assert all(f"Authorization: Bearer {SECRET}".encode() in request for request in asked[1:])
    assert json.loads((in_path.results / "run.json").read_text())["endpoint"] == "/v1/chat/completions?api-key=***"
    for done in (in_path, by_env, by_header):
        assert done.records[0]["outcome"] == "http_401"
        assert done.records[0]["error"] == "bad key ***"
        said = done.out + done.err + "".join(file.read_text() for file in done.results.iterdir())
        assert SECRET not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--results", "README.md"], "README.md is not a writable folder"),
        (["--extra-body", '{"messages": []}'], "--extra-body cannot set 'messages'"),
    ],
)
def test_invalid_input_ends_with_one_line_and_exit_code_2(
    clips: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    asked = ("--headless", "--only-summary", "--data", clips, "--results", tmp_path / "r", "--loglevel", "ERROR")
    process = Forked("locust", [*asked, *words], CHECKOUT, environment())
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "r").exists()


BOTH = f"{CHECKOUT}/locustfiles/transcribe.py,{CHECKOUT}/locustfiles/shapes.py"


@pytest.mark.long
def test_load_shape_is_followed_to_its_end(clips: Path, tmp_path: Path) -> None:
    words = ("-f", BOTH, "--shape", "steps", "-u", "4", "--stages", "2", "--stage-time", "4", "--stop-timeout", "5")
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", *words)
    assert done.code == 0, done.err
    assert {record["user"] for record in done.records} == {0, 1, 2, 3}
    starts = [min(record["started_at"] for record in done.records if record["user"] == user) for user in range(4)]
    assert starts[2] - starts[0] > 1.5  # the second step starts four seconds after the first


def test_invalid_shape_option_is_refused(clips: Path, tmp_path: Path) -> None:
    done = run("http://127.0.0.1:1", clips, tmp_path / "r", "-f", BOTH, "--stages", "0", "-u", "1")
    assert done.code == 2
    assert "error: --stages must be 1 or more, not 0\n" in done.err


@pytest.mark.long
def test_locusts_own_files_are_complete(clips: Path, tmp_path: Path) -> None:
    csv_and_html = ("--csv", tmp_path / "locust", "--csv-full-history", "--html", tmp_path / "report.html")
    with serve("--engine", "scripted", "--tokens", "9", "--itl-ms", "20", "--fault", "503=0.2") as host:
        done = run(host, clips, tmp_path / "r", "-u", "3", "-t", "3", "--json", *csv_and_html)
    records = done.records
    failed = sum(not record["ok"] for record in records)
    with (tmp_path / "locust_stats.csv").open() as file:
        rows = {row["Type"]: row for row in csv.DictReader(file)}
    total = rows.pop("")
    for column in ("Request Count", "Failure Count", "Median Response Time", "Requests/s", "99%"):
        assert total[column] == rows["POST"][column], column
    assert (int(total["Request Count"]), int(total["Failure Count"])) == (len(records), failed)
    gaps = sum(len(record["itl"]) for record in records if record["ok"])
    assert {kind: int(row["Request Count"]) for kind, row in rows.items()} == {
        "POST": len(records),
        "TTFT": len(records) - failed,
        "ITL": gaps,
        "TPOT": len(records) - failed,
    }
    with (tmp_path / "locust_stats_history.csv").open() as file:
        last = {row["Type"]: row for row in csv.DictReader(file)}
    assert int(last["ITL"]["Total Request Count"]) == gaps
    assert int(last[""]["Total Request Count"]) == len(records)
    report = (tmp_path / "report.html").read_text()
    assert f'"num_requests":{len(records)}' in report.replace(" ", "")  # Locust's own table includes requests cut off
    assert "asr-report" in report
    # Standard output has only Locust's JSON; the summary and Locust's tables are on standard error.
    assert {row["method"]: row["num_requests"] for row in json.loads(done.out)}["POST"] == len(records)
    assert f"Total: {len(records)}," in done.err
    for name, at in (("ttft", "TTFT"), ("itl", "ITL")):
        values = [value for record in records if record["ok"] for value in np.ravel(record[name])]
        for percentile, column in ((50, "50%"), (99, "99%")):
            # The CSV rounds to whole ms; Locust's percentile is the bucket of this sample or of the next one.
            rank = math.ceil(percentile / 100 * len(values)) - 1
            low, high = (sorted(values)[min(at_rank, len(values) - 1)] * 1000 for at_rank in (rank, rank + 1))
            assert low * 0.995 - 1.01 <= float(rows[at][column]) <= high * 1.005 + 1.01


@pytest.mark.long
def test_opentelemetry_separates_the_metrics_by_name(clips: Path, tmp_path: Path) -> None:
    exporters: dict[str, Any] = {f"OTEL_{kind}_EXPORTER": "none" for kind in ("TRACES", "LOGS")}
    exporters["OTEL_METRICS_EXPORTER"] = "console"
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", "-u", "2", "--requests", "4", "--otel", **exporters)
    assert done.code == 0, done.err
    exported, _ = json.JSONDecoder().raw_decode(done.out[done.out.index("{") :])
    metrics = {
        metric["name"]: metric["data"]["data_points"]
        for scope in exported["resource_metrics"][0]["scope_metrics"]
        for metric in scope["metrics"]
    }
    path = "/v1/chat/completions"
    assert {point["attributes"]["name"]: point["count"] for point in metrics["locust.client.duration"]} == {
        path: 4,
        f"{path} time to first token": 4,
        f"{path} inter-token latency": 20,
        f"{path} time per output token": 4,
    }


def test_json_response_is_not_streamed(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST, "--fault", "json") as host:
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "2")
    assert [record["streamed"] for record in done.records] == [False, False]
    assert "2 responses came without streaming, so TTFT equals latency" in done.summary["validity"]["reasons"]


def test_tls_connections_are_counted_and_kept(clips: Path, tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    answers = [answer("one", length=True), answer("two", length=True), b"", answer("three", length=True)]
    with canned(answers, context) as (host, asked):
        began = time.perf_counter()
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "3", "--ca", tmp_path / "ca.pem")
        took = time.perf_counter() - began
    assert [record["text"] for record in done.records] == ["one", "two", "three"]
    assert len(asked) == 4  # the third was retried on a new connection
    opened = done.summary["connections"]
    assert opened["opened"] == 2
    assert 0 < opened["connect_mean"] <= opened["connect_max"] < took
    assert "Connections: 2 opened, " in done.out


SERVER = ("--engine", "scripted", "--tokens", "20", "--ttft-ms", "50", "--itl-ms", "5")


def limited(limit: str, host: str, clips: Path, results: Path, *words: str | Path) -> Run:
    """A run under a limit of the shell (ulimit)."""
    results.mkdir()
    files = ("--data", clips, "--results", results, "--json-file", results / "locust", "--spawn-rate", "100")
    on = ("sh", "-c", f'ulimit {limit}; exec "$@"', "sh")
    return Run(locust("--host", host, *files, *words, on=on), results)


@pytest.mark.long
@pytest.mark.parametrize("reader", ["compiled", "python"])
def test_fewer_descriptors_than_users_is_a_client_failure(clips: Path, tmp_path: Path, reader: str) -> None:
    with serve(*SERVER) as host:
        words = ("-u", "60", "-t", "3", "--stop-timeout", "5", "--reader", reader)
        done = limited("-n 60", host, clips, tmp_path / "r", *words)
    outcomes = Counter(record["outcome"] for record in done.records)
    assert set(outcomes) <= {"ok", "client", "unfinished"}
    assert outcomes["client"]
    wants = {record["error"] for record in done.records if record["outcome"] == "client"}
    assert wants == {"too many open files: raise ulimit -n, or lower -u"}
    # They wait before they retry.
    assert max(Counter(record["user"] for record in done.records if record["outcome"] == "client").values()) <= 5
    assert done.summary["validity"]["client"] == "too slow"
    assert "60 users need up to 184 file descriptors, but this process may open only 60" in done.err
    assert "the server's metrics are only read at the start and the end: Too many open files" in done.err
    # Locust's own look at the memory, each five seconds, finds no descriptor either.
    assert done.err.count("Traceback") == done.err.count("in monitor_cpu_and_memory\n")
    assert done.code == 1


@pytest.mark.long
@pytest.mark.parametrize("fleet", [False, True])
def test_full_disk_ends_the_run_and_truncates_no_line(clips: Path, tmp_path: Path, fleet: bool) -> None:
    with serve(*SERVER) as host:
        words = ("-u", "4", "-t", "600", *(processes(2) if fleet else ()))
        done = limited("-f 24", host, clips, tmp_path / "r", *words)  # in blocks of 512 bytes
    assert done.code == 2
    assert done.summary["wall_s"] < 600
    assert "=== ASR Benchmark Summary ===" in done.out
    assert "records.jsonl cannot be written (File too large): stopping the test" in done.err
    assert "could not be written: File too large" in done.err
    assert "Traceback" not in done.err
    lines = (tmp_path / "r" / "records.jsonl").read_bytes().splitlines()
    assert len(lines) > 3
    assert all(json.loads(line)["outcome"] for line in lines)
    assert done.summary["lost_workers"] or fleet  # a worker's own file may have records that the master's lacks
