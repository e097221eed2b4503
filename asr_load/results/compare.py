"""Compare runs: which figures differ by more than chance. docs/comparison.md explains the method."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from asr_load.audio.clip import parent_of
from asr_load.errors import InputError
from asr_load.files import encode_json, write_atomically
from asr_load.options.table import OPTIONS
from asr_load.results.accuracy import counted, reference_pairs, total
from asr_load.results.metrics import METRICS
from asr_load.results.proportion import Counted, difference_of_shares
from asr_load.results.runfile import RunInfo
from asr_load.results.slo import Goodput, check_unit, parse_limit
from asr_load.results.summary import Difference, Finished, RealtimeAccuracy
from asr_load.stream.record import Record

COMPARISON, COMPARISON_FORMAT = "comparison.json", 1
LATENCIES = ("ttft", "itl", "tpot", "e2el", "rtf", "ttfs", "done_latency", "rtf_live")
STATISTICS = {"mean": None, "p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
RATES = {"rtfx": "", "requests_per_s": "1/s", "output_tokens_per_s": "1/s", "goodput": "1/s"}
"""Figures of which more is better, with their units."""

ACCURACY = ("error_rate", "wer", "cer")
"""Figures that are comparable between realtime sessions and uploads."""

BOOTSTRAP_ROUNDS, SEED = 1000, 20261126
"""Rounds and seed of the bootstrap. The same runs always give the same intervals."""

BINS = 2048
"""Maximum number of bins for a metric's values, each with the same count. The error of a percentile is less than the
width of its bin, and that of an interval far less than chance."""

STRETCHES = 30
"""Number of stretches of time into which a run is cut to resample it."""

RESOLUTION_MS = 0.1
"""Smaller differences in latency come from the client's own timers and network."""

LEAST_UNITS = 5
"""Minimum number of clips or stretches of time for an interval."""

FEW_CLIPS, FEW_REQUESTS = 10, 100
"""Numbers of clips and of successes below which a comparison warns."""

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042, 1.960,
)  # fmt: skip
T_995 = (
    63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947,
    2.921, 2.898, 2.878, 2.861, 2.845, 2.831, 2.819, 2.807, 2.797, 2.787, 2.779, 2.771, 2.763, 2.756, 2.750, 2.576,
)  # fmt: skip
"""Quantiles of Student's t at 97.5 % and 99.5 %, for 1 to 30 degrees of freedom; the last value, for more, is that of
the normal distribution."""

Z_975, Z_995 = T_975[-1], T_995[-1]

SHOWN_BOUNDS, JUDGED_BOUNDS = (2.5, 97.5), (0.5, 99.5)
"""Percentiles that bound the intervals. The 95 % interval is shown. The 99 % interval must exclude 0 before a figure is
called better or worse, because thirty figures are judged at once and each may be wrong by chance."""

BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference shown"


class Compared(msgspec.Struct):
    """A figure for both sides. `low` and `high` bound the difference (95 %); `relative` is the difference divided by
    the baseline. `word` is better or worse if the 99 % interval excludes 0."""

    name: str
    unit: str
    baseline: float | None
    value: float | None
    difference: float | None
    low: float | None
    high: float | None
    relative: float | None
    word: str


class CautionKind(Enum):
    """Why runs may not be comparable, or their intervals too narrow."""

    REALTIME = "one_is_realtime"
    """Latencies and rates are not compared."""
    SETTING = "setting"
    ARRIVALS = "arrivals"
    MACHINES = "machines"
    CLIENT_BOUND = "client_bound"
    NOT_PASSED = "not_passed"
    WARMUP = "warmup_included"
    ONE_RUN = "one_run_a_side"
    FEW_CLIPS = "few_clips"
    FEW_REQUESTS = "few_requests"


class Caution(NamedTuple):
    """A reason for caution, about both sides or about one `run`."""

    kind: CautionKind
    run: Finished | None = None
    setting: str = ""
    values: Sequence[str] = ()
    """Values of a setting that differs, as JSON."""
    baselines: Sequence[str] = ()
    """The values in the baseline, as JSON."""
    number: int = 0
    """Number of clips or requests, if there are few."""


