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
from asr_load.files import encode_json
from asr_load.results.accuracy import counted, spoken, total
from asr_load.results.figures import Figures
from asr_load.results.metrics import METRICS
from asr_load.results.runfile import RunInfo
from asr_load.results.slo import Goodput
from asr_load.results.steady import trim
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
    def measured(self) -> list[Record]:
        return trim(self.finished.records, self.info.trim_start, self.info.trim_end)[0]


Draws = np.ndarray
"""Of the bootstrap: a statistic in each round; shape (ROUNDS,)."""


class _Interval(NamedTuple):
    """Of a difference, 95 %; `apart`: whether that of 99 % leaves out 0."""

    low: float
    high: float
    apart: bool

    def held_with(self, other: _Interval) -> _Interval:
        """The one that holds both."""
        return _Interval(min(self.low, other.low), max(self.high, other.high), self.apart and other.apart)


class _Values(NamedTuple):
    """A metric's values by clip: sums and counts, shape (clips,), and counts in bins, shape (clips, bins)."""

    sums: np.ndarray
    sizes: np.ndarray
    binned: np.ndarray
    middles: np.ndarray


def compare(values: Sequence[Run], baselines: Sequence[Run], min_change: float = 0.0) -> Comparison:
    """Compare two sides. With two runs or more on each, chance is counted by runs; with one, by clips and the time.
    Raises InputError."""
    several = min(len(values), len(baselines)) > 1
    if not several and len(values) + len(baselines) > 2:
        raise InputError("a comparison takes one run a side, or two and more of each")
    found = _by_runs(values, baselines) if several else _by_clips(values, baselines)
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
        f"Welch's t over {len(values)} and {len(baselines)} runs"
        if several
        else f"bootstrap of {ROUNDS} rounds: latencies by clip and by {BLOCKS} stretches of time, both held;"
        " WER by clip, rates by time"
    )
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
    (folder / COMPARISON).write_bytes(encode_json(comparison))


def _worded(one: Compared, min_change: float, least: float) -> Compared:
    # Of a baseline of 0, any change is one.
    small = one.relative is not None and abs(one.relative) < min_change
    if small or abs(one.difference or 0.0) < least:
        one.word = SAME
    return one


MORE_IS_BETTER = ("rtfx", "requests_per_s", "output_tokens_per_s", "goodput")
RATES = (*MORE_IS_BETTER, "error_rate")


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
    requests = summary.requests
    judged = requests.success + requests.fail
    units = {"rtfx": "", "requests_per_s": "1/s", "output_tokens_per_s": "1/s", "goodput": "1/s"}
    found |= {name: (unit, getattr(summary, name)) for name, unit in units.items()}
    found["error_rate"] = "", requests.fail / judged if judged else None
    found |= {name: ("", getattr(summary, name)) for name in ("wer", "cer")}
    return found


def _by_runs(values: Sequence[Run], baselines: Sequence[Run]) -> list[Compared]:
    """Welch's t (Biometrika 34, 1947) over the runs' own figures: few runs are no ground for a bootstrap of them."""
    sides = [[point_figures(run) for run in own] for own in (values, baselines)]
    found = []
    for name, (unit, _) in sides[0][0].items():
        told = [[figure for each in side if (figure := each[name][1]) is not None] for side in sides]
        if min(map(len, told)) < 2:
            continue
        own, other = (np.array(side) for side in told)
        parts = own.var(ddof=1) / len(own), other.var(ddof=1) / len(other)
        spread = sum(parts)
        free = spread**2 / (parts[0] ** 2 / (len(own) - 1) + parts[1] ** 2 / (len(other) - 1)) if spread else 1.0
        at = min(int(free), len(T_975)) - 1
        difference = float(own.mean() - other.mean())
        half, more = (table[at] * math.sqrt(spread) for table in (T_975, T_995))
        both = float(other.mean()), float(own.mean())
        interval = _Interval(difference - half, difference + half, apart=abs(difference) > more)
        found.append(_compared(name, unit, *both, interval))
    return found


