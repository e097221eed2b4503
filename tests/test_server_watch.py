"""Tests whose server has a metrics page, a bad one, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr_load.engine.metrics_page import POLLS
from harness.proxies import never_ending
from harness.runs import FAST, run
from harness.serving import serve


@pytest.mark.long
def test_server_and_test_count_the_same_requests_and_tokens(clips: Path, tmp_path: Path) -> None:
    words = ("-u", "4", "--requests", "40", "--warmup-requests", "5", "--server-metrics-interval", "0.2")
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", *words, preflight=True)
    assert done.code == 0
    (view,) = done.summary["server"]
    assert (view["engine"], view["url"], view["failed"], view["error"]) == ("SGLang", f"{host}/metrics", 0, "")
    assert view["requests"] == view["sent"] == 45
    assert "│ requests " in done.out
    assert "something else used it" not in done.out


@pytest.mark.long
@pytest.mark.parametrize("page", ["hangs", "missing"])
def test_page_that_cannot_be_read_is_one_warning(page: str, clips: Path, tmp_path: Path) -> None:
    words = ("-u", "2", "--requests", "10", "--server-metrics-interval", "0.2")
    with serve(*FAST) as host, never_ending(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"a") as endless:
        url = f"http://{endless}/metrics" if page == "hangs" else f"{host}/nothing"
        done = run(host, clips, tmp_path / "r", *words, "--server-metrics", url, preflight=True)
    why = "no complete response within 2 s" if page == "hangs" else "the server returned 404"
    assert done.code == 0
    assert (done.out + done.err).count(f"the server's metrics at {url} cannot be read: {why}") == 1
    (view,) = done.summary["server"]
    assert (view["seconds"], view["failed"]) == (0.0, view["polls"])


def test_guessed_page_may_be_missing(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        done = run(
            host, clips, tmp_path / "r", "-u", "1", "--requests", "2", "--server-metrics", "none", preflight=True
        )
    assert done.code == 0
    assert not (done.results / POLLS).exists()
    assert done.summary["server"] == []
