"""Judge the SLOs of a run by its records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asr_load.results.accuracy import measure, reference_pairs
from asr_load.results.metrics import METRICS
from asr_load.results.normalizers import Scoring
from asr_load.results.slo import Slo, SloResult
from asr_load.stream.record import Record


def judge_slos(slos: Sequence[Slo], records: Sequence[Record], scoring: Scoring) -> list[SloResult]:
    """Judge SLOs by a run's measured records. Percentiles are over all values, with linear interpolation."""
    values = [_value(slo, records, scoring) for slo in slos]
    return [
        SloResult(slo.name, slo.limit, value, ok=value is not None and value <= slo.limit)
        for slo, value in zip(slos, values, strict=True)
    ]


def _value(slo: Slo, records: Sequence[Record], scoring: Scoring) -> float | None:
    good = [record for record in records if record.ok]
    if slo.metric == "errors":
        failed = sum(record.failed for record in records)
        return failed / (failed + len(good)) if failed or good else None
    if slo.metric not in METRICS:
        rate: float | None = getattr(measure(reference_pairs(good, scoring), scoring), slo.metric)
        return rate
    values = METRICS[slo.metric].values(good) * METRICS[slo.metric].scale
    if not values.size:
        return None
    return float(np.mean(values) if slo.share is None else np.percentile(values, slo.share * 100))
