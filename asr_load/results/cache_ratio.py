"""What a server's cache is worth: TTFT of clips that it has had before, against their first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Sequence

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


def cache_ratio(successes: Iterable[Record], figured: Collection[Record]) -> CacheRatio | None:
    """Of all successes of a run, and those that its figures are of; None where fewer than three clips have a first one
    and others among these. Warm-up, and what is trimmed or excluded, fills caches too: what follows is no first."""
    known = set(map(id, figured))
    by_clip: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in sorted(successes, key=lambda record: record.started_at):
        by_clip[record.user_class, record.clip].append(record)
    ratios = np.array([ratio for own in by_clip.values() if (ratio := _log_ratio(own, known)) is not None])
    if len(ratios) < FEWEST:
        return None
    draws = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.exp(np.percentile(ratios[draws].mean(axis=1), [2.5, 97.5]))
    return CacheRatio(float(np.exp(ratios.mean())), float(low), float(high), len(ratios))


def _log_ratio(requests: Sequence[Record], known: Container[int]) -> float | None:
    """The logarithm of the mean TTFT of a clip's further requests over its first; None without one of both."""
    first, *again = (record.ttft if id(record) in known else None for record in requests)
    known_again = [ttft for ttft in again if ttft]
    return float(np.log(known_again).mean() - np.log(first)) if first and known_again else None