class Differences(NamedTuple):
    """The figures of both sides, and reasons for caution."""

    figures: list[Compared]
    cautions: list[Caution]


class Comparison(msgspec.Struct, kw_only=True):
    """Content of comparison.json. report/comparison.py makes its texts."""

    format: int = COMPARISON_FORMAT
    figures: list[Compared]
    warnings: list[str]
    """Why the runs may not be comparable, or the intervals too narrow."""
    runs: dict[str, list[str]]
    """Folders by side: value and baseline."""
    method: str
    min_change: float = 0.0


Sides = tuple[Sequence[Finished], Sequence[Finished]]
"""The runs to judge, and those to compare them with."""

Draws = np.ndarray
"""One or more figures in each round of the bootstrap, minus the real ones; shape (BOOTSTRAP_ROUNDS,) or
(BOOTSTRAP_ROUNDS, figures)."""


class _Interval(NamedTuple):
    """Intervals of a difference: 95 % from `low` to `high`, 99 % from `lowest` to `highest`."""

    low: float
    high: float
    lowest: float
    highest: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the 99 % interval excludes 0."""
        return self.lowest > 0 or self.highest < 0

    def union(self, other: _Interval) -> _Interval:
        """The smallest interval that contains both."""
        lows, highs = (self.low, other.low), (self.high, other.high)
        return _Interval(min(lows), max(highs), min(self.lowest, other.lowest), max(self.highest, other.highest))

    def scaled(self, scale: float) -> _Interval:
        """The interval in another unit."""
        return _Interval(*(bound * scale for bound in self))

    def shifted(self, difference: float) -> _Interval:
        """The interval, which must be around 0, moved to a difference."""
        return _Interval(*(bound + difference for bound in self))


def compare(values: Sequence[Finished], baselines: Sequence[Finished], min_change: float = 0.0) -> Differences:
    """Compare two sides. Intervals account for chance by clip and by time and, with two or more runs on each side, by
    run. Raises InputError."""
    sides, runs = (values, baselines), [*values, *baselines]
    if not several(sides) and len(runs) > 2:
        raise InputError("a comparison needs one run on each side, or at least two on each side")
    found = [*_figures(sides), *_text_errors(sides)[1]]
    if one_is_realtime(run.info for run in runs):
        found = [figure for figure in found if figure.name in ACCURACY]
    audio = [record.audio_s for run in runs for record in run.measured.good if record.audio_s]
    # RTF is latency divided by clip length, so a small difference in latency changes it most for the shortest clip.
    least = {"ms": RESOLUTION_MS, "rtf": RESOLUTION_MS / 1e3 / min(audio, default=1.0)}
    for figure in found:
        # With a baseline of 0, any change counts.
        small = figure.relative is not None and abs(figure.relative) < min_change
        resolved = least.get("rtf" if figure.name.startswith("rtf_") else figure.unit, 0.0)
        if small or abs(figure.difference or 0.0) < resolved:
            figure.word = NO_DIFFERENCE
    return Differences(found, [*_not_comparable(sides), *_too_narrow(sides)])


def several(sides: Sides) -> bool:
    """Whether each side has two or more runs."""
    return min(map(len, sides)) > 1


def one_is_realtime(infos: Iterable[RunInfo]) -> bool:
    """Whether some runs were realtime and others uploads, or one was both. Latencies of realtime sessions include the
    time it takes to speak."""
    kinds = ((info.realtime, *(each.realtime for each in info.user_classes)) for info in infos)
    return len({frozenset(map(bool, own)) for own in kinds}) > 1


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write comparison.json into a run's folder."""
    write_atomically(folder / COMPARISON, encode_json(comparison))


