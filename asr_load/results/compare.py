"""What differs between runs, and whether that is more than chance. docs/comparison.md has the reasons."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from asr_load.audio.cut import parent_of
from asr_load.errors import InputError
from asr_load.files import encode_json, write_atomically
from asr_load.results import sound
from asr_load.results.accuracy import counted, spoken, total
from asr_load.results.figures import Figures
from asr_load.results.metrics import METRICS
from asr_load.results.proportion import Counted, difference_of_shares
from asr_load.results.runfile import RunInfo
from asr_load.results.slo import Goodput, check_unit, parse_limit
from asr_load.results.sound import Measured
from asr_load.results.summary import Difference, Finished, LiveAccuracy
from asr_load.stream.record import Record

COMPARISON, FORMAT = "comparison.json", 1
LATENCIES = ("ttft", "itl", "tpot", "e2el", "rtf", "ttfs", "done_latency", "rtf_live")
STATISTICS = {"mean": None, "p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
ROUNDS, SEED = 1000, 20261126
"""Of the bootstrap. The same runs give the same intervals."""

BINS = 2048
"""Values of a metric are kept in so many bins of equal count at most: a percentile is off by less than what lies
between two of them, and an interval by far less than chance."""

BLOCKS = 30
"""Stretches of a run that rates are resampled by."""

RESOLUTION_MS = 0.1
"""Differences of latencies below it are the client's own: what its timers and its network make of a packet."""

LEAST_UNITS = 5
"""Clips, or stretches of time, below which there is no interval."""

FEW_CLIPS, FEW = 10, 100

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042, 1.960,
)  # fmt: skip
T_995 = (
    63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947,
    2.921, 2.898, 2.878, 2.861, 2.845, 2.831, 2.819, 2.807, 2.797, 2.787, 2.779, 2.771, 2.763, 2.756, 2.750, 2.576,
)  # fmt: skip
"""Student's t at 97.5 % and 99.5 %, for 1 to 30 degrees of freedom (any table of it); last, the normal
distribution's, for more."""

Z_975, Z_995 = T_975[-1], T_995[-1]

SHOWN, SAID = (2.5, 97.5), (0.5, 99.5)
"""Percentiles between which an interval lies: the one that is shown (95 %), and the one that has to leave out 0 for a
word (99 %), as thirty figures are judged at once and each may be wrong."""

BETTER, WORSE, SAME = "better", "worse", "no difference shown"


class Compared(msgspec.Struct):
    """A figure of both sides. `low` and `high` bound the difference (95 %); `relative` is it over the baseline. `word`
    is better or worse where the 99 % interval leaves out 0."""

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
    """comparison.json."""

    format: int = FORMAT
    figures: list[Compared]
    warnings: list[str]
    """Why the runs, or the intervals, are less than they look."""
    runs: dict[str, list[str]]
    """Folders, by the side: value and baseline."""
    method: str
    min_change: float = 0.0


class Run(NamedTuple):
    """A run and where it lies."""

    folder: Path
    finished: Finished

    @property
    def info(self) -> RunInfo:
        return self.finished.info

    @property
    def part(self) -> Measured:
        return sound.measured(self.finished.records, self.info)

    @property
    def measured(self) -> list[Record]:
        """The requests that latencies, error rates and accuracy are of."""
        return self.part.sound


Draws = np.ndarray
"""Of the bootstrap: a figure, or several, in each round; shape (ROUNDS,) or (ROUNDS, figures)."""


class _Interval(NamedTuple):
    """Of a difference: 95 % between `low` and `high`, 99 % between `lowest` and `highest`."""

    low: float
    high: float
    lowest: float
    highest: float

    @property
    def apart(self) -> bool:
        """Whether the interval of 99 % leaves out 0."""
        return self.lowest > 0 or self.highest < 0

    def held_with(self, other: _Interval) -> _Interval:
        """The one that holds both."""
        lows, highs = (self.low, other.low), (self.high, other.high)
        return _Interval(min(lows), max(highs), min(self.lowest, other.lowest), max(self.highest, other.highest))

    def times(self, scale: float) -> _Interval:
        """An interval in another unit."""
        return _Interval(*(bound * scale for bound in self))

    def around(self, difference: float) -> _Interval:
        """An interval around 0, moved to a difference."""
        return _Interval(*(bound + difference for bound in self))


class _Values(NamedTuple):
    """A metric's values by clip: sums and counts, shape (clips,), and counts in bins, shape (clips, bins)."""

    sums: np.ndarray
    sizes: np.ndarray
    binned: np.ndarray
    middles: np.ndarray


