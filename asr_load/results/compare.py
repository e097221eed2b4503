"""Compare runs: which figures differ by more than chance. docs/comparison.md explains the method."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from asr_load.audio.clip import parent_of
from asr_load.errors import InputError
from asr_load.files import encode_json, write_atomically
from asr_load.options.table import OPTIONS
from asr_load.results.accuracy import counted, spoken, total
from asr_load.results.figures import Figures
from asr_load.results.metrics import METRICS
from asr_load.results.proportion import Counted, difference_of_shares
from asr_load.results.runfile import RunInfo
from asr_load.results.slo import Goodput, check_unit, parse_limit
from asr_load.results.sound import Measured
from asr_load.results.summary import Difference, Finished, RealtimeAccuracy
from asr_load.stream.record import Record
from asr_load.text import count_of

COMPARISON, FORMAT = "comparison.json", 1
LATENCIES = ("ttft", "itl", "tpot", "e2el", "rtf", "ttfs", "done_latency", "rtf_live")
STATISTICS = {"mean": None, "p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
ROUNDS, SEED = 1000, 20261126
"""Rounds and seed of the bootstrap. The same runs always give the same intervals."""

BINS = 2048
"""Maximum number of bins for a metric's values, each with the same count. The error of a percentile is less than the
width of its bin, and that of an interval far less than chance."""

BLOCKS = 30
"""Number of stretches of time into which a run is cut to resample it."""

RESOLUTION_MS = 0.1
"""Smaller differences in latency come from the client's own timers and network."""

LEAST_UNITS = 5
"""Minimum number of clips or stretches of time for an interval."""

FEW_CLIPS, FEW = 10, 100

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

SHOWN, SAID = (2.5, 97.5), (0.5, 99.5)
"""Percentiles that bound the intervals. The 95 % interval is shown. The 99 % interval must exclude 0 before a figure is
called better or worse, because thirty figures are judged at once and each may be wrong by chance."""

BETTER, WORSE, SAME = "better", "worse", "no difference shown"


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


class Comparison(msgspec.Struct, kw_only=True):
    """Content of comparison.json."""

    format: int = FORMAT
    figures: list[Compared]
    warnings: list[str]
    """Why the runs may not be comparable, or the intervals too narrow."""
    runs: dict[str, list[str]]
    """Folders by side: value and baseline."""
    method: str
    min_change: float = 0.0


class Run(NamedTuple):
    """A run and its folder."""

    folder: Path
    finished: Finished

    @property
    def info(self) -> RunInfo:
        return self.finished.info

    @property
    def part(self) -> Measured:
        return self.finished.measured

    @property
    def measured(self) -> list[Record]:
        """Requests that count for latencies, error rates and accuracy."""
        return self.part.sound


Draws = np.ndarray
"""One or more figures in each round of the bootstrap; shape (ROUNDS,) or (ROUNDS, figures)."""


class _Interval(NamedTuple):
    """Intervals of a difference: 95 % from `low` to `high`, 99 % from `lowest` to `highest`."""

    low: float
    high: float
    lowest: float
    highest: float

    @property
    def apart(self) -> bool:
        """Whether the 99 % interval excludes 0."""
        return self.lowest > 0 or self.highest < 0

    def held_with(self, other: _Interval) -> _Interval:
        """The smallest interval that contains both."""
        lows, highs = (self.low, other.low), (self.high, other.high)
        return _Interval(min(lows), max(highs), min(self.lowest, other.lowest), max(self.highest, other.highest))

    def times(self, scale: float) -> _Interval:
        """The interval in another unit."""
        return _Interval(*(bound * scale for bound in self))

    def around(self, difference: float) -> _Interval:
        """The interval, which must be around 0, moved to a difference."""
        return _Interval(*(bound + difference for bound in self))


class _Values(NamedTuple):
    """A metric's values by clip: sums and counts, shape (clips,), and counts in bins, shape (clips, bins)."""

    sums: np.ndarray
    sizes: np.ndarray
    binned: np.ndarray
    middles: np.ndarray