def _by_clips(values: Sequence[Run], baselines: Sequence[Run]) -> list[Compared]:
    """The percentile interval of a bootstrap (Efron and Tibshirani, 1993, chapter 13). Latencies: clips are drawn with
    all of their requests, the same ones for both sides where both sent the same; and stretches of time are, as
    requests side by side share a queue. The interval holds both."""
    run, other = values[0], baselines[0]
    points, base = point_figures(run), point_figures(other)
    random = np.random.default_rng(SEED)
    good = [[record for record in each.measured if record.ok] for each in (run, other)]
    by_clip = [_numbers(record.clip for record in side) for side in good]
    by_time = [_stretches(side) for side in good]
    same = {record.clip for record in good[0]} == {record.clip for record in good[1]}
    draws = [(by_clip, _draw(by_clip, random, paired=same)), (by_time, _draw(by_time, random, paired=False))]
    found = []
    for name in (name for name in LATENCIES if f"{name}_mean" in points and f"{name}_mean" in base):
        ways = [([_values(name, *side) for side in zip(good, units, strict=True)], weights) for units, weights in draws]
        for statistic, share in STATISTICS.items():
            key, scale = f"{name}_{statistic}", METRICS[name].scale
            unit, value = points[key]
            difference = _difference(value, base[key][1])
            intervals = [_around(difference, sides, weights, share, scale) for sides, weights in ways]
            known = [interval for interval in intervals if interval is not None]
            both = functools.reduce(_Interval.held_with, known) if known else None
            found.append(_compared(key, unit, base[key][1], value, both))
    for name in RATES:
        unit, value = points[name]
        drawn = [_resampled(*_rate_by_time(each, name), random) for each in (run, other)]
        found.append(_compared(name, unit, base[name][1], value, _interval(drawn[0] - drawn[1])))
    return found + _text_errors(run, other, good)[1]


def _around(
    difference: float, sides: Sequence[_Values], weights: Sequence[np.ndarray], share: float | None, scale: float
) -> _Interval | None:
    """The interval of a difference; None where there is too little to draw from. What bins cost is in the drawn as in
    the real one: it is taken off."""
    if min(int((side.sizes > 0).sum()) for side in sides) < LEAST_UNITS:
        return None
    drawn = [_drawn(side, own, share) for side, own in zip(sides, weights, strict=True)]
    real = [_drawn(side, np.ones((1, len(side.sums)), np.float32), share) for side in sides]
    shift = difference - float((real[0] - real[1])[0]) * scale
    return _interval((drawn[0] - drawn[1]) * scale + shift)


def _numbers(clips: Iterable[str]) -> np.ndarray:
    """Each clip's place in the order of their names; shape (n,)."""
    names = list(clips)
    place = {clip: number for number, clip in enumerate(sorted(set(names)))}
    return np.array([place[clip] for clip in names], int)


def _stretches(records: Sequence[Record]) -> np.ndarray:
    """Which of the BLOCKS stretches of time each record ended in; shape (n,)."""
    ends = np.array([record.end for record in records])
    if not ends.size:
        return np.zeros(0, int)
    first = min(record.started_at for record in records)
    places: np.ndarray = np.minimum((ends - first) / max(ends.max() - first, 1e-9) * BLOCKS, BLOCKS - 1).astype(int)
    return places


def _draw(units: Sequence[np.ndarray], random: np.random.Generator, *, paired: bool) -> list[np.ndarray]:
    """How often each unit is drawn in each round, for both sides; shape (ROUNDS, units)."""

    def draw(own: np.ndarray) -> np.ndarray:
        count = int(own.max()) + 1 if own.size else 0
        if not count:
            return np.zeros((ROUNDS, 0), np.float32)
        return random.multinomial(count, np.full(count, 1 / count), ROUNDS).astype(np.float32)

    first = draw(units[0])
    return [first, first if paired else draw(units[1])]


def _values(name: str, good: Sequence[Record], unit: np.ndarray) -> _Values:
    """`unit`: which clip, or stretch of time, each record is of; shape (n,)."""
    units = int(unit.max()) + 1 if unit.size else 0
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


