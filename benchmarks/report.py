"""Compare the speed of making a summary from records with bare decoding of the same lines."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from asr_load.results.record_file import RECORDS, RecordFile
from asr_load.results.runfile import ClientHealth, RunInfo, WorkerInfo, write_run
from asr_load.results.summary import summarise_folder
from asr_load.stream.record import decode_record, encode_record
from benchmarks import CHECKOUT, Row, ratio, seconds
from benchmarks.stats import made_up

COUNT, ROUNDS = 5_000, 3


def measure() -> Iterator[Row]:
    """Summarize 5,000 records of 64 tokens, including WER and CER."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = RecordFile(folder / RECORDS)
        for record in made_up(COUNT):
            file.write(record)
        file.close()
        write_run(folder, _info())

        def bare() -> None:
            for line in (folder / RECORDS).read_bytes().splitlines():
                decode_record(line)

        times = [(seconds(lambda: summarise_folder(folder)), seconds(bare)) for _ in range(ROUNDS)]
    own, theirs = ([pair[which] for pair in times] for which in (0, 1))
    yield Row(
        f"summary of {COUNT:,} records",
        f"{COUNT / statistics.median(own):,.0f} records/s",
        f"decoding their lines: {COUNT / statistics.median(theirs):,.0f} records/s",
        **ratio(own, theirs),  # type: ignore[arg-type]
    )

    yield page(10_000, "1.5 s or less")


def page(count: int, aim: str) -> Row:
    """Measure the time and the peak memory of a scripts/report.py process, including its page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / RECORDS).open("wb") as file:
            for first in range(0, count, COUNT):
                batch = made_up(min(COUNT, count - first))
                lines = (
                    msgspec.structs.replace(one, seq=first + one.seq, started_at=one.started_at + first / 50)
                    for one in batch
                )
                file.writelines(encode_record(line) + b"\n" for line in lines)
        write_run(folder, _info())
        command = [sys.executable, "-c", MEASURED, str(folder)]
        told = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stderr.split()
    took, memory = float(told[-2]), float(told[-1]) / 1e6
    figure = f"{took:.1f} s, {memory:.2f} GB"
    return Row(f"report and page of {count:,} records of 64 tokens", figure, "", took, took, took, "s", aim)


MEASURED = """
import resource, sys, time
began = time.perf_counter()
from asr_load.report.main import main
main()
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def _info() -> RunInfo:
    health = ClientHealth(
        loop_lag_p50=0.0001,
        loop_lag_p99=0.001,
        loop_lag_max=0.01,
        loop_lag_samples=1000,
        stamp_lag_p99=0.0,
        stamp_lag_max=0.0,
        cpu_mean=0.1,
        cpu_max=0.2,
        cpu_process=0.1,
        watched_s=100.0,
        gc_pause_max=0.0,
        gc_pause_total=0.0,
    )
    worker = WorkerInfo(
        worker=0,
        host="here",
        reader="compiled",
        cores=2,
        users=64,
        connections=64,
        connecting_s=0.1,
        connecting_max_s=0.01,
        started=COUNT,
        recorded=COUNT,
        ended_at=1_000_000.0 + COUNT / 50,
        clock_offset_s=0.0,
        master_offset_s=0.0,
        master_offset_error_s=0.0,
        ended=True,
        health=health,
    )
    return RunInfo(
        id="bench",
        version="0",
        began_at=time.time(),
        ended=True,
        host="http://127.0.0.1:1",
        api="chat",
        model="m",
        prompt="p",
        max_tokens=128,
        requests=0,
        order="sequential",
        seed=0,
        unique="dither",
        timeouts={},
        header_names=[],
        extra_body_names=[],
        data="d",
        data_sha256="0",
        data_clips=100,
        language="en",
        workers=[worker],
        python="3",
        platform="x",
        packages={},
    )
