"""Whether a run was steady: figures from a queue that grows tell how long the test was, and nothing of the server."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np

from asr_load.stream.record import Record

BLOCKS = 16
"""Stretches of a run of which medians are compared."""

LEAST = 5 * BLOCKS
"""Requests below which nothing is said."""

SIGNIFICANT = 2.58
"""Of the normal distribution: a steady run is called none once in a hundred."""

NOTABLE = 0.25
"""Growth over the run, as a share of the median, below which a trend is let pass however sure it is."""


SPAWNED_S, SPAWNED = 3.0, 0.05
"""Seconds, and share of a run, in which users may still begin."""

OUTAGE, USUAL, STOOD_STILL, LEAST_FAILURES = 0.1, 3.0, 20.0, 3
"""What an outage is at least: a share of the run, and so many times the usual latency; of which requests that were only
slow make so many times; or so many failures."""


class Steadiness(msgspec.Struct):
    """`verdict`: steady, rising, falling, unclear (too few requests), interrupted (an outage), or not judged.

    `growth_s` is what E2E latency gained, in seconds, over the run by its trend, None where none was looked for; `why`
    is what stood in the way of that.
    """

    verdict: str
    growth_s: float | None
    why: str = ""


def steadiness(records: Sequence[Record]) -> Steadiness:
    """Test the E2E latency of the measured successes for a trend in the order of their start (open loop: from the due
    time).

    The run is cut into 16 blocks of equal count. Their medians, which single slow requests do not move and which are
    nearly independent where single requests are not, are tested by Mann and Kendall's S (Kendall, Rank Correlation
    Methods, 1975; z = (S ± 1) / sqrt(n(n-1)(2n+5)/18)); the size of the trend is Theil and Sen's slope (Sen, JASA 63,
    1968). Clips differ in length, and a set may be sorted by it: what a second of audio adds to the latency, by a
    least-squares fit that has a trend in it too, is taken off first. (One single pass through a set that is sorted
    shows no more than that one of the two grew.)
    """
    good = sorted(
        (record for record in records if record.ok and record.e2el is not None), key=lambda record: record.begins
    )
    if len(good) < LEAST:
        return Steadiness("unclear", None)
    latencies = np.array([(record.e2el or 0.0) + (record.lag or 0.0) for record in good])
    typical = float(np.median(latencies))
    audio = np.array([record.audio_s for record in good])
    columns = np.column_stack([np.ones(len(good)), np.arange(len(good)), audio])
    per_second = np.linalg.lstsq(columns, latencies, rcond=None)[0][2]
    latencies = latencies - per_second * (audio - audio.mean())
    medians = np.array([float(np.median(block)) for block in np.array_split(latencies, BLOCKS)])
    first, second = np.triu_indices(BLOCKS, 1)
    differences = medians[second] - medians[first]
    score = float(np.sign(differences).sum())
    deviation = math.sqrt(BLOCKS * (BLOCKS - 1) * (2 * BLOCKS + 5) / 18)
    z = (score - math.copysign(1, score)) / deviation if score else 0.0
    growth = float(np.median(differences / (second - first))) * (BLOCKS - 1)
    if abs(z) < SIGNIFICANT or abs(growth) < NOTABLE * typical:
        return Steadiness("steady", growth)
    return Steadiness("rising" if growth > 0 else "falling", growth)


def steadiness_line(trend: Steadiness) -> str:
    """In words."""
    if trend.verdict == "interrupted":
        return f"Steady: no, {trend.why}"
    if trend.verdict == "not judged":
        return f"Steady: not judged ({trend.why})"
    if trend.growth_s is None:
        return f"Steady: not known (fewer than {LEAST} successes)"
    match trend.verdict:
        case "rising":
            return f"Steady: no, latency rose by {trend.growth_s:.2f} s over the run: the load or a queue grew"
        case "falling":
            return (
                f"Steady: no, latency fell by {-trend.growth_s:.2f} s over the run: leave the start out (--warmup-time)"
            )
    return "Steady: yes, no trend in latency over the run"


def load_changes(users: Sequence[tuple[float, int]], measured: Sequence[Record]) -> bool:
    """Whether a closed loop's users changed while it was measured, beyond its first moments: `users` are when their
    number changed, and to what."""
    if not measured:
        return False
    starts = [record.started_at for record in measured]
    first, last = min(starts), max(starts)
    settled = first + max(SPAWNED_S, SPAWNED * (last - first))
    return any(settled < at <= last for at, _ in users)


class Outage(msgspec.Struct):
    """A stretch of a run in which nothing succeeded. Times in seconds since the first request."""

    from_s: float
    to_s: float
    share: float
    """Of the run."""
    failures: dict[str, int]
    """By outcome: those that ended in it."""

    @property
    def line(self) -> str:
        """In words."""
        what = ", ".join(f"{count} {name}" for name, count in self.failures.items()) or "answers stood still"
        return f"nothing succeeded from {self.from_s:.0f} s to {self.to_s:.0f} s of the run ({what}): an outage"


def outage(measured: Sequence[Record]) -> Outage | None:
    """The longest stretch between two ends of successes (or the run's begin or end and one), where it is at least a
    tenth of the run and the requests show that the server was asked: failures ended in it or, over twenty times the
    usual latency, requests were in flight all the time."""
    good = [record for record in measured if record.ok]
    if not good:
        return None
    first = min(record.started_at for record in measured)
    last = max(record.end for record in measured)
    ends = [first, *sorted(record.end for record in good), last]
    usual = float(np.median([record.e2el or 0.0 for record in good]))
    begin, end = max(pairwise(ends), key=lambda gap: gap[1] - gap[0])
    if end - begin < max(OUTAGE * (last - first), USUAL * usual):
        return None
    failures = Counter(record.outcome for record in measured if record.failed and begin <= record.end <= end)
    stood_still = any(record.started_at <= begin + usual and record.end >= end for record in measured)
    if failures.total() < LEAST_FAILURES and not (stood_still and end - begin > STOOD_STILL * usual):
        return None
    share = (end - begin) / (last - first)
    return Outage(begin - first, end - first, share, dict(sorted(failures.items())))


class LeftOut(msgspec.Struct):
    """Requests that are in no figure, by why."""

    warmup: int = 0
    trim_start: int = 0
    trim_end: int = 0


def trim(records: Sequence[Record], start_s: float, end_s: float) -> tuple[list[Record], LeftOut]:
    """The records of the steady part: no warm-up, begun (open loop: due) at least `start_s` seconds after the first
    and `end_s` before the last of the others; and how many that leaves out."""
    measured = [record for record in records if not record.warmup]
    left = LeftOut(warmup=len(records) - len(measured))
    if not measured or not (start_s or end_s):
        return measured, left
    starts = [record.begins for record in measured]
    low, high = min(starts) + start_s, max(starts) - end_s
    left.trim_start = sum(start < low for start in starts)
    left.trim_end = sum(start > high for start in starts if start >= low)
    return [record for record, start in zip(measured, starts, strict=True) if low <= start <= high], left