def compare(values: Sequence[Run], baselines: Sequence[Run], min_change: float = 0.0) -> Comparison:
    """Compare two sides: chance is counted by clips and stretches of time and, with two runs or more on each side, by
    runs as well. Raises InputError."""
    several = min(len(values), len(baselines)) > 1
    if not several and len(values) + len(baselines) > 2:
        raise InputError("a comparison takes one run a side, or two and more of each")
    found = _figures(values, baselines)
    if one_is_live(run.info for run in (*values, *baselines)):
        found = [one for one in found if one.name in ACCURACY]
    audio = [record.audio_s for run in (*values, *baselines) for record in run.measured if record.ok and record.audio_s]
    # RTF is a latency by the length of a clip: by that of the shortest, the same time weighs most.
    least = {"ms": RESOLUTION_MS, "rtf": RESOLUTION_MS / 1e3 / min(audio, default=1.0)}
    figures = [
        _worded(one, min_change, least.get("rtf" if one.name.startswith("rtf_") else one.unit, 0.0)) for one in found
    ]
    one_each = "one run a side: what differs between runs by itself, as after a restart, is in no interval"
    method = (
        f"bootstrap of {ROUNDS} rounds: latencies by clip and by {BLOCKS} stretches of time, both held;"
        " WER by clip, rates by time; error rates: Newcombe's interval"
    )
    if several:
        method = f"both held: Welch's t over {len(values)} and {len(baselines)} runs, and within runs a {method}"
    warnings = [*_not_comparable(values, baselines), *([] if several else [one_each]), *_thin(values, baselines)]
    runs = {side: [str(run.folder) for run in own] for side, own in (("value", values), ("baseline", baselines))}
    return Comparison(figures=figures, warnings=warnings, runs=runs, method=method, min_change=min_change)


ACCURACY = ("wer", "cer", "error_rate")


def one_is_live(infos: Iterable[RunInfo]) -> bool:
    """Whether some runs spoke and others uploaded, or did both: latencies of speech have the time in them that speaking
    takes."""
    ways = ((info.realtime, *(each.realtime for each in info.user_classes)) for info in infos)
    return len({frozenset(map(bool, own)) for own in ways}) > 1


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write comparison.json beside a run's files."""
    write_atomically(folder / COMPARISON, encode_json(comparison))


def _worded(one: Compared, min_change: float, least: float) -> Compared:
    # Of a baseline of 0, any change is one.
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
    """Every figure of a run by its name: the unit and the value, latencies in ms."""
    summary = run.finished.summary
    found: dict[str, tuple[str, float | None]] = {}
    for name in LATENCIES:
        row: Figures = getattr(summary, name)
        if METRICS[name].live and not row.n:
            continue
        for statistic in STATISTICS:
            value = getattr(row, statistic)
            found[f"{name}_{statistic}"] = METRICS[name].unit, None if value is None else value * METRICS[name].scale
    units = {"rtfx": "", "requests_per_s": "1/s", "output_tokens_per_s": "1/s", "goodput": "1/s"}
    found |= {name: (unit, getattr(summary, name)) for name, unit in units.items()}
    found |= {name: ("", getattr(summary, name)) for name in ("error_rate", "wer", "cer")}
    return found


def _figures(values: Sequence[Run], baselines: Sequence[Run]) -> list[Compared]:
    """Every figure of both sides, each the mean over its side's runs."""
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
    """A figure by the values of each side's runs, and the interval of its difference by chance within runs, around 0.
    With several runs a side, the interval that holds this one and the one between runs: runs that agree are no proof
    that the next one will. Empty where fewer than two of several runs have the figure."""
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
    """Welch's t interval (Biometrika 34, 1947) over the runs' own figures: few runs are no ground for a bootstrap."""
    parts = own.var(ddof=1) / len(own), other.var(ddof=1) / len(other)
    spread = float(sum(parts))
    free = spread**2 / (parts[0] ** 2 / (len(own) - 1) + parts[1] ** 2 / (len(other) - 1)) if spread else 1.0
    at = min(int(free), len(T_975)) - 1
    difference = float(own.mean() - other.mean())
    half, more = (table[at] * math.sqrt(spread) for table in (T_975, T_995))
    return _Interval(difference - half, difference + half, difference - more, difference + more)