def point_figures(run: Finished) -> dict[str, tuple[str, float | None]]:
    """A run's figures by name, each with its unit; latencies in ms."""
    summary = run.summary
    found: dict[str, tuple[str, float | None]] = {}
    for name in LATENCIES:
        metric = METRICS[name]
        row = getattr(summary, name).scaled(metric.scale)
        if row.n or not metric.is_realtime:
            found |= {f"{name}_{statistic}": (metric.unit, getattr(row, statistic)) for statistic in STATISTICS}
    return found | {name: (RATES.get(name, ""), getattr(summary, name)) for name in (*RATES, *ACCURACY)}


def _figures(sides: Sides) -> list[Compared]:
    """Every figure but WER and CER, for each side the mean over its runs."""
    points = [[point_figures(run) for run in side] for side in sides]
    common = set.intersection(*(set(figures) for side in points for figures in side))
    found = []
    for name, interval in _within_runs(sides, common).items():
        by_side = [[figures[name][1] for figures in side] for side in points]
        found += _figure(name, points[0][0][name][0], by_side, interval)
    return found


def _figure(
    name: str, unit: str, by_side: Sequence[Sequence[float | None]], within: _Interval | None
) -> list[Compared]:
    """Compare a figure of each side's runs; `within` is the interval of the difference by chance within runs, around 0.
    With several runs a side, the interval must also contain the one between runs, because runs that agree do not prove
    that the next will. Empty if fewer than two of several runs have the figure."""
    known = [[value for value in side if value is not None] for side in by_side]
    several_runs = min(map(len, by_side)) > 1
    if several_runs and min(map(len, known)) < 2:
        return []
    value, baseline = (float(np.mean(side)) if side else None for side in known)
    found = Compared(name, unit, baseline, value, None, None, None, None, NO_DIFFERENCE)
    if value is None or baseline is None:
        return [found]
    difference = found.difference = value - baseline
    found.relative = difference / baseline if baseline else None if difference else 0.0
    if within is not None:
        interval = within.shifted(difference)
        if several_runs:
            interval = interval.union(_between_runs(*map(np.array, known)))
        found.low, found.high = interval.low, interval.high
        if interval.excludes_zero:
            found.word = BETTER if (difference > 0) == (name in RATES) else WORSE
    return [found]


def _between_runs(own: np.ndarray, other: np.ndarray) -> _Interval:
    """Welch's t interval (Biometrika 34, 1947) over the runs' figures. A bootstrap needs more runs."""
    parts = own.var(ddof=1) / len(own), other.var(ddof=1) / len(other)
    spread = float(sum(parts))
    free = spread**2 / (parts[0] ** 2 / (len(own) - 1) + parts[1] ** 2 / (len(other) - 1)) if spread else 1.0
    at = min(int(free), len(T_975)) - 1
    half, more = (table[at] * math.sqrt(spread) for table in (T_975, T_995))
    return _Interval(-half, half, -more, more).shifted(float(own.mean() - other.mean()))


def _within_runs(sides: Sides, names: Container[str]) -> dict[str, _Interval | None]:
    """Intervals around 0, by figure of `names`, of the difference by chance within runs.

    These are percentile intervals of a bootstrap (Efron and Tibshirani, 1993, chapter 13). For latencies, one bootstrap
    draws clips with all of their requests: the same clips for all runs of a side, and for both sides if they sent the
    same clips. Another draws stretches of time, because concurrent requests share a queue. The interval contains both.
    Error rates use Newcombe's interval, because a bootstrap without failures has no width."""
    random = np.random.default_rng(SEED)
    bootstraps = [_drawn_clips(sides, random), _drawn_stretches(sides, random)]
    found: dict[str, _Interval | None] = {}
    for name in (name for name in LATENCIES if f"{name}_mean" in names):
        fewest = min(sum(getattr(run.summary, name).n for run in side) for side in sides)
        found |= _latency_intervals(name, bootstraps, fewest)
    enough = all(len(np.unique(_stretches(run.measured.counted))) >= LEAST_UNITS for side in sides for run in side)
    for name in RATES:
        drawn = [_mean_of([_drawn_rate(*_rate_by_time(run, name), random) for run in side]) for side in sides]
        found[name] = _interval(drawn[0] - drawn[1]) if enough else None
    found["error_rate"] = _error_rates(sides)
    return found