def _drawn(values: _Values, weights: np.ndarray, share: float | None) -> Draws:
    """A statistic in each round; nan in one that has no value."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if share is None:
            return np.asarray((weights @ values.sums) / (weights @ values.sizes))
        reached = np.cumsum(weights @ values.binned, axis=1)
        wanted = share * reached[:, -1:]
        at = (reached < wanted).sum(axis=1).clip(max=len(values.middles) - 1)
        return np.where(reached[:, -1] > 0, values.middles[at], np.nan)


def _rate_by_time(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What a rate counts, and what it counts it by, in each stretch of the run's time; shapes (BLOCKS,)."""
    measured, limits = run.measured, Goodput(run.info.goodput) if run.info.goodput else None
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
    of = np.bincount(place, [amount[name](record) for record in measured], BLOCKS)
    if name == "error_rate":
        return of, np.bincount(place, [not record.unfinished for record in measured], BLOCKS)
    return of, np.full(BLOCKS, run.finished.summary.wall_s / BLOCKS)


def _resampled(amounts: np.ndarray, by: np.ndarray, random: np.random.Generator) -> Draws:
    weights = random.multinomial(BLOCKS, np.full(BLOCKS, 1 / BLOCKS), ROUNDS)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weights @ amounts) / (weights @ by))


def live_accuracy(run: Run, baseline: Run) -> LiveAccuracy | None:
    """Of a realtime run against one over HTTP; None of others, and where they have too few clips in common."""
    if not run.info.realtime or baseline.info.realtime:
        return None
    good = [[record for record in each.measured if record.ok] for each in (run, baseline)]
    clips, compared = _text_errors(run, baseline, good)
    if not compared:
        return None
    wer, cer = (Difference(one.difference or 0.0, one.low, one.high) for one in compared)
    return LiveAccuracy(str(baseline.folder), clips, wer, cer)


def _text_errors(run: Run, other: Run, good: Sequence[Sequence[Record]]) -> tuple[int, list[Compared]]:
    """WER and CER over the clips that both sides transcribed, always by pairs: texts of one clip are alike. How many
    clips these are, first."""
    tables = []
    for side, info in zip(good, (run.info, other.info), strict=True):
        by_clip: dict[str, np.ndarray] = {}
        recordings: dict[str, list[Record]] = {}
        for record in side:
            recordings.setdefault(parent_of(record.clip)[0] if info.in_parts else record.clip, []).append(record)
        for clip, own in recordings.items():
            edits = total(counted(spoken(own, info.scoring), info.scoring))
            if edits.wer.units:
                by_clip[clip] = np.array([number for each in edits for number in (each.errors, each.units)], float)
        tables.append(by_clip)
    common = sorted(tables[0].keys() & tables[1].keys())
    if len(common) < LEAST_UNITS:
        return len(common), []
    weights = np.random.default_rng(SEED).multinomial(len(common), np.full(len(common), 1 / len(common)), ROUNDS)
    # However often a clip was sent, it counts once: by the mean of its transcripts.
    rows = [np.array([table[clip] for clip in common]) for table in tables]
    compared = []
    for name, at in (("wer", 0), ("cer", 2)):
        shares = [part[:, at] / part[:, at + 1] * rows[1][:, at + 1] for part in rows]
        units = rows[1][:, at + 1]
        value, base = (float(share.sum() / units.sum()) for share in shares)
        drawn = [(weights @ share) / (weights @ units) for share in shares]
        compared.append(_compared(name, "", base, value, _interval(drawn[0] - drawn[1])))
    return len(common), compared


def _interval(differences: Draws) -> _Interval | None:
    known = differences[np.isfinite(differences)]
    if known.size < ROUNDS // 2:
        return None
    low, high, lowest, highest = np.percentile(known, [*SHOWN, *SAID]).tolist()
    return _Interval(low, high, apart=lowest > 0 or highest < 0)


def _difference(one: float | None, other: float | None) -> float:
    return math.nan if one is None or other is None else one - other


FIELDS = {
    "data_sha256": "the data (manifest)",
    "data_clips": "the clips",
    "model": "the model",
    "api": "the API",
    "preset": "the preset",
    "prompt": "the prompt",
    "max_tokens": "--max-tokens",
    "temperature": "--temperature",
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
    try:
        limit = float(word.removesuffix("%"))
    except ValueError:
        limit = math.nan
    if not (math.isfinite(limit) and limit >= 0):
        raise InputError(f"--fail-on {text!r}: the limit {word!r} is no number from 0 up, nor a percentage like 10%")
    return Gate(text, name, limit / 100 if word.endswith("%") else limit, word.endswith("%"))


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