def _within_runs(values: Sequence[Run], baselines: Sequence[Run]) -> dict[str, _Interval | None]:
    """By the figure, the interval of its difference by chance within runs, around 0.

    The percentile interval of a bootstrap (Efron and Tibshirani, 1993, chapter 13). Latencies: clips are drawn with
    all of their requests, the same ones for all runs of a side, and for both sides where both sent the same; and
    stretches of time are, as requests side by side share a queue. The interval holds both. Error rates: Newcombe's
    interval, as a bootstrap of no failure has no width."""
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
    """The intervals of a latency's statistics; the side with fewer values has `least`."""
    intervals = [
        _spread([[_values(name, *run) for run in side] for side in way.runs(good)], way.weights) for way in ways
    ]
    found: dict[str, _Interval | None] = {}
    for at, (statistic, share) in enumerate(STATISTICS.items()):
        known = [interval for own in intervals if own and (interval := own[at]) is not None]
        interval = functools.reduce(_Interval.held_with, known).times(METRICS[name].scale) if known else None
        if interval is not None and share is not None and share**least > 1 - SAID[1] / 100:
            # The percentile may well lie above the largest of so few values, which no draw does.
            interval = interval._replace(lowest=-math.inf, highest=math.inf)
        found[f"{name}_{statistic}"] = interval
    return found


def _error_rates(values: Sequence[Run], baselines: Sequence[Run]) -> _Interval | None:
    """The interval of the difference in error rates around 0, by stretches of time, as failures come in bursts."""
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
    """A way of drawing: the unit of each request by side and run, and how often each unit is drawn, of shape (ROUNDS,
    units), by side and run."""

    units: list[list[np.ndarray]]
    weights: list[list[np.ndarray]]

    def runs(self, good: Sides) -> list[list[tuple[Sequence[Record], np.ndarray, int]]]:
        """By side and run: the requests, their units, and how many units there are to draw from."""
        return [
            [(run, unit, drawn.shape[1]) for run, unit, drawn in zip(*side, strict=True)]
            for side in zip(good, self.units, self.weights, strict=True)
        ]


def _drawn_clips(good: Sides, random: np.random.Generator) -> _Way:
    """Clips, the same ones in all runs of a side: that more runs send them again makes them no more."""
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
    """Stretches of time, of each run for itself."""
    units = [[_stretches(run) for run in side] for side in good]
    return _Way(units, [[_draw(int(own.max(initial=-1)) + 1, random) for own in side] for side in units])


def _draw(count: int, random: np.random.Generator) -> np.ndarray:
    """How often each unit is drawn in each round; shape (ROUNDS, count)."""
    if not count:
        return np.zeros((ROUNDS, 0), np.float32)
    return random.multinomial(count, np.full(count, 1 / count), ROUNDS).astype(np.float32)


def _spread(sides: Sequence[Sequence[_Values]], weights: Sequence[Sequence[np.ndarray]]) -> list[_Interval | None]:
    """For each of STATISTICS, the interval of its difference around 0; empty where there is too little to draw from.
    What bins cost is in the drawn as in the real one: it is subtracted."""
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
    """The mean over runs, round by round."""
    return np.asarray(np.mean(draws, axis=0))


def _stretches(records: Sequence[Record]) -> np.ndarray:
    """Which of the BLOCKS stretches of time each record ended in; shape (n,)."""
    ends = np.array([record.end for record in records])
    if not ends.size:
        return np.zeros(0, int)
    first = min(record.started_at for record in records)
    places: np.ndarray = np.minimum((ends - first) / max(ends.max() - first, 1e-9) * BLOCKS, BLOCKS - 1).astype(int)
    return places


def _values(name: str, good: Sequence[Record], unit: np.ndarray, units: int) -> _Values:
    """`unit`: which of `units` clips, or stretches of time, each record is of; shape (n,)."""
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
    """STATISTICS in each round; shape (ROUNDS, statistics); nan in one that has no value."""
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
    """What a rate counts, and what it counts it by, in each stretch of the run's time; shapes (BLOCKS,)."""
    part, limits = run.part, Goodput(run.info.goodput) if run.info.goodput else None
    # Throughput is of all requests; of those that are excluded, as many met the limits as of the others.
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
    """A rate in each round, less the real one."""
    weights = random.multinomial(BLOCKS, np.full(BLOCKS, 1 / BLOCKS), ROUNDS)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weights @ amounts) / (weights @ by) - amounts.sum() / by.sum())


def live_accuracy(run: Run, baseline: Run) -> LiveAccuracy | None:
    """Of a realtime run against one over HTTP; None of others, and where they have too few clips in common."""
    if not run.info.realtime or baseline.info.realtime:
        return None
    clips, compared = _text_errors([run], [baseline])
    if not compared:
        return None
    wer, cer = (Difference(one.difference or 0.0, one.low, one.high) for one in compared)
    return LiveAccuracy(str(baseline.folder), clips, wer, cer)