def _latency_intervals(name: str, bootstraps: Sequence[_Drawn], fewest: int) -> dict[str, _Interval | None]:
    """Intervals for the statistics of a latency; `fewest` is the number of values on the side that has fewer."""
    spreads = [spread for bootstrap in bootstraps if (spread := _spread(name, bootstrap)) is not None]
    found: dict[str, _Interval | None] = {}
    for at, (statistic, share) in enumerate(STATISTICS.items()):
        known = [interval for spread in spreads if (interval := _interval(spread[:, at])) is not None]
        interval = functools.reduce(_Interval.union, known).scaled(METRICS[name].scale) if known else None
        if interval is not None and share is not None and share**fewest > 1 - JUDGED_BOUNDS[1] / 100:
            # The true percentile may exceed the largest of so few values, but no draw does.
            interval = interval._replace(lowest=-math.inf, highest=math.inf)
        found[f"{name}_{statistic}"] = interval
    return found


def _error_rates(sides: Sides) -> _Interval | None:
    """Interval around 0 of the difference in error rates, by stretches of time, because failures come in bursts."""
    own, other = (
        Counted(*map(np.concatenate, zip(*(_rate_by_time(run, "error_rate") for run in side), strict=True)))
        for side in sides
    )
    shown, judged = (difference_of_shares(own, other, z) for z in (Z_975, Z_995))
    if shown is None or judged is None:
        return None
    return _Interval(*shown, *judged).shifted(other.share - own.share)


class _DrawnRun(NamedTuple):
    """The successes of a run, the unit of each that a bootstrap draws (its clip or stretch of time), and how often it
    draws each unit; shapes (n,) and (BOOTSTRAP_ROUNDS, units)."""

    good: list[Record]
    unit: np.ndarray
    weights: np.ndarray


_Drawn = Sequence[Sequence[_DrawnRun]]
"""A bootstrap's draws, by side and run."""


def _drawn_clips(sides: Sides, random: np.random.Generator) -> _Drawn:
    """Draw clips, the same ones in all runs of a side, because further runs with the same clips add no clips."""
    clips = [sorted({record.clip for run in side for record in run.measured.good}) for side in sides]
    first = _draw(len(clips[0]), random)
    weights = first, first if clips[0] == clips[1] else _draw(len(clips[1]), random)
    drawn = []
    for side, names, own in zip(sides, clips, weights, strict=True):
        place = {clip: number for number, clip in enumerate(names)}
        goods = [run.measured.good for run in side]
        drawn.append([_DrawnRun(good, np.array([place[one.clip] for one in good], int), own) for good in goods])
    return drawn


def _drawn_stretches(sides: Sides, random: np.random.Generator) -> _Drawn:
    """Draw stretches of time, separately for each run."""

    def drawn(good: list[Record]) -> _DrawnRun:
        unit = _stretches(good)
        return _DrawnRun(good, unit, _draw(unit.max(initial=-1) + 1, random))

    return [[drawn(run.measured.good) for run in side] for side in sides]


def _draw(count: int, random: np.random.Generator) -> np.ndarray:
    """How often each of a number of units is drawn in each round; shape (BOOTSTRAP_ROUNDS, count)."""
    if not count:
        return np.zeros((BOOTSTRAP_ROUNDS, 0))
    return random.multinomial(count, np.full(count, 1 / count), BOOTSTRAP_ROUNDS)


def _spread(name: str, bootstrap: _Drawn) -> Draws | None:
    """STATISTICS of a metric: the difference between the sides; None with too few units to draw from. The error from
    binning is the same in the drawn and the real figures, and cancels."""
    values = [[(_values(name, run.good, run.unit, run.weights.shape[1]), run) for run in side] for side in bootstrap]
    if min(int((own.sizes > 0).sum()) for side in values for own, _ in side) < LEAST_UNITS:
        return None
    drawn = [_mean_of([_statistics(own, run.weights) for own, run in side]) for side in values]
    real = [_mean_of([_statistics(own, np.ones((1, len(own.sums)))) for own, _ in side]) for side in values]
    return np.asarray(drawn[0] - drawn[1] - (real[0] - real[1]))