def compare(values: Sequence[Run], baselines: Sequence[Run], min_change: float = 0.0) -> Comparison:
    """Compare two sides. Intervals account for chance by clip and by time and, with two or more runs on each side, by
    run. Raises InputError."""
    several = min(len(values), len(baselines)) > 1
    if not several and len(values) + len(baselines) > 2:
        raise InputError("a comparison needs one run on each side, or at least two on each side")
    found = _figures(values, baselines)
    if one_is_realtime(run.info for run in (*values, *baselines)):
        found = [one for one in found if one.name in ACCURACY]
    audio = [record.audio_s for run in (*values, *baselines) for record in run.measured if record.ok and record.audio_s]
    # RTF is latency divided by clip length, so a small difference in latency changes it most for the shortest clip.
    least = {"ms": RESOLUTION_MS, "rtf": RESOLUTION_MS / 1e3 / min(audio, default=1.0)}
    figures = [
        _worded(one, min_change, least.get("rtf" if one.name.startswith("rtf_") else one.unit, 0.0)) for one in found
    ]
    one_each = "one run on each side: intervals do not include differences between runs, such as after a restart"
    method = (
        f"bootstrap of {ROUNDS} rounds: latencies by clip and by {BLOCKS} stretches of time, wider interval;"
        " WER by clip, rates by time; error rates: Newcombe's interval"
    )
    if several:
        between = f"Welch's t over {len(values)} and {len(baselines)} runs"
        method = f"wider interval of {between} and, within runs, a {method}"
    warnings = [*_not_comparable(values, baselines), *([] if several else [one_each]), *_thin(values, baselines)]
    runs = {side: [str(run.folder) for run in own] for side, own in (("value", values), ("baseline", baselines))}
    return Comparison(figures=figures, warnings=warnings, runs=runs, method=method, min_change=min_change)


ACCURACY = ("wer", "cer", "error_rate")


def one_is_realtime(infos: Iterable[RunInfo]) -> bool:
    """Whether some runs were realtime and others uploads, or one was both. Latencies of realtime sessions include the
    time it takes to speak."""
    ways = ((info.realtime, *(each.realtime for each in info.user_classes)) for info in infos)
    return len({frozenset(map(bool, own)) for own in ways}) > 1


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write comparison.json into a run's folder."""
    write_atomically(folder / COMPARISON, encode_json(comparison))


def _worded(one: Compared, min_change: float, least: float) -> Compared:
    # With a baseline of 0, any change counts.
    small = one.relative is not None and abs(one.relative) < min_change
    if small or abs(one.difference or 0.0) < least:
        one.word = SAME
    return one


MORE_IS_BETTER = ("rtfx", "requests_per_s", "output_tokens_per_s", "goodput")


def _compared(
    name: str, unit: str, baseline: float | None, value: float | None, interval: _Interval | None
) -> Compared:
    if baseline is None or value is None:
        return Compared(name, unit, baseline, value, None, None, None, None, SAME)
    difference = value - baseline
    relative = difference / baseline if baseline else None if difference else 0.0
    if interval is None:
        return Compared(name, unit, baseline, value, difference, None, None, relative, SAME)
    better = (difference > 0) == (name in MORE_IS_BETTER)
    word = SAME if not interval.apart else BETTER if better else WORSE
    return Compared(name, unit, baseline, value, difference, interval.low, interval.high, relative, word)


def point_figures(run: Run) -> dict[str, tuple[str, float | None]]:
    """A run's figures by name, each with its unit; latencies in ms."""
    summary = run.finished.summary
    found: dict[str, tuple[str, float | None]] = {}
    for name in LATENCIES:
        row: Figures = getattr(summary, name)
        if METRICS[name].is_realtime and not row.n:
            continue
        for statistic in STATISTICS:
            value = getattr(row, statistic)
            found[f"{name}_{statistic}"] = METRICS[name].unit, None if value is None else value * METRICS[name].scale
    units = {"rtfx": "", "requests_per_s": "1/s", "output_tokens_per_s": "1/s", "goodput": "1/s"}
    found |= {name: (unit, getattr(summary, name)) for name, unit in units.items()}
    found |= {name: ("", getattr(summary, name)) for name in ("error_rate", "wer", "cer")}
    return found