def _text_errors(values: Sequence[Run], baselines: Sequence[Run]) -> tuple[int, list[Compared]]:
    """WER and CER over the clips that all runs transcribed, always by pairs: texts of one clip are alike. How many
    clips these are, first."""
    tables = [[_errors_by_clip(run) for run in own] for own in (values, baselines)]
    common = sorted(set.intersection(*(set(table) for side in tables for table in side)))
    if len(common) < LEAST_UNITS:
        return len(common), []
    weights = np.random.default_rng(SEED).multinomial(len(common), np.full(len(common), 1 / len(common)), ROUNDS)
    # However often a clip was sent, it counts once: by the mean of its transcripts.
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
    """Errors and words, and errors and characters, of each clip with a reference; shape (4,)."""
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
    "data_sha256": "the data (manifest)",
    "data_clips": "the clips",
    "model": "the model",
    "api": "the API",
    "preset": "the preset",
    "prompt": "the prompt",
    "max_tokens": "--max-tokens",
    "temperature": "--temperature",
    "language": "the language of the references",
    "asked_language": "--language",
    "unique": "--unique",
    "order": "--order",
    "mix": "--mix",
    "normalizer": "--normalizer",
    "num_users": "the users",
    "shape": "the shape",
    "connections": "--connections",
    "http_version": "--http-version",
    "platform": "the client's system",
}
"""Of run.json: what has to be equal for a difference to be the server's."""


def _not_comparable(values: Sequence[Run], baselines: Sequence[Run]) -> list[str]:
    said = []
    if one_is_live(run.info for run in (*values, *baselines)):
        said.append("one side spoke and the other uploaded: no latency and no rate of theirs is compared")
    for field, name in FIELDS.items():
        sides = [sorted({_text(getattr(run.info, field)) for run in own}) for own in (values, baselines)]
        if sides[0] != sides[1]:
            said.append(f"{name} differ: {', '.join(sides[0])} here, {', '.join(sides[1])} in the baseline")
    loops = [{_text(run.info.loop | {"seed": 0}) for run in own if run.info.loop} for own in (values, baselines)]
    if loops[0] != loops[1]:
        said.append("the arrivals differ: one side's load is not the other's")
    machines = [
        {(worker.host, worker.cores, worker.reader) for run in own for worker in run.info.workers}
        for own in (values, baselines)
    ]
    if machines[0] != machines[1]:
        said.append("the client's machines, cores or readers differ")
    for run in (*values, *baselines):
        verdict, left = run.finished.summary.validity.verdict, run.finished.summary.left_out
        if verdict == "client-bound":
            said.append(f"{run.folder}: the client was too slow, and its figures are not the server's")
        if (passed := run.finished.summary.verdict) and not passed.passed:
            said.append(f"{run.folder}: {passed.said()}")
        if not left.warmup and not left.trim_start:
            said.append(f"{run.folder}: no warm-up was left out (--warmup-requests)")
    return said


def _thin(values: Sequence[Run], baselines: Sequence[Run]) -> list[str]:
    said = []
    for run in (*values, *baselines):
        good = [record for record in run.measured if record.ok]
        clips = len({record.clip for record in good})
        if clips < FEW_CLIPS:
            said.append(f"{run.folder}: {clips} clips are too few for intervals over clips")
        if len(good) < FEW:
            said.append(f"{run.folder}: {len(good)} successes are few: a p99 of them is their maximum")
    return said


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()[:80]


class Gate(NamedTuple):
    """A limit on how much worse a figure may be: `relative` as a share of the baseline, else in the figure's unit."""

    text: str
    name: str
    limit: float
    relative: bool


def parse_gate(text: str) -> Gate:
    """`ttft:p95:10%` or `wer:mean:0.005`. Raises InputError."""
    metric, _, rest = text.partition(":")
    statistic, _, word = rest.partition(":")
    name = {"errors": "error_rate"}.get(metric, metric)
    if metric in LATENCIES:
        name = f"{metric}_{statistic}" if statistic in STATISTICS else ""
    known = (*LATENCIES, "errors", "wer", "cer", *MORE_IS_BETTER)
    if metric not in known or not name:
        raise InputError(
            f"--fail-on {text!r} takes METRIC:STAT:LIMIT, as ttft:p95:10% (metrics: {', '.join(known)};"
            f" of latencies: {', '.join(STATISTICS)})"
        )
    if not word.endswith("%"):
        check_unit("--fail-on", text)
        return Gate(text, name, parse_limit(f"--fail-on {text!r}", metric, word), relative=False)
    share = parse_limit(f"--fail-on {text!r}", "", word.removesuffix("%")) / 100
    return Gate(text, name, share, relative=True)


def broken_gates(comparison: Comparison, gates: Sequence[Gate]) -> list[str]:
    """The gates whose limit the whole interval lies beyond, in words. One whose figure is not there is broken."""
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
            said.append(f"--fail-on {gate.text}: {figure.name} is worse by {worse:.4g} {figure.unit} at least".rstrip())
    return said
