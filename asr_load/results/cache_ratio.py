"""The effect of a server's cache: TTFT of repeated clips compared with their first request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Sequence

import msgspec
import numpy as np

from asr_load.stream.record import Record

FEWEST, RESAMPLES = 3, 10_000
"""Minimum number of clips, and number of bootstrap draws."""


class CacheRatio(msgspec.Struct):
    """TTFT of repeated clips divided by that of the same clips when new: the geometric mean over `clips`, with its 95 %
    interval over samples of clips (percentile bootstrap; Efron, 1979)."""

    ratio: float
    low: float
    high: float
    clips: int


def cache_ratio(successes: Iterable[Record], figured: Collection[Record]) -> CacheRatio | None:
    """Compute the ratio from all successes of a run and those that its figures describe. None unless at least three
    clips have a first request and a repeated one in the figures. Warm-up, trimmed and excluded requests also fill
    caches, so a clip's next request is then not its first."""
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
    """Logarithm of the ratio of a clip's mean TTFT when repeated to its first TTFT; None if either is missing."""
    first, *again = (record.ttft if id(record) in known else None for record in requests)
    known_again = [ttft for ttft in again if ttft]
    return float(np.log(known_again).mean() - np.log(first)) if first and known_again else None