def _figures(values: Sequence[Run], baselines: Sequence[Run]) -> list[Compared]:
    """Every figure, for each side the mean over its runs."""
    sides = [[point_figures(run) for run in own] for own in (values, baselines)]
    within = _within_runs(values, baselines)
    found = []
    for name, interval in within.items():
        unit = sides[0][0][name][0]
        of_runs = [[each[name][1] for each in side] for side in sides]
        found += _figure(name, unit, of_runs, interval)
    return found + _text_errors(values, baselines)[1]


def _figure(
    name: str, unit: str, of_runs: Sequence[Sequence[float | None]], within: _Interval | None
) -> list[Compared]:
    """Compare a figure of each side's runs; `within` is the interval of the difference by chance within runs, around 0.
    With several runs a side, the interval must also contain the one between runs, because runs that agree do not prove
    that the next will. Empty if fewer than two of several runs have the figure."""
    told = [[value for value in side if value is not None] for side in of_runs]
    several = min(map(len, of_runs)) > 1
    if several and min(map(len, told)) < 2:
        return []
    value, baseline = (float(np.mean(side)) if side else None for side in told)
    interval = None if within is None or value is None or baseline is None else within.around(value - baseline)
    if interval is not None and several:
        interval = interval.held_with(_between_runs(*map(np.array, told)))
    return [_compared(name, unit, baseline, value, interval)]


def _between_runs(own: np.ndarray, other: np.ndarray) -> _Interval:
    """Welch's t interval (Biometrika 34, 1947) over the runs' figures. A bootstrap needs more runs."""
    parts = own.var(ddof=1) / len(own), other.var(ddof=1) / len(other)
    spread = float(sum(parts))
    free = spread**2 / (parts[0] ** 2 / (len(own) - 1) + parts[1] ** 2 / (len(other) - 1)) if spread else 1.0
    at = min(int(free), len(T_975)) - 1
    difference = float(own.mean() - other.mean())
    half, more = (table[at] * math.sqrt(spread) for table in (T_975, T_995))
    return _Interval(difference - half, difference + half, difference - more, difference + more)


def _within_runs(values: Sequence[Run], baselines: Sequence[Run]) -> dict[str, _Interval | None]:
    """Intervals around 0, by figure, of the difference by chance within runs.

    These are percentile intervals of a bootstrap (Efron and Tibshirani, 1993, chapter 13). For latencies, one bootstrap
    draws clips with all of their requests: the same clips for all runs of a side, and for both sides if they sent the
    same clips. Another draws stretches of time, because concurrent requests share a queue. The interval contains both.
    Error rates use Newcombe's interval, because a bootstrap without failures has no width."""
    sides = values, baselines
    random = np.random.default_rng(SEED)
    good = [[[record for record in run.measured if record.ok] for run in own] for own in sides]
    ways = [_drawn_clips(good, random), _drawn_stretches(good, random)]
    points = [point_figures(run) for own in sides for run in own]
    found: dict[str, _Interval | None] = {}
    for name in (name for name in LATENCIES if all(f"{name}_mean" in each for each in points)):
        least = min(sum(getattr(run.finished.summary, name).n for run in own) for own in sides)
        found |= _of_latency(name, good, ways, least)
    enough = all(len(np.unique(_stretches(run.part.counted))) >= LEAST_UNITS for own in sides for run in own)
    for name in MORE_IS_BETTER:
        drawn = [_mean_of([_resampled(*_rate_by_time(run, name), random) for run in own]) for own in sides]
        found[name] = _interval(drawn[0] - drawn[1]) if enough else None
    found["error_rate"] = _error_rates(values, baselines)
    return found


