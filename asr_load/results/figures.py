"""Mean, percentiles and maximum of a metric."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from asr_load.results.metrics import METRICS
from asr_load.stream.record import Record


class Figures(msgspec.Struct):
    """Statistics of a latency, in seconds, or of `rtf`, a ratio. All None if n is 0."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None
    n: int


def figures(values: Iterable[float]) -> Figures:
    """Mean, percentiles (linear interpolation, as numpy's default) and maximum."""
    return _figures(np.fromiter(values, dtype=float))


def _figures(values: np.ndarray) -> Figures:
    """Like `figures`, but reorders `values`, because a copy of a long run's gaps would take half a gigabyte."""
    if values.size == 0:
        return Figures(None, None, None, None, None, None, 0)
    mean, highest = float(values.mean()), float(values.max())
    p50, p90, p95, p99 = (float(value) for value in np.percentile(values, [50, 90, 95, 99], overwrite_input=True))
    return Figures(mean, p50, p90, p95, p99, highest, values.size)


def figures_of(metric: str, records: Iterable[Record]) -> Figures:
    """Figures of a metric in METRICS over records."""
    return _figures(METRICS[metric].values(records))
