"""The metrics page of a running test."""

from __future__ import annotations

import socket
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from locust.env import Environment
from prometheus_client.parser import text_string_to_metric_families

from asr_load.results.live import DRAWN, Live
from asr_load.results.runfile import WorkerInfo
from asr_load.results.verdict import Validity, judge_clients
from asr_load.web.exporter import BOUNDS, MOST_ENTRIES, metrics_app
from harness.patience import PATIENCE_S
from harness.ports import free_port
from harness.records import failure, health, record, worker_info
from harness.runs import FAST, run
from harness.serving import serve, wait_until
from harness.ui import ui

LABELS = {"model": "m", "api": "chat"}


class Test:
    """A test with ten requests, of which one failed."""

    __test__ = False

    def __init__(self) -> None:
        self.live = Live(1000.0, DRAWN)
        records = [*(record(n, ttft=0.2, e2el=0.4) for n in range(9)), failure(9, "http_503")]
        self.live.add(records, [each.end for each in records])
        self.live.tick(1012.0, users=4, in_flight=3, complete_until=1012.0)

    labels = "m", "chat"

    @property
    def workers(self) -> list[WorkerInfo]:
        return [worker_info(), worker_info(worker=1, health=health(loop_lag_p99=0.004)), worker_info(health=None)]

    def validity(self) -> Validity:
        return judge_clients(self.workers[:2])


def samples(page: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples of a page by name: labels and value."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def page_of(environment: Environment, test: Test | None) -> dict[str, list[tuple[dict[str, str], float]]]:
    assert environment.runner is not None
    app = metrics_app(environment.runner, lambda: test)
    asked: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "QUERY_STRING": ""}
    return samples(b"".join(app(asked, lambda *_: None)).decode())


@pytest.fixture
def environment() -> Environment:
    environment = Environment()
    environment.create_local_runner()
    return environment


def test_page_has_the_load_the_outcomes_and_the_load_generator(environment: Environment) -> None:
    page = page_of(environment, Test())
    assert page["asr_load_users"] == [({}, 4.0)]
    assert page["asr_load_requests_in_flight"] == [({}, 3.0)]
    assert page["asr_load_requests_total"] == [
        ({**LABELS, "outcome": "ok"}, 9.0),
        ({**LABELS, "outcome": "http_503"}, 1.0),
    ]
    assert page["asr_load_audio_seconds_total"] == [(LABELS, 18.0)]
    assert page["asr_load_output_tokens_total"] == [(LABELS, 27.0)]
    assert page["asr_load_loop_lag_seconds"] == [({"worker": "0"}, 0.001), ({"worker": "1"}, 0.004)]
    assert page["asr_load_verdict"] == [
        ({"verdict": "valid"}, 1.0),
        ({"verdict": "suspect"}, 0.0),
        ({"verdict": "client-bound"}, 0.0),
    ]


def test_histograms_count_the_values_up_to_each_bound(environment: Environment) -> None:
    page = page_of(environment, Test())
    for name, value in (("ttft", 0.2), ("e2el", 0.4)):
        assert page[f"asr_load_{name}_seconds_count"] == [(LABELS, 9.0)]
        ((_, total),) = page[f"asr_load_{name}_seconds_sum"]
        assert total == pytest.approx(9 * value)
        buckets = {float(labels["le"]): count for labels, count in page[f"asr_load_{name}_seconds_bucket"]}
        # The value equals a bound, from which its own bucket may differ by 0.25 %.
        assert {bound: count for bound, count in buckets.items() if bound != value} == {
            bound: 9.0 * (bound > value) for bound in (*BOUNDS, float("inf")) if bound != value
        }
    assert page["asr_load_rtf_count"] == [(LABELS, 9.0)]
    assert not [name for name in page if name.startswith("asr_load_ttfs")]


def test_without_a_test_the_page_has_the_rows_of_locust(environment: Environment) -> None:
    for name in ("GET", "TTFT"):
        environment.stats.log_request(name, "/a", 10, 0)
    for number in range(2 * MOST_ENTRIES):
        environment.stats.log_request("POST", f"/{number}", 10, 0)
    page = page_of(environment, None)
    assert (page["locust_up"], page["locust_running"], page["locust_users"]) == ([({}, 1.0)], [({}, 0.0)], [({}, 0.0)])
    counted = page["locust_requests_num_requests"]
    assert counted[0] == ({"method": "GET", "name": "/a"}, 1.0)
    assert len(counted) == MOST_ENTRIES
    assert {labels["method"] for labels, _ in counted} == {"GET", "POST"}
    assert not [name for name in page if name.startswith("asr_load")]


@pytest.mark.long
def test_headless_test_serves_its_page(clips: Path, tmp_path: Path) -> None:
    port, pages = free_port(), []

    def look() -> None:
        def enough() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as response:
                    pages.append(samples(response.read().decode()))
            except OSError:
                return False
            return bool(pages[-1].get("asr_load_audio_seconds_total", [({}, 0.0)])[0][1])

        wait_until(enough, "a page with a finished request")

    with serve(*FAST) as host:
        thread = threading.Thread(target=look)
        thread.start()
        done = run(host, clips, tmp_path / "r", "-u", "2", "-t", "4s", "--metrics-port", str(port))
        thread.join()
    assert done.code == 0
    assert pages[-1]["locust_users"] == [({}, 2.0)]


def test_port_in_use_is_one_line(clips: Path, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        done = run("http://127.0.0.1:1", clips, tmp_path / "r", "-u", "1", "--metrics-port", port)
    assert done.code == 2
    assert f"error: --metrics-port {port}: Address already in use" in done.err
    assert "Traceback" not in done.err


@pytest.mark.long
def test_web_ui_of_a_master_serves_the_page_of_its_workers_test(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host, ui("master and workers", host, clips, tmp_path) as web:
        assert samples(web.text_of("/metrics"))["locust_workers_count"] == [({}, 2.0)]
        web.start(requests=40)
        wait_until(lambda: web.ended(1), "the end of the test")
        page = samples(web.text_of("/metrics"))
    assert page["asr_load_requests_total"] == [({"model": "default", "api": "chat", "outcome": "ok"}, 40.0)]
    assert page["asr_load_ttft_seconds_count"] == [({"model": "default", "api": "chat"}, 40.0)]
    assert [labels for labels, _ in page["asr_load_loop_lag_seconds"]] == [{"worker": "0"}, {"worker": "1"}]
