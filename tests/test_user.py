"""Locustfiles that users write: whatever their code does, each request has a record and the test ends."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from conftest import CHECKOUT
from harness.runs import FAST, run
from harness.serving import serve

START = """
from locust import task
import asr_load

class Mine(asr_load.SpeechUser):
    @task
    def transcribe(self):
"""

OWN_TIMEOUT = """
        request = self.next_request()
        with gevent.Timeout(0.3, False):
            self.send(request)
"""

OWN_TIMEOUT_RAISED = """
        request = self.next_request()
        with gevent.Timeout(0.3):
            self.send(request)
"""

RAISES_BEFORE = """
        request = self.next_request()
        if request.seq % 2:
            raise RuntimeError("my own mistake")
        self.send(request)
"""

TAKES_AND_FORGETS = """
        self.next_request()
        self.send(self.next_request())
"""

SENDS_TWICE = """
        request = self.next_request()
        self.send(request)
        self.send(request)
"""


PUBLIC = """
import sys
import locust
import asr_load

class Plain(asr_load.SpeechUser):
    pass

class Own(asr_load.SpeechUser):
    options = {"max_tokens": 3}

    @locust.task
    def own(self):
        assert isinstance(self.client, locust.clients.HttpSession)
        request = self.next_request()
        assert self.send(request) is self.last
        print("sent", request.clip, request.reference, request.audio_s, request.seq, file=sys.stderr)

    def on_record(self, record):
        self.last = record
"""
"""A class as short as can be, and one that uses all that docs/locustfile.md names."""


def test_public_names_of_users_work_in_a_locustfile(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "public.py").write_text(PUBLIC)
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", "-f", tmp_path / "public.py", "-u", "2", "--requests", "8")
    assert done.code == 0, done.err
    own = [record for record in done.records if record["user_class"] == "Own"]
    assert {record["output_tokens"] for record in own} == {3}
    assert {record["output_tokens"] for record in done.records if record["user_class"] == "Plain"} == {6}
    sent = re.findall("^sent (.*)", done.err, re.MULTILINE)
    assert sorted(sent) == sorted(
        f"{record['clip']} {record['reference']} {record['audio_s']} {record['seq']}" for record in own
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "outcomes"),
    [
        (OWN_TIMEOUT, {"timeout": 8}),
        (OWN_TIMEOUT_RAISED, {"timeout": 2}),
        (RAISES_BEFORE, {"ok": 4, "client": 4}),
        (TAKES_AND_FORGETS, {"ok": 4, "client": 4}),
        (SENDS_TWICE, {"ok": 16}),
    ],
    ids=["timeout", "raised timeout", "exception before sending", "unsent request", "sent twice"],
)
def test_each_request_of_a_custom_locustfile_has_its_record(
    clips: Path, tmp_path: Path, code: str, outcomes: dict[str, int]
) -> None:
    (tmp_path / "mine.py").write_text(f"import gevent\n{START}{code}")
    slow = "1000" if "timeout" in outcomes else "1"
    with serve("--engine", "scripted", "--tokens", "40", "--itl-ms", slow) as host:
        # The run time is far away: the number of requests ends the test.
        done = run(host, clips, tmp_path / "r", "-f", tmp_path / "mine.py", "-u", "2", "--requests", "8", "-t", "600")
    assert Counter(record["outcome"] for record in done.records) == outcomes
    again = range(-8, 0) if code is SENDS_TWICE else ()  # a request sent again gets a new, negative number
    numbers = sorted(record["seq"] for record in done.records)
    assert numbers == [*again, *range(2 if code is OWN_TIMEOUT_RAISED else 8)]
    assert ("no user is left" in done.err) == (code is OWN_TIMEOUT_RAISED)
    assert done.summary["wall_s"] < 600
    errors = {record["error"] for record in done.records if not record["ok"]}
    if "timeout" in outcomes:
        assert errors == {"not finished within the locustfile's limit of 0.3 s"}
    if "client" in outcomes:
        assert errors == {"never sent, because the locustfile raised an exception before that"}


FAILS_ELSEWHERE = """
        self.environment.events.request.fire(
            request_type="GET", name="/mine", response_time=1, response_length=0, exception=OSError("mine"), context={}
        )
        self.send(self.next_request())
"""


@pytest.mark.parametrize("fleet", [(), ("--processes", "2")])
def test_failure_outside_the_harness_is_a_reason_of_the_verdict(
    clips: Path, tmp_path: Path, fleet: tuple[str, ...]
) -> None:
    (tmp_path / "mine.py").write_text(f"{START}{FAILS_ELSEWHERE}")
    words = ("-f", tmp_path / "mine.py", "-u", "2", "--requests", "4", "--slo", "errors:rate:0", "--allow-client-bound")
    with serve("--engine", "scripted", "--tokens", "4") as host:
        done = run(host, clips, tmp_path / "r", *words, *fleet)
    assert (done.code, done.summary["passed"], done.summary["verdict"]["exit_code"]) == (1, True, 1), done.err
    assert re.search(r"\nVerdict: NOT passed: [456] failures in the locustfile's own requests or users\n", done.out)


UNREADABLE = """
from asr_load.audio.shard import Shards
read = Shards.__getitem__

def unreadable(shards, number):
    if number == 2:
        raise OSError(5, "Input/output error")
    return read(shards, number)

Shards.__getitem__ = unreadable
"""


@pytest.mark.parametrize("words", [(), ("--request-rate", "20", "--arrivals", "constant")])
def test_unreadable_clip_makes_the_run_client_bound(clips: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "mine.py").write_text((CHECKOUT / "locustfiles" / "transcribe.py").read_text() + UNREADABLE)
    with serve("--engine", "scripted", "--tokens", "4", "--ttft-ms", "10", "--itl-ms", "1") as host:
        done = run(host, clips, tmp_path / "r", "-f", tmp_path / "mine.py", "-u", "2", "--requests", "6", *words)
    assert sorted(record["seq"] for record in done.records) == list(range(6))
    failed = [record for record in done.records if not record["ok"]]
    assert failed
    assert {(record["outcome"], record["error"]) for record in failed} == {
        ("client", "the clip cannot be read from --data: [Errno 5] Input/output error")
    }
    assert done.summary["validity"]["verdict"] == "client-bound"
    assert done.summary["validity"]["client"] == "too slow"
    assert done.code == 1


BLOCKS = re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs" / "locustfile.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("code", [block for block in BLOCKS if "SpeechUser)" in block])
def test_locustfiles_of_the_documentation_run(clips: Path, tmp_path: Path, code: str) -> None:
    code = re.sub(r"between\(.*?\)|sleep\(2\)", lambda wait: wait[0].replace("5", "1"), code)
    (tmp_path / "mine.py").write_text(code.replace("asr_data/meetings", str(clips)))
    with serve("--engine", "scripted", "--tokens", "4", "--ttft-ms", "10", "--itl-ms", "1") as host:
        done = run(host, clips, tmp_path / "r", "-f", tmp_path / "mine.py", "-u", "4", "--requests", "8")
    assert done.summary["requests"]["by_outcome"] == {"ok": 8}, done.err