def _mean_of(draws: Sequence[Draws]) -> Draws:
    """Mean over runs, for each round."""
    return np.asarray(np.mean(draws, axis=0))


def _stretches(records: Sequence[Record]) -> np.ndarray:
    """Index of the stretch of time, of STRETCHES, in which each record ended; shape (n,)."""
    ends = np.array([record.end for record in records])
    if not ends.size:
        return np.zeros(0, int)
    first = min(record.started_at for record in records)
    places: np.ndarray = np.minimum((ends - first) / max(ends.max() - first, 1e-9) * STRETCHES, STRETCHES - 1).astype(
        int
    )
    return places


class _Values(NamedTuple):
    """A metric's values by clip: sums and counts, shape (clips,), and counts in bins, shape (clips, bins)."""

    sums: np.ndarray
    sizes: np.ndarray
    binned: np.ndarray
    middles: np.ndarray


def _values(name: str, good: Sequence[Record], unit: np.ndarray, units: int) -> _Values:
    """Sort a metric's values into bins. `unit`: index of each record's clip or stretch, of `units`; shape (n,)."""
    sizes = [len(METRICS[name].values_of(record)) for record in good]
    flat = METRICS[name].values(good)
    units_of_values = np.repeat(unit, sizes)
    if not flat.size:
        return _Values(np.zeros(units), np.zeros(units), np.zeros((units, 1), np.float32), np.zeros(1))
    order = np.argsort(flat, kind="stable")
    bins = min(flat.size, BINS)
    which = np.empty(flat.size, int)
    which[order] = np.arange(flat.size) * bins // flat.size
    counted = np.zeros((units, bins), np.float32)
    np.add.at(counted, (units_of_values, which), 1)
    middles = np.bincount(which, flat) / np.bincount(which)
    sums, counts = np.bincount(units_of_values, flat, units), np.bincount(units_of_values, minlength=units)
    return _Values(sums, counts, counted, middles)


def _statistics(values: _Values, weights: np.ndarray) -> np.ndarray:
    """STATISTICS for each round; shape (rounds, statistics); nan for rounds without a value."""
    weights = weights.astype(np.float32)
    drawn = np.full((len(weights), len(STATISTICS)), np.nan)
    reached = np.cumsum(weights @ values.binned, axis=1)
    there = reached[:, -1] > 0
    for at, share in enumerate(STATISTICS.values()):
        if share is None:
            with np.errstate(divide="ignore", invalid="ignore"):
                drawn[:, at] = (weights @ values.sums) / (weights @ values.sizes)
        else:
            place = (reached < share * reached[:, -1:]).sum(axis=1).clip(max=len(values.middles) - 1)
            drawn[there, at] = values.middles[place[there]]
    return drawn


def _rate_by_time(run: Finished, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator of a rate, for each stretch of the run's time; shapes (STRETCHES,)."""
    part, limits = run.measured, Goodput(run.info.goodput) if run.info.goodput else None
    # Throughput counts all requests. Excluded requests are assumed to have met the limits as often as the others.
    records = part.sound if name in ("error_rate", "goodput") else part.counted
    like = len(part.counted) / len(part.sound) if name == "goodput" and part.sound else 1.0
    amount: dict[str, Callable[[Record], float]] = {
        "rtfx": lambda record: record.audio_s if record.ok else 0.0,
        "requests_per_s": lambda record: record.ok,
        "output_tokens_per_s": lambda record: (record.known_tokens or 0) if record.ok else 0,
        "goodput": lambda record: limits is not None and limits.meets(record),
        "error_rate": lambda record: record.failed,
    }
    if not records:
        return np.zeros(STRETCHES), np.zeros(STRETCHES)
    place = _stretches(records)
    amounts = np.bincount(place, [amount[name](record) for record in records], STRETCHES) * like
    if name == "error_rate":
        return amounts, np.bincount(place, [not record.unfinished for record in records], STRETCHES)
    return amounts, np.full(STRETCHES, run.summary.wall_s / STRETCHES)


def _drawn_rate(amounts: np.ndarray, sizes: np.ndarray, random: np.random.Generator) -> Draws:
    """A rate in each round, minus the real rate."""
    weights = _draw(STRETCHES, random)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weights @ amounts) / (weights @ sizes) - amounts.sum() / sizes.sum())


