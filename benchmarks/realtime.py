"""Sending speech in real time: how late packets are, how accurate the time stamps of texts are, and the CPU cost."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asr_load.results.record_file import read_records
from asr_load.results.runfile import RunInfo, read_run
from asr_load.selftest.ground_truth import run_on, scripted_server, share_cores
from asr_load.stream.record import RealtimeRecord
from benchmarks import CHECKOUT, Row, ratio
from benchmarks.clips import write_clips

SESSIONS, SECONDS, PACKET_MS, ROUNDS = 500, 10.0, 100, 3
MANY, MANY_SECONDS = 1000, 14.0
"""Sessions of a larger run. A hundred start per second as well, so that all speak at once for four seconds."""

SERVER = ("--realtime", "vllm", "--tokens", 20, "--itl-ms", 450, "--final-ms", 200)


def measure() -> Iterator[Row]:
    """Run 500 sessions, a hundred starting per second, each with 10 s of speech in packets of 100 ms."""
    cores = share_cores()
    ours, bare = list[float](), list[float]()
    late, errors, uneven = list[float](), list[float](), list[float]()
    lost = 0
    with tempfile.TemporaryDirectory() as name:
        clips = write_clips(Path(name) / "clips", 20, SECONDS)
        for number in range(ROUNDS):
            folder = Path(name) / str(number)
            folder.mkdir()
            with scripted_server(folder, cores.server, *SERVER) as server:
                bare.append(_bare(server.url, cores.client))
                records, info = _ours(server.url, clips, folder / "run", cores.client, SESSIONS)
            health = info.workers[0].health
            assert health is not None
            packets = sum(record.packets for record in records)
            ours.append(health.cpu_process * health.watched_s / packets)
            lost += SESSIONS - sum(record.ok for record in records)
            late += [record.send_lag["p99"] * 1e3 for record in records if record.send_lag]
            errors += _errors(records, info, server.stamps)
            uneven += _uneven(records, server.stamps)
    p50, p99, worst = np.percentile(late, [50, 99, 100]).tolist()
    figure = f"p99 of a session's packets: {p50:.2f} ms in the median session"
    what = f"lateness of packets of {PACKET_MS} ms, {SESSIONS} sessions ({lost} lost)"
    yield Row(what, figure, "their due times", p99, p50, worst, "ms", "5 ms or less")
    p50, p99, worst = np.percentile(uneven, [50, 99, 100]).tolist()
    what, figure = "unevenness of packets at the server", f"p50 {p50:.2f} ms"
    yield Row(what, figure, f"gaps of {PACKET_MS} ms", p99, p50, worst, "ms (p99)", "20 or less")
    p50, p99, worst = np.percentile(errors, [50, 99, 100]).tolist()
    what, figure = "error of texts' time stamps", f"p50 {p50:.2f} ms"
    yield Row(what, figure, "the server's stamps", p99, p50, worst, "ms (p99)", "1 or less")
    yield Row(
        "CPU per packet",
        f"{np.median(ours) * 1e6:.0f} µs",
        f"ready frames from one epoll loop: {np.median(bare) * 1e6:.0f} µs",
        **ratio(ours, bare),  # type: ignore[arg-type]
        aim="at most 2 times",
    )

    with tempfile.TemporaryDirectory() as name:
        clips = write_clips(Path(name) / "clips", 20, MANY_SECONDS)
        with scripted_server(Path(name), cores.server, *SERVER) as server:
            records, info = _ours(server.url, clips, Path(name) / "run", cores.client, MANY)
    lost = MANY - sum(record.ok for record in records)
    late = [record.send_lag["p99"] * 1e3 for record in records if record.send_lag]
    figure = f"packets {np.median(late):.1f} ms late in the median session, {np.percentile(late, 99):.1f} ms at p99"
    yield Row(f"{MANY} sessions at once", figure, "sessions lost", lost, lost, lost, "", "none")


def _bare(url: str, cores: set[int]) -> float:
    address = url.removeprefix("http://")
    command = [sys.executable, "-m", "benchmarks.bare_speech", address, *map(str, (SESSIONS, SECONDS, PACKET_MS))]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    run_on(process, cores)
    said = json.loads(process.communicate(timeout=120)[0])
    spent: float = said["cpu_s"] / said["packets"]
    return spent


def _ours(url: str, clips: Path, results: Path, cores: set[int], sessions: int) -> tuple[list[RealtimeRecord], RunInfo]:
    command = [sys.executable, "-m", "locust", "--locustfile", "locustfiles/transcribe.py", "--headless"]
    command += ["--only-summary", "--loglevel", "ERROR", "-u", str(sessions), "-r", "100", "--host", url]
    command += ["--requests", str(sessions), "--api", "realtime", "--packet-ms", str(PACKET_MS)]
    command += ["--data", str(clips), "--results", str(results), "--no-preflight"]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL)
    run_on(process, cores)
    process.wait(120)
    records = [record for record in read_records(results) if isinstance(record, RealtimeRecord)]
    return records, read_run(results)


def _truth(stamps: Path) -> dict[str, dict[str, Any]]:
    """The server's time stamps of each session, by request number."""
    rows = map(json.loads, stamps.read_text().splitlines())
    return {row["request_id"].rsplit("-", 1)[1]: row for row in rows if row["request_id"].count("-") >= 2}


def _uneven(records: list[RealtimeRecord], stamps: Path) -> list[float]:
    """Differences between the gaps of received packets and their length, in ms."""
    truth = _truth(stamps)
    rows = [truth[str(record.seq)] for record in records if record.ok and str(record.seq) in truth]
    return [abs(gap * 1e3 - PACKET_MS) for row in rows for gap in np.diff(row["received_at"]).tolist()]


def _errors(records: list[RealtimeRecord], info: RunInfo, stamps: Path) -> list[float]:
    """Error of the time stamps of the first and last text of each session, in ms."""
    truth = _truth(stamps)
    offset = info.workers[0].clock_offset_s
    found = []
    for record in records:
        if record.ok and (row := truth.get(str(record.seq))):
            started = record.started_at - offset
            found.append((started + (record.ttft or 0.0) - row["sent_at"][0]) * 1e3)
            found.append((started + (record.stream_end or 0.0) - row["final_at"][0]) * 1e3)
    return found
