"""Compare the cost of reading a response, for each reader, with a bare epoll loop that reads the same."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from asr_load.apis.api import RequestFields
from asr_load.apis.chat import Chat
from asr_load.audio.dither import NO_DITHER
from asr_load.audio.shard import Shards
from asr_load.options.table import DEFAULT_PROMPT
from asr_load.selftest.ground_truth import TOKENS, GroundTruthError, load, run_on, scripted_server, share_cores
from benchmarks import CHECKOUT, Row, ratio
from benchmarks.clips import write_clips
from benchmarks.tls import certified

STREAMS, REQUESTS, ROUNDS = 100, 800, 3
AIMS = {"compiled": "2.5", "python": "", "compiled, TLS": "2.5", "python, TLS": "", "naive": ""}
"""Maximum ratios to the bare loop, which does not use TLS."""
NAMES = {"naive": "by a naive Locust user"}
PER = 10_000

NAIVE = """
import json, time
from pathlib import Path
import gevent
from locust import HttpUser, events, task
from locust.exception import StopUser
from sseclient import SSEClient

left, chunks = %d, 0

@events.test_start.add_listener
def begin(**_):
    global began
    began = time.process_time()

@events.test_stop.add_listener
def end(**_):
    print(json.dumps({"cpu_s": time.process_time() - began, "events": chunks}), flush=True)

class User(HttpUser):
    body = json.loads(Path("body").read_bytes())

    @task
    def ask(self):
        global left, chunks
        left -= 1
        if left < 0:
            raise StopUser
        last, kind = time.perf_counter(), "TTFT"
        path = "/v1/chat/completions"
        with self.client.post(path, json=self.body, stream=True, catch_response=True) as response:
            for event in SSEClient(response).events():
                if event.data == "[DONE]":
                    break
                choices = json.loads(event.data)["choices"]
                if choices and choices[0]["delta"].get("content"):
                    now = time.perf_counter()
                    self.environment.events.request.fire(
                        request_type=kind, name=kind, response_time=(now - last) * 1e3, response_length=0,
                        exception=None, context={},
                    )
                    last, kind, chunks = now, "ITL", chunks + 1
        if chunks == %d:
            gevent.spawn(self.environment.runner.quit)
"""
"""A typical first attempt: requests, sseclient, json, an event fired for each gap, default garbage collection."""


def measure() -> Iterator[Row]:
    """Measure CPU seconds per 10,000 chunks, including all work of a request, with clips of a tenth of a second."""
    cores = share_cores()
    spent: dict[str, list[float]] = {name: [] for name in ("bare", *AIMS)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = write_clips(folder / "clips", 8)
        (folder / "body").write_bytes(one_body(clips))
        (folder / "naive.py").write_text(NAIVE % (REQUESTS, REQUESTS * TOKENS))
        number = itertools.count()
        for _ in range(ROUNDS):
            for way, figures in spent.items():
                here = folder / str(next(number))
                here.mkdir()
                reader, tls, _ = way.partition(", TLS")
                serve, trust = certified(folder) if tls else ((), ())
                with scripted_server(here, cores.server, *serve) as server:
                    match way:
                        case "bare":
                            address = server.url.rpartition("/")[2]
                            words = ["-m", "benchmarks.bare", address, STREAMS, REQUESTS, folder / "body"]
                            figures.append(_spent(words, CHECKOUT, cores.client))
                        case "naive":
                            words = [
                                "-m",
                                "locust",
                                "-f",
                                "naive.py",
                                "-u",
                                STREAMS,
                                "-r",
                                STREAMS,
                                "--host",
                                server.url,
                            ]
                            words += ["--headless", "--only-summary", "--loglevel", "ERROR"]
                            figures.append(_spent(words, folder, cores.client))
                        case _:
                            options = ("-u", STREAMS, "-r", STREAMS, "--requests", REQUESTS, "--reader", reader, *trust)
                            outcome = load(server, here / "results", cores.client, *options, "--data", clips)
                            figures.append(outcome.cpu_s / outcome.chunks * PER)
    bare = statistics.median(spent["bare"])
    for way, aim in AIMS.items():
        yield Row(
            f"reading at {STREAMS} streams of {TOKENS} tokens, {NAMES.get(way, way)}",
            f"{statistics.median(spent[way]):.2f} CPU s per {PER:,} chunks",
            f"bare epoll loop: {bare:.2f}",
            **ratio(spent[way], spent["bare"]),  # type: ignore[arg-type]
            aim=aim and f"at most {aim} times",
        )


def one_body(clips: Path) -> bytes:
    """Request body for the first clip."""
    return b"".join(Chat(RequestFields("default", DEFAULT_PROMPT, 128)).body(Shards(clips)[0], NO_DITHER))


def _spent(words: list[object], cwd: Path, cores: set[int]) -> float:
    """CPU seconds per PER chunks, which a client prints when it ends. Raises GroundTruthError."""
    command = [sys.executable, *map(str, words)]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run_on(process, cores)
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    said = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if not said or said[0]["events"] < REQUESTS * TOKENS:
        raise GroundTruthError(f"{' '.join(command)} did not read {REQUESTS * TOKENS} chunks: {said} {errors}")
    spent: float = said[0]["cpu_s"] / (REQUESTS * TOKENS) * PER
    return spent
