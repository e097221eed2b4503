"""What a server's cache is worth: TTFT of clips that it has had before, against their first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec
import numpy as np

from asr_load.stream.record import Record

FEWEST, RESAMPLES = 3, 10_000
"""Clips below which nothing is said, and draws of the bootstrap."""


class CacheRatio(msgspec.Struct):
    """TTFT of repeated clips over that of the same clips when they were new: the geometric mean over `clips`, and where
    it lies in 95 of 100 samples of clips (percentile bootstrap; Efron, 1979)."""

    ratio: float
    low: float
    high: float
    clips: int


def cache_ratio(records: Iterable[Record]) -> CacheRatio | None:
    """Of successes; None where fewer than three clips were sent twice."""
    by_clip: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.started_at):
        if record.ttft:
            by_clip[record.user_class, record.clip].append(record.ttft)
    ratios = np.array([np.log(again).mean() - np.log(first) for first, *again in by_clip.values() if again])
    if len(ratios) < FEWEST:
        return None
    draws = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.exp(np.percentile(ratios[draws].mean(axis=1), [2.5, 97.5]))
    return CacheRatio(float(np.exp(ratios.mean())), float(low), float(high), len(ratios))
