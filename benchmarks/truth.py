"""How far the reported latencies are from what the scripted server knows: it stamps each chunk as it sends it.

Both processes read one monotonic clock, so the difference is the client's error and the way through the loopback.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import Row

CHECKOUT = Path(__file__).resolve().parent.parent
STREAMS, REQUESTS, TOKENS, ITL_MS, TTFT_MS = 64, 800, 64, 20, 200
SPAWN_RATE = 10


def measure() -> Iterator[Row]:
    """64 streams of 64 tokens, 20 ms apart, on one core each for the client and the server where there are two."""
    with tempfile.TemporaryDirectory() as name:
        records, stamps, offset, lag = _run(Path(name))
    errors: dict[str, list[float]] = {"TTFT": [], "ITL": []}
    wrong_counts = 0
    for record in records:
        sent = stamps[record["request_id"]]
        wrong_counts += not (record["output_tokens"] == record["chunks"] == len(sent["sent_at"]) == sent["tokens"])
        received = record["started_at"] - offset + record["ttft"]
        errors["TTFT"].append(received - sent["sent_at"][0])
        errors["ITL"] += (np.array(record["itl"]) - np.diff(sent["sent_at"])).tolist()
    for metric, values in errors.items():
        wrong = np.abs(values) * 1e3
        yield (
            f"{metric} at {STREAMS} streams, {ITL_MS} ms between tokens (n={len(values)})",
            f"error p50 {np.percentile(wrong, 50):.2f}, p99 {np.percentile(wrong, 99):.2f}, max {wrong.max():.2f} ms",
            "the server's own stamps",
            f"mean {np.mean(values) * 1e3:+.3f} ms",
            "p99 within 2 ms",
        )
    yield (
        "tokens of each record",
        f"{wrong_counts} of {len(records)} records wrong",
        "what the server sent",
        "",
        "none wrong",
    )
    yield ("loop lag that the run reports", f"p99 {lag * 1e3:.2f} ms", "the errors above", "", "of their order")


def _run(folder: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]], float, float]:
    cores = sorted(os.sched_getaffinity(0))
    serve = [sys.executable, "scripts/serve.py", "--port", "0", "--engine", "scripted", "--stamps", folder / "stamps"]
    serve += ["--tokens", str(TOKENS), "--itl-ms", str(ITL_MS), "--ttft-ms", str(TTFT_MS)]
    server = subprocess.Popen([*map(str, serve)], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    try:
        os.sched_setaffinity(server.pid, {cores[0]})
        assert server.stdout is not None
        ready = re.search(r"http://\S+", server.stdout.readline())
        assert ready, "the scripted server did not start"
        load = [sys.executable, "-m", "locust", "--headless", "--only-summary", "--loglevel", "WARNING"]
        load += ["--users", str(STREAMS), "--spawn-rate", str(SPAWN_RATE), "--requests", str(REQUESTS)]
        load += ["--host", ready[0], "--data", "asr_data/sample", "--results", str(folder / "results")]
        client = subprocess.Popen(load, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.sched_setaffinity(client.pid, {cores[-1]})
        assert client.wait(120) == 0, "the load failed"
    finally:
        server.terminate()
        server.wait(10)
    info = json.loads((folder / "results" / "run.json").read_text())
    records = [json.loads(line) for line in (folder / "results" / "records.jsonl").read_text().splitlines()]
    for record in records:
        record["request_id"] = f"{info['id']}-{record['worker']}-{record['seq']}"
    stamps = {entry["request_id"]: entry for entry in map(json.loads, (folder / "stamps").read_text().splitlines())}
    return records, stamps, info["workers"][0]["clock_offset_s"], info["workers"][0]["health"]["lag_p99"]