def _of_latency(name: str, good: Sides, ways: Sequence[_Way], least: int) -> dict[str, _Interval | None]:
    """Intervals for the statistics of a latency; `least` is the number of values on the side that has fewer."""
    intervals = [
        _spread([[_values(name, *run) for run in side] for side in way.runs(good)], way.weights) for way in ways
    ]
    found: dict[str, _Interval | None] = {}
    for at, (statistic, share) in enumerate(STATISTICS.items()):
        known = [interval for own in intervals if own and (interval := own[at]) is not None]
        interval = functools.reduce(_Interval.held_with, known).times(METRICS[name].scale) if known else None
        if interval is not None and share is not None and share**least > 1 - SAID[1] / 100:
            # The true percentile may exceed the largest of so few values, but no draw does.
            interval = interval._replace(lowest=-math.inf, highest=math.inf)
        found[f"{name}_{statistic}"] = interval
    return found


def _error_rates(values: Sequence[Run], baselines: Sequence[Run]) -> _Interval | None:
    """Interval around 0 of the difference in error rates, by stretches of time, because failures come in bursts."""
    own, other = (
        Counted(*map(np.concatenate, zip(*(_rate_by_time(run, "error_rate") for run in side), strict=True)))
        for side in (values, baselines)
    )
    shown, said = (difference_of_shares(own, other, z) for z in (Z_975, Z_995))
    if shown is None or said is None:
        return None
    return _Interval(*shown, *said).around(other.share - own.share)


Sides = Sequence[Sequence[Sequence[Record]]]
"""Successes by side and run."""


class _Way(NamedTuple):
    """A way of resampling: the unit of each request, by side and run; and how often each unit is drawn, of shape
    (ROUNDS, units), by side and run."""

    units: list[list[np.ndarray]]
    weights: list[list[np.ndarray]]

    def runs(self, good: Sides) -> list[list[tuple[Sequence[Record], np.ndarray, int]]]:
        """By side and run: the requests, their units, and the number of units to draw from."""
        return [
            [(run, unit, drawn.shape[1]) for run, unit, drawn in zip(*side, strict=True)]
            for side in zip(good, self.units, self.weights, strict=True)
        ]


def _drawn_clips(good: Sides, random: np.random.Generator) -> _Way:
    """Resample clips, the same ones in all runs of a side, because further runs with the same clips add no clips."""
    clips = [sorted({record.clip for run in side for record in run}) for side in good]
    places = [{clip: number for number, clip in enumerate(names)} for names in clips]
    units = [
        [np.array([place[record.clip] for record in run], int) for run in side]
        for side, place in zip(good, places, strict=True)
    ]
    first = _draw(len(clips[0]), random)
    weights = [first, first if clips[0] == clips[1] else _draw(len(clips[1]), random)]
    return _Way(units, [[own] * len(side) for own, side in zip(weights, good, strict=True)])


def _drawn_stretches(good: Sides, random: np.random.Generator) -> _Way:
    """Resample stretches of time, separately for each run."""
    units = [[_stretches(run) for run in side] for side in good]
    return _Way(units, [[_draw(int(own.max(initial=-1)) + 1, random) for own in side] for side in units])


def _draw(count: int, random: np.random.Generator) -> np.ndarray:
    """How often each unit is drawn in each round; shape (ROUNDS, count)."""
    if not count:
        return np.zeros((ROUNDS, 0), np.float32)
    return random.multinomial(count, np.full(count, 1 / count), ROUNDS).astype(np.float32)


def _spread(sides: Sequence[Sequence[_Values]], weights: Sequence[Sequence[np.ndarray]]) -> list[_Interval | None]:
    """For each of STATISTICS, the interval of its difference around 0; empty with too few units to draw from. The error
    from binning is the same in the drawn and the real difference, and cancels."""
    if min(int((run.sizes > 0).sum()) for side in sides for run in side) < LEAST_UNITS:
        return []
    drawn, real = (
        [
            _mean_of([_drawn(run, each) for run, each in zip(*side, strict=True)])
            for side in zip(sides, own, strict=True)
        ]
        for own in (weights, [[np.ones((1, len(run.sums)), np.float32) for run in side] for side in sides])
    )
    return [_interval(each) for each in (drawn[0] - drawn[1] - (real[0] - real[1])).T]


def _mean_of(draws: Sequence[Draws]) -> Draws:
    """Mean over runs, for each round."""
    return np.asarray(np.mean(draws, axis=0))