def live_accuracy(run: Finished, baseline: Finished) -> RealtimeAccuracy | None:
    """Accuracy of a realtime run compared with a run over HTTP; None for other runs, or with too few common clips."""
    if not run.info.realtime or baseline.info.realtime:
        return None
    clips, compared = _text_errors(([run], [baseline]))
    if not compared:
        return None
    wer, cer = (Difference(one.difference or 0.0, one.low, one.high) for one in compared)
    return RealtimeAccuracy(str(baseline.folder), clips, wer, cer)


def _text_errors(sides: Sides) -> tuple[int, list[Compared]]:
    """Number of clips that all runs transcribed, and WER and CER over them, compared clip by clip because transcripts
    of a clip are alike."""
    tables = [[_errors_by_clip(run) for run in side] for side in sides]
    common = sorted(set.intersection(*(set(table) for side in tables for table in side)))
    if len(common) < LEAST_UNITS:
        return len(common), []
    weights = _draw(len(common), np.random.default_rng(SEED))
    # A clip counts once, with the mean of its transcripts, however often it was sent.
    rows = [[np.array([table[clip] for clip in common]) for table in side] for side in tables]
    compared = []
    for name, at in (("wer", 0), ("cer", 2)):
        units = rows[1][0][:, at + 1]
        shares = [[run[:, at] / run[:, at + 1] * units for run in side] for side in rows]
        rates = [[float(share.sum() / units.sum()) for share in side] for side in shares]
        drawn = [
            _mean_of([(weights @ share) / (weights @ units) - rate for share, rate in zip(*side, strict=True)])
            for side in zip(shares, rates, strict=True)
        ]
        compared += _figure(name, "", rates, _interval(drawn[0] - drawn[1]))
    return len(common), compared


def _errors_by_clip(run: Finished) -> dict[str, np.ndarray]:
    """For each clip with a reference: word errors, words, character errors, characters; shape (4,)."""
    transcribed: dict[str, list[Record]] = {}
    for record in run.measured.good:
        clip = parent_of(record.clip)[0] if run.info.in_parts else record.clip
        transcribed.setdefault(clip, []).append(record)
    by_clip = {}
    for clip, records in transcribed.items():
        edits = total(counted(reference_pairs(records, run.info.scoring), run.info.scoring))
        if edits.wer.units:
            by_clip[clip] = np.array([number for each in edits for number in (each.errors, each.units)], float)
    return by_clip


def _interval(differences: Draws) -> _Interval | None:
    known = differences[np.isfinite(differences)]
    return (
        _Interval(*np.percentile(known, [*SHOWN_BOUNDS, *JUDGED_BOUNDS]).tolist())
        if known.size >= BOOTSTRAP_ROUNDS // 2
        else None
    )


FIELDS = {
    "data_sha256": "data (manifest)",
    "data_clips": "number of clips",
    **{option.in_run_json: option.name for option in OPTIONS if option.comparable and option.in_run_json},
    "realtime": "realtime options",
    "language": "language of the references",
    "num_users": "number of users",
    "shape": "shape",
    "platform": "client system",
}
"""Fields of run.json that must be equal if a difference is to be the server's."""


