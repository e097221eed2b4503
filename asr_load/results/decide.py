"""Decide whether a step of a search was measured long enough to know whether its SLOs are met."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from asr_load.results.accuracy import counts, reference_pairs
from asr_load.results.metrics import METRICS
from asr_load.results.normalizers import Scoring
from asr_load.results.proportion import Counted, design_effect, wilson
from asr_load.results.slo import Slo
from asr_load.stream.record import Record

CONFIDENCE_Z = 2.81
"""Standard deviations of the normal distribution: an interval misses the true value once in two hundred times. A step
is judged repeatedly, each time with half as many requests more (LOOKS). Over all looks, a step whose true value equals
the limit settles on either side about once in twenty times (tests/test_capacity.py)."""

LOOKS = 1.5
"""Factor between the numbers of requests at successive looks."""

LEAST_REQUESTS = 30
"""Minimum number of requests to settle."""

NEAR = 0.05
"""A mean that is known to within this share of its limit is settled, whichever side it is on."""


@dataclass(frozen=True)
class Decision:
    """The verdict on an SLO so far: its measured value, whether that meets the SLO, and whether more requests could not
    change the verdict (`settled`)."""

    value: float | None
    ok: bool
    settled: bool


def decide(slo: Slo, records: Sequence[Record], scoring: Scoring) -> Decision:
    """Judge an SLO by a step's requests so far.

    A percentile pQ is settled when Wilson's interval (99.5 %; Wilson, JASA 22, 1927) for the share of values above the
    limit lies on one side of 1 - Q. An error rate is such a share itself. A mean, WER and CER are settled when the
    interval lies on one side of the limit, or within 5 % of it. Values of one request (its gaps, its words) are not
    independent, so the differences between requests determine the effective number of values (design effect of a
    cluster sample: Kish, Survey Sampling, 1965). `max` fails with the first value above the limit. Nothing is settled
    below 30 requests."""
    enough = len(records) >= LEAST_REQUESTS
    good = [record for record in records if record.ok]
    if slo.metric == "errors":
        bad = np.array([record.failed for record in records if not record.unfinished], dtype=float)
        return _share(bad, np.ones(len(bad)), slo.limit, enough)
    if slo.metric in ("wer", "cer"):
        edits = [getattr(counts(*pair, scoring), slo.metric) for pair in reference_pairs(good, scoring)]
        errors, units = (np.array([getattr(each, kind) for each in edits], float) for kind in ("errors", "units"))
        return _mean(errors, units, slo.limit, enough)
    values = [METRICS[slo.metric].shown(record) for record in good]
    sizes = np.array([len(each) for each in values], dtype=float)
    if not sizes.sum():
        # There are only failures, and more of them would change nothing.
        return Decision(None, ok=False, settled=enough)
    if slo.share is None:
        return _mean(np.array([sum(each) for each in values]), sizes, slo.limit, enough)
    together = np.fromiter(itertools.chain.from_iterable(values), dtype=float)
    value = float(np.percentile(together, slo.share * 100))
    request = np.repeat(np.arange(len(values)), sizes.astype(int))
    above = np.bincount(request, weights=together > slo.limit, minlength=len(values))
    if slo.share == 1:
        return Decision(value, ok=not above.any(), settled=enough or bool(above.any()))
    # The value decides, as for a whole run. The share shows how certain that is.
    return replace(_share(above, sizes, 1 - slo.share, enough), value=value, ok=value <= slo.limit)


def _share(above: np.ndarray, sizes: np.ndarray, allowed: float, enough: bool) -> Decision:
    """Judge the share of all values above the limit; `above` and `sizes` count values per request."""
    total = float(sizes.sum())
    if not total:
        return Decision(None, ok=False, settled=False)
    counted = Counted(above, sizes)
    # If the design effect is unknown, assume one independent value per request.
    effect = design_effect(counted) or max(1.0, total / len(sizes))
    low, high = wilson(counted.share, total / effect, CONFIDENCE_Z)
    return Decision(counted.share, ok=counted.share <= allowed, settled=enough and (low > allowed or high <= allowed))


def _mean(sums: np.ndarray, sizes: np.ndarray, limit: float, enough: bool) -> Decision:
    """Judge a ratio of sums over requests: a mean of values, or errors per word."""
    total, count = float(sizes.sum()), len(sizes)
    if not total:
        return Decision(None, ok=False, settled=False)
    value = float(sums.sum()) / total
    if count < 2:
        return Decision(value, ok=value <= limit, settled=False)
    spread = math.sqrt(float(((sums - value * sizes) ** 2).sum()) * count / (count - 1)) / total
    # Requests without an error have no spread, which does not prove that no request has one.
    half = CONFIDENCE_Z * spread if sums.any() else wilson(0.0, count, CONFIDENCE_Z)[1] * count / total
    known = abs(value - limit) > half or half <= NEAR * limit
    return Decision(value, ok=value <= limit, settled=enough and known)
