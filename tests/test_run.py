"""Users of a run: they retry requests that a busy server refused, and each attempt has a record."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.runs import answer, canned, run

BUSY = b"HTTP/1.1 429 No\r\n%bContent-Length: 4\r\n\r\nbusy"
WAIT = b"Retry-After: 1\r\n"


def test_retries_of_429_wait_and_each_attempt_has_a_record(clips: Path, tmp_path: Path) -> None:
    answers = [BUSY % WAIT, BUSY % WAIT, answer("a", length=True), answer("b", length=True)]
    with canned(answers) as (host, asked):
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "2", "--retries", "2")
    told = [(record["outcome"], record["seq"], record["retry_of"]) for record in done.records]
    assert told == [("http_429", 0, None), ("http_429", -1, 0), ("ok", -2, 0), ("ok", 1, None)]
    times = [record["started_at"] for record in done.records]
    assert times[1] - times[0] >= 1
    assert done.records[2]["ttft"] < times[2] - times[0]  # the wait is in no latency
    assert done.summary["sent_again"] == 2
    assert "Retries: 2 retries after a busy server's refusal; each counts as a request" in done.out
    assert len({request.split(b"X-Clip-Id: ")[1].split(b"\r\n")[0] for request in asked[:3]}) == 1
    assert done.summary["coverage"]["repeated"] == 0


IMPATIENT = """
import gevent
from locust import task
import asr_load

class Impatient(asr_load.SpeechUser):
    @task
    def ask(self):
        with gevent.Timeout(0.5, False):
            self.send(self.next_request())
"""


def test_user_that_aborts_a_retry_loses_no_record(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    with canned([BUSY % WAIT, answer("a", length=True)]) as (host, _):
        words = ("-f", tmp_path / "impatient.py", "-u", "1", "--requests", "2", "--retries", "2")
        done = run(host, clips, tmp_path / "r", *words)
    assert [(record["outcome"], record["seq"]) for record in done.records] == [("http_429", 0), ("ok", 1)]
    assert done.summary["lost_workers"] == []


@pytest.mark.parametrize(("busy", "words"), [(WAIT, []), (b"", ["--retries", "3"])])
def test_429_is_not_retried_without_the_option_or_retry_after(
    clips: Path, tmp_path: Path, busy: bytes, words: list[str]
) -> None:
    """Requests are not retried by default, nor if the server sends no Retry-After."""
    with canned([BUSY % busy, answer("a", length=True)]) as (host, _):
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "2", *words)
    assert [record["outcome"] for record in done.records] == ["http_429", "ok"]
