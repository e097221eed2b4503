"""The search for capacity with real processes, against a server of known capacity."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from asr_load.errors import InputError
from asr_load.load.search import _comparable, resumed
from asr_load.results.capacity import Capacity, read_capacity, write_capacity
from conftest import CHECKOUT
from harness.fleets import end, processes
from harness.options import HOST, settings
from harness.patience import PATIENCE_S
from harness.ports import free_port
from harness.runs import FAST, Run, locust
from harness.searches import search_of
from harness.serving import running, running_streams, serve, wait_until

pytestmark = pytest.mark.long

SLOTS, SERVICE_S = 5, 0.2
SCRIPT = ("--engine", "scripted", "--tokens", "5", "--ttft-ms", "160", "--itl-ms", "10")
SERVER = (*SCRIPT, "--slots", str(SLOTS))
STEP_TIME_S = 60.0
"""The default of --step-time."""

SLO = "ttft:p90:260"
"""Half a service time more than the latency without a queue. With one stream more than slots, at least one in six
requests waits for a whole service time."""

FILE = CHECKOUT / "locustfiles" / "capacity.py"


def search(host: str, clips: Path, results: Path, *words: str | Path, slo: str = SLO) -> Run:
    results.mkdir(exist_ok=True)
    files = ("-f", FILE, "--data", clips, "--results", results, "--json-file", results / "locust")
    asked = ("--slo", slo, "--allow-client-bound", *words)
    return Run(locust("--host", host, *files, *asked), results)


def last_line(done: Run) -> str:
    return done.out.strip().splitlines()[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_search_finds_as_many_streams_as_slots(clips: Path, tmp_path: Path, workers: int) -> None:
    fleet, slots = processes(workers) if workers else [], 3
    with serve(*SCRIPT, "--slots", str(slots)) as host:
        done = search(host, clips, tmp_path / "r", "-u", "40", *fleet)
    assert done.code == 0, done.err
    assert last_line(done) == f"maximum effective streams: {slots}"
    found = read_capacity(done.results)
    assert found.answer == slots
    held = {step.load: step.ok for step in found.steps}
    assert held == {1: True, 2: True, 4: False, 3: True}
    full = next(step for step in found.steps if step.load == slots)
    assert full.requests_per_s == pytest.approx(slots / SERVICE_S, rel=0.1)
    # No request was cut off between steps, and each has a record.
    assert {each["outcome"] for each in done.records} == {"ok"}
    assert len(done.records) == sum(worker["started"] for worker in info(done))


def info(done: Run) -> list[dict[str, int]]:
    workers: list[dict[str, int]] = json.loads((done.results / "run.json").read_text())["workers"]
    return workers


def test_resumed_search_finds_the_rate_of_the_slots(clips: Path, tmp_path: Path) -> None:
    rate = SLOTS / SERVICE_S
    with serve(*SERVER) as host:
        words = ("-u", "60", "--request-rate", "32", "--arrivals", "constant", "--step-time", "15")
        begun = tmp_path / "begun"
        begun.mkdir()
        first = stopped_at(host, clips, begun, words, held=16.0)
        done = search(host, clips, tmp_path / "r", *words, "--resume", begun, *processes(2))
    assert done.code == 0, done.err
    found = read_capacity(done.results)
    assert found.answer == pytest.approx(rate, rel=0.05)
    assert [step.load for step in found.steps][:2] == [16, 32]
    assert found.steps[0] == first.steps[0]
    assert last_line(done) == f"maximum effective request rate: {found.answer:.3g} requests/s"


def stopped_at(host: str, clips: Path, folder: Path, words: tuple[str, ...], held: float) -> Capacity:
    """A search with these options that was ended after this load had passed."""
    begun = locust(
        *("-f", FILE, "--host", host, "--data", clips, "--results", folder, "--slo", SLO),
        *("--allow-client-bound", *words),
    )
    try:
        wait_until((folder / "capacity.json").exists, "a search that has begun")
        begun.send_signal(signal.SIGINT)
        done = Run(begun, folder)
    finally:
        end(begun)
    assert done.code == 1
    assert f"The search stopped before its answer; continue it with --resume {folder}" in done.out
    found = read_capacity(folder)
    assert found.answer is None
    found.steps = search_of({held: held}).steps
    found.steps[0].ok = True
    write_capacity(folder, found)
    return found


def test_limit_missed_by_one_stream_gives_capacity_zero(clips: Path, tmp_path: Path) -> None:
    with serve(*SERVER) as host:
        words = ("-u", "8", "--metadata", "gpu=H100")
        done = search(host, clips, tmp_path / "r", *words, slo="ttft:p95:20")
    assert done.code == 1
    assert last_line(done) == "maximum effective streams: 0"
    assert "Not even the lowest load met ttft:p95 <= 20 ms" in done.out
    assert "=== Capacity ===\nRun: gpu=H100\n" in done.out
    assert read_capacity(done.results).metadata == {"gpu": "H100"}
    (step,) = read_capacity(done.results).steps
    # A step that clearly fails ends early: after a third of the requests for which there would be time.
    assert step.requests < STEP_TIME_S / 3 / SERVICE_S


def test_dead_server_ends_the_search_with_a_lower_bound(clips: Path, tmp_path: Path) -> None:
    results = tmp_path / "r"

    def held() -> list[float]:
        return [step.load for step in read_capacity(results).steps] if (results / "capacity.json").exists() else []

    with running(*FAST) as (host, server):
        results.mkdir()
        words = ("--data", clips, "--results", results, "-u", "40", "--slo", "ttft:p90:9000", "--allow-client-bound")
        process = locust("-f", FILE, "--host", host, *words)
        try:
            wait_until(lambda: held() == [1, 2] and running_streams(host) > 2, "the third step")
            server.kill()
            done = Run(process, results)
        finally:
            end(process)
    assert done.code == 1, done.err
    found = read_capacity(results)
    assert (found.answer, found.gone_at) == (2, 4)
    assert last_line(done) == (
        "maximum effective streams: at least 2 (the server is gone: no request succeeded at 4 streams)"
    )
    assert f"When the server is back, continue the search with --resume {results}" in done.out
    assert done.summary["verdict"]["reasons"] == [{"kind": "server_gone", "text": found.limited_by}]


def test_bound_below_the_capacity_is_reported(clips: Path, tmp_path: Path) -> None:
    with serve(*SERVER) as host:
        done = search(host, clips, tmp_path / "r", "-u", "2")
    assert done.code == 0, done.err
    assert last_line(done) == "maximum effective streams: 2"
    assert "The true maximum may be higher: the search was limited to 2 streams (-u)" in done.out
    page = (done.results / "report.html").read_bytes()
    assert b"Throughput by load" in page
    assert b"maximum effective streams: 2" in page
    command = [sys.executable, "scripts/report.py", str(done.results)]
    again = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert again.startswith("\nMaximum effective streams: 2, with TTFT p90 at most 260 ms.")
    assert done.out.endswith(again)
    assert (done.results / "report.html").read_bytes() == page


def test_search_from_the_web_ui(clips: Path, tmp_path: Path) -> None:
    results, web = tmp_path / "r", free_port()
    with serve(*SERVER) as host:
        command = [sys.executable, "-m", "locust", "-f", str(FILE), "--host", host, "--data", str(clips)]
        options = ["--results", str(results), "--web-port", str(web), "--slo", SLO, "--allow-client-bound"]
        process = subprocess.Popen(
            [*command, *options],
            cwd=CHECKOUT,
            env={**os.environ, "LOCUST_SKIP_MONKEY_PATCH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            page = f"http://127.0.0.1:{web}"
            wait_until(lambda: answers(page), "the page")
            with urlopen(f"{page}/swarm", urlencode({"user_count": 2, "spawn_rate": 1}).encode()) as answer:
                assert json.load(answer)["success"]
            wait_until(lambda: running_streams(host) == 2, "the second step")
            wait_until(lambda: read_capacity(results).answer is not None, "the answer")
            process.send_signal(signal.SIGINT)
            done = Run(process, results)
        finally:
            end(process)
    assert read_capacity(results).answer == 2
    assert "maximum effective streams: 2" in done.out


def answers(page: str) -> bool:
    try:
        with urlopen(page, timeout=PATIENCE_S):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "error: a search for capacity needs at least one --slo, such as --slo ttft:p95:500"),
        (("--slo", SLO), "error: a search for capacity needs -u, the maximum number of streams"),
        (("--slo", SLO, "-u", "9", "--requests", "5"), "error: remove --requests: a search chooses its load"),
        (("--slo", SLO, "-u", "9", "--warmup-time", "5"), "error: remove --warmup-time: a search"),
        (("--slo", SLO, "-u", "9", "--step-time", "0"), "error: --step-time must be above 0 seconds, not 0.0"),
        (("--slo", SLO, "-u", "9", "--resume", "nowhere"), "error: nowhere holds no search: capacity.json"),
    ],
)
def test_invalid_search_options_give_a_one_line_error(
    clips: Path, tmp_path: Path, words: tuple[str, ...], line: str
) -> None:
    files = ("-f", FILE, "--data", clips, "--results", tmp_path / "r", "--loglevel", "ERROR")
    done = Run(locust(*files, *words), tmp_path / "r")
    assert done.code == 2
    assert done.err.startswith(line), done.err
    assert len(done.err.splitlines()) == 1


def test_search_with_another_slo_is_not_resumed(clips: Path, tmp_path: Path) -> None:
    write_capacity(tmp_path, search_of({8: 8}, answer=None, host="http://127.0.0.1:30000", model="default"))
    words = ("-u", "9", "--slo", "ttft:p95:400", "--resume", tmp_path)
    done = Run(locust("-f", FILE, "--data", clips, "--results", tmp_path / "r", *words), tmp_path / "r")
    assert done.code == 2
    assert "--slo differs from that search: ['ttft:p95:500.0'] then, ['ttft:p95:400.0'] now" in done.err


@pytest.mark.parametrize(
    ("then", "words", "said"),
    [
        ({}, ("--api", "realtime"), "--api differs from that search: chat then, realtime now"),
        ({}, ("--normalizer", "basic"), "--normalizer differs from that search: whisper then, basic now"),
        ({}, ("--mix", "0-5:1"), "--mix differs from that search:  then, 0-5:1 now"),
        ({}, ("--connections", "new"), "--connections differs from that search: keep then, new now"),
        (
            {"--api": "realtime"},
            ("--api", "realtime", "--pace", "2"),
            "--pace differs from that search: 1.0 then, 2.0 now",
        ),
    ],
)
def test_search_with_other_settings_is_not_resumed(
    then: dict[str, str], words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    asked = _comparable(settings(*(word for pair in then.items() for word in pair)))
    common = {"host": HOST, "model": "default", "slos": [], "data_sha256": "0"}
    write_capacity(tmp_path, search_of({8: 8}, answer=None, asked=asked, **common))
    with pytest.raises(InputError, match=re.escape(said)):
        resumed(tmp_path, settings(*words), "0")


def test_load_generator_that_stalls_gives_no_answer(clips: Path, tmp_path: Path) -> None:
    results = tmp_path / "r"
    results.mkdir()
    with serve(*SERVER) as host:
        words = ("-f", FILE, "--data", clips, "--results", results, "--slo", SLO, "-u", "8", "--step-time", "12")
        process = locust("--host", host, *words, "--json-file", results / "locust")
        ended = threading.Event()

        def hold_up() -> None:
            # 150 ms of each second, as on a machine whose CPU others use.
            while not ended.wait(0.85):
                process.send_signal(signal.SIGSTOP)
                time.sleep(0.15)
                process.send_signal(signal.SIGCONT)

        holding = threading.Thread(target=hold_up)
        wait_until(lambda: running_streams(host) > 0, "the first step")
        holding.start()
        try:
            done = Run(process, results)
        finally:
            ended.set()
            holding.join()
    assert done.code == 2, done.err
    assert last_line(done).startswith("maximum effective streams: unknown (the load generator stalled at ")
    assert "(the event loop was " in last_line(done)
    found = read_capacity(results)
    assert (found.answer, found.steps) == (None, [])