def _stretches(records: Sequence[Record]) -> np.ndarray:
    """Index of the stretch of time, of BLOCKS, in which each record ended; shape (n,)."""
    ends = np.array([record.end for record in records])
    if not ends.size:
        return np.zeros(0, int)
    first = min(record.started_at for record in records)
    places: np.ndarray = np.minimum((ends - first) / max(ends.max() - first, 1e-9) * BLOCKS, BLOCKS - 1).astype(int)
    return places


def _values(name: str, good: Sequence[Record], unit: np.ndarray, units: int) -> _Values:
    """Sort a metric's values into bins. `unit`: index of each record's clip or stretch, of `units`; shape (n,)."""
    sizes = [len(METRICS[name].of(record)) for record in good]
    flat = METRICS[name].values(good)
    of = np.repeat(unit, sizes)
    if not flat.size:
        return _Values(np.zeros(units), np.zeros(units), np.zeros((units, 1), np.float32), np.zeros(1))
    order = np.argsort(flat, kind="stable")
    bins = min(flat.size, BINS)
    which = np.empty(flat.size, int)
    which[order] = np.arange(flat.size) * bins // flat.size
    counted = np.zeros((units, bins), np.float32)
    np.add.at(counted, (of, which), 1)
    middles = np.bincount(which, flat) / np.bincount(which)
    return _Values(np.bincount(of, flat, units), np.bincount(of, minlength=units), counted, middles)


def _drawn(values: _Values, weights: np.ndarray) -> Draws:
    """STATISTICS for each round; shape (ROUNDS, statistics); nan for rounds without a value."""
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


def _rate_by_time(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator of a rate, for each stretch of the run's time; shapes (BLOCKS,)."""
    part, limits = run.part, Goodput(run.info.goodput) if run.info.goodput else None
    # Throughput counts all requests. Excluded requests are assumed to have met the limits as often as the others.
    measured = part.sound if name in ("error_rate", "goodput") else part.counted
    like = len(part.counted) / len(part.sound) if name == "goodput" and part.sound else 1.0
    amount: dict[str, Callable[[Record], float]] = {
        "rtfx": lambda record: record.audio_s if record.ok else 0.0,
        "requests_per_s": lambda record: record.ok,
        "output_tokens_per_s": lambda record: (record.known_tokens or 0) if record.ok else 0,
        "goodput": lambda record: limits is not None and limits.meets(record),
        "error_rate": lambda record: record.failed,
    }
    if not measured:
        return np.zeros(BLOCKS), np.zeros(BLOCKS)
    place = _stretches(measured)
    of = np.bincount(place, [amount[name](record) for record in measured], BLOCKS) * like
    if name == "error_rate":
        return of, np.bincount(place, [not record.unfinished for record in measured], BLOCKS)
    return of, np.full(BLOCKS, run.finished.summary.wall_s / BLOCKS)


def _resampled(amounts: np.ndarray, by: np.ndarray, random: np.random.Generator) -> Draws:
    """A rate in each round, minus the real rate."""
    weights = random.multinomial(BLOCKS, np.full(BLOCKS, 1 / BLOCKS), ROUNDS)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weights @ amounts) / (weights @ by) - amounts.sum() / by.sum())


def live_accuracy(run: Run, baseline: Run) -> RealtimeAccuracy | None:
    """Accuracy of a realtime run compared with a run over HTTP; None for other runs, or with too few common clips."""
    if not run.info.realtime or baseline.info.realtime:
        return None
    clips, compared = _text_errors([run], [baseline])
    if not compared:
        return None
    wer, cer = (Difference(one.difference or 0.0, one.low, one.high) for one in compared)
    return RealtimeAccuracy(str(baseline.folder), clips, wer, cer)


def _text_errors(values: Sequence[Run], baselines: Sequence[Run]) -> tuple[int, list[Compared]]:
    """Number of clips that all runs transcribed, and WER and CER over them, compared clip by clip because transcripts
    of a clip are alike."""
    tables = [[_errors_by_clip(run) for run in own] for own in (values, baselines)]
    common = sorted(set.intersection(*(set(table) for side in tables for table in side)))
    if len(common) < LEAST_UNITS:
        return len(common), []
    weights = np.random.default_rng(SEED).multinomial(len(common), np.full(len(common), 1 / len(common)), ROUNDS)
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


