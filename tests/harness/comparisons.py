"""Runs to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from asr_load.results.summary import Finished
from asr_load.stream.record import Record
from harness.records import failure, record, run_info, worker_info


def made(seed: int, *, scale: float = 1.0, count: int = 600, errors: int = 0, word: str = "said") -> list[Record]:
    """Requests for 40 clips. TTFT follows a gamma distribution around 0.2 s."""
    random = np.random.default_rng(seed)
    records: list[Record] = []
    for number in range(count):
        ttft = scale * float(random.gamma(16, 0.2 / 16))
        clip = f"clip{number % 40}"
        text = f"he {word if number % 40 < 10 else 'said'} number {number % 40}"
        common: dict[str, Any] = {"clip": clip, "started_at": 1000.0 + number / 10}
        if number < errors:
            records.append(failure(number, "http_503", ended_at=common["started_at"] + 0.1, **common))
            continue
        reference = f"he said number {number % 40}"
        times = {"ttft": ttft, "e2el": ttft + 0.2, "stream_end": ttft + 0.21, "headers": None}
        records.append(record(number, **common, **times, text=text, reference=reference))
    return records


def run(records: list[Record], name: str = "run", **changes: Any) -> Finished:
    """One run of a side."""
    info = run_info(workers=[worker_info(ended_at=1061.0)], **changes)
    return Finished(info, records, folder=Path(name))
