"""Searches for capacity as stored in capacity.json."""

from __future__ import annotations

from asr_load.results.capacity import Capacity, judge, step
from asr_load.results.normalizers import Scoring
from asr_load.results.slo import parse_slos
from harness.records import record


def search_of(rates: dict[float, float], **changes: object) -> Capacity:
    """A search with these requests per second at these loads. Steps of up to 8 streams pass."""
    slos = parse_slos(["ttft:p95:500"])
    steps = []
    for load, rate in rates.items():
        records = [record(n, ttft=0.2 if load <= 8 else 0.9) for n in range(200)]
        verdict = judge(slos, records, Scoring(), least=0, is_open=False)
        steps.append(step(load, verdict, records, 10.0, ended=round(rate * 10), tokens=30))
    values = {
        "kind": "streams",
        "slos": [slo.text for slo in slos],
        "most": 64,
        "host": "h",
        "model": "m",
        "data_sha256": "0",
        "loop": {},
        "steps": steps,
        "answer": 8.0,
    }
    return Capacity(**(values | changes))  # type: ignore[arg-type]