def _errors_by_clip(run: Run) -> dict[str, np.ndarray]:
    """For each clip with a reference: word errors, words, character errors, characters; shape (4,)."""
    recordings: dict[str, list[Record]] = {}
    for record in run.measured:
        if record.ok:
            clip = parent_of(record.clip)[0] if run.info.in_parts else record.clip
            recordings.setdefault(clip, []).append(record)
    by_clip = {}
    for clip, own in recordings.items():
        edits = total(counted(spoken(own, run.info.scoring), run.info.scoring))
        if edits.wer.units:
            by_clip[clip] = np.array([number for each in edits for number in (each.errors, each.units)], float)
    return by_clip


def _interval(differences: Draws) -> _Interval | None:
    known = differences[np.isfinite(differences)]
    if known.size < ROUNDS // 2:
        return None
    low, high, lowest, highest = np.percentile(known, [*SHOWN, *SAID]).tolist()
    return _Interval(low, high, lowest, highest)


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


def _not_comparable(values: Sequence[Run], baselines: Sequence[Run]) -> list[str]:
    said = []
    if one_is_realtime(run.info for run in (*values, *baselines)):
        said.append("one side is realtime and the other uploads: latencies and rates are not compared")
    for field, name in FIELDS.items():
        sides = [sorted({_text(getattr(run.info, field)) for run in own}) for own in (values, baselines)]
        if sides[0] != sides[1]:
            said.append(f"different {name}: {', '.join(sides[0])} here, {', '.join(sides[1])} in the baseline")
    loops = [{_text(run.info.loop | {"seed": 0}) for run in own if run.info.loop} for own in (values, baselines)]
    if loops[0] != loops[1]:
        said.append("the arrivals differ, so the two sides did not have the same load")
    machines = [
        {(worker.host, worker.cores, worker.reader) for run in own for worker in run.info.workers}
        for own in (values, baselines)
    ]
    if machines[0] != machines[1]:
        said.append("the client's machines, cores or readers differ")
    for run in (*values, *baselines):
        verdict, left = run.finished.summary.validity.verdict, run.finished.summary.left_out
        if verdict == "client-bound":
            said.append(f"{run.folder}: the client was too slow, so these figures are not the server's")
        if (passed := run.finished.summary.verdict) and not passed.passed:
            said.append(f"{run.folder}: {passed.said()}")
        if not left.warmup and not left.trim_start:
            said.append(f"{run.folder}: warm-up is included; exclude it with --warmup-requests")
    return said


def _thin(values: Sequence[Run], baselines: Sequence[Run]) -> list[str]:
    said = []
    for run in (*values, *baselines):
        good = [record for record in run.measured if record.ok]
        clips = len({record.clip for record in good})
        if clips < FEW_CLIPS:
            said.append(f"{run.folder}: {count_of(clips, 'clip')}, too few for intervals over clips")
        if len(good) < FEW:
            few = count_of(len(good), "successful request")
            said.append(f"{run.folder}: with only {few}, the p99 is the maximum")
    return said


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
    known = (*LATENCIES, "errors", "wer", "cer", *MORE_IS_BETTER)
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


def broken_gates(comparison: Comparison, gates: Sequence[Gate]) -> list[str]:
    """Describe the gates that are broken: the whole interval exceeds the limit, or the figure is missing."""
    figures = {figure.name: figure for figure in comparison.figures}
    said = []
    for gate in gates:
        figure = figures.get(gate.name)
        if figure is None or figure.low is None or figure.high is None or figure.baseline is None:
            said.append(f"--fail-on {gate.text}: {gate.name} cannot be compared")
            continue
        worse = -figure.high if figure.name in MORE_IS_BETTER else figure.low
        limit = gate.limit * abs(figure.baseline) if gate.relative else gate.limit
        if worse > limit:
            said.append(f"--fail-on {gate.text}: {figure.name} is worse by at least {worse:.4g} {figure.unit}".rstrip())
    return said