def _not_comparable(sides: Sides) -> Iterator[Caution]:
    runs = [run for side in sides for run in side]
    if one_is_realtime(run.info for run in runs):
        yield Caution(CautionKind.REALTIME)

    for field, name in FIELDS.items():
        values, others = (sorted({_text(getattr(run.info, field)) for run in side}) for side in sides)
        if values != others:
            yield Caution(CautionKind.SETTING, setting=name, values=values, baselines=others)
    loops = [{_text(run.info.loop | {"seed": 0}) for run in side if run.info.loop} for side in sides]
    if loops[0] != loops[1]:
        yield Caution(CautionKind.ARRIVALS)
    machines = [
        {(worker.host, worker.cores, worker.reader) for run in side for worker in run.info.workers} for side in sides
    ]
    if machines[0] != machines[1]:
        yield Caution(CautionKind.MACHINES)
    for run in runs:
        summary = run.summary
        if summary.validity.verdict == "client-bound":
            yield Caution(CautionKind.CLIENT_BOUND, run)
        if summary.verdict and not summary.verdict.passed:
            yield Caution(CautionKind.NOT_PASSED, run)
        if not summary.left_out.warmup and not summary.left_out.trim_start:
            yield Caution(CautionKind.WARMUP, run)


def _too_narrow(sides: Sides) -> Iterator[Caution]:
    if not several(sides):
        yield Caution(CautionKind.ONE_RUN)
    for run in (run for side in sides for run in side):
        good = run.measured.good
        clips = len({record.clip for record in good})
        if clips < FEW_CLIPS:
            yield Caution(CautionKind.FEW_CLIPS, run, number=clips)
        if len(good) < FEW_REQUESTS:
            yield Caution(CautionKind.FEW_REQUESTS, run, number=len(good))


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()[:80]


class Gate(NamedTuple):
    """A limit on how much worse a figure may be: as a share of the baseline if `relative`, else in the figure's
    unit."""

    text: str
    name: str
    limit: float
    relative: bool


def parse_gate(text: str) -> Gate:
    """Parse `ttft:p95:10%` or `wer:mean:0.005`. Raises InputError."""
    metric, _, rest = text.partition(":")
    statistic, _, word = rest.partition(":")
    name = {"errors": "error_rate"}.get(metric, metric)
    if metric in LATENCIES:
        name = f"{metric}_{statistic}" if statistic in STATISTICS else ""
    known = (*LATENCIES, "errors", "wer", "cer", *RATES)
    if metric not in known or not name:
        raise InputError(
            f"--fail-on {text!r}: use METRIC:STAT:LIMIT, such as ttft:p95:10% (metrics: {', '.join(known)};"
            f" statistics of latencies: {', '.join(STATISTICS)})"
        )
    if not word:
        raise InputError(
            f"--fail-on {text!r} has no limit: add how much worse it may get, such as {text.rstrip(':')}:10%"
        )
    if not word.endswith("%"):
        check_unit("--fail-on", text)
        return Gate(text, name, parse_limit(f"--fail-on {text!r}", metric, word), relative=False)
    share = parse_limit(f"--fail-on {text!r}", "", word.removesuffix("%")) / 100
    return Gate(text, name, share, relative=True)


class BrokenGate(NamedTuple):
    """A gate that is broken. `worse`: by how much the figure is worse at least, in its unit; None if the figure cannot
    be compared."""

    gate: Gate
    unit: str = ""
    worse: float | None = None


def broken_gates(comparison: Comparison | Differences, gates: Sequence[Gate]) -> Iterator[BrokenGate]:
    """The gates that are broken: the whole interval exceeds the limit, or the figure is missing."""
    by_name = {figure.name: figure for figure in comparison.figures}
    for gate in gates:
        figure = by_name.get(gate.name)
        if figure is None or figure.low is None or figure.high is None or figure.baseline is None:
            yield BrokenGate(gate)
            continue
        worse = -figure.high if figure.name in RATES else figure.low
        limit = gate.limit * abs(figure.baseline) if gate.relative else gate.limit
        if worse > limit:
            yield BrokenGate(gate, figure.unit, worse)
