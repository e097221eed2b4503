"""Chunk times in the records of a run against the stamps of the embedded server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from harness.runs import Run


def late_by(done: Run, stamps: Path) -> list[float]:
    """Seconds from the sending of each chunk to its stamp, in a run of one process, which has the server's clock."""
    sent = {line["request_id"]: line for line in map(json.loads, stamps.read_text().splitlines())}
    info = json.loads((done.results / "run.json").read_text())
    late: list[float] = []
    for record in done.records:
        line = sent[f"{info['id']}-{record['worker']}-{record['seq']}"]
        began = record["started_at"] - info["workers"][0]["clock_offset_s"]
        came = began + record["ttft"] + np.cumsum([0.0, *record["itl"]])
        late += list(came - np.array(line["sent_at"]))
    return late
