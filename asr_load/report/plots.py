"""The content of a run's charts: titles, lines, points and bars. charts.js draws them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from asr_load.report.sentence import slo_title
from asr_load.results.capacity import Capacity, Step, knee
from asr_load.results.metrics import METRICS, Figures
from asr_load.results.parts import by
from asr_load.results.runfile import RunInfo
from asr_load.results.slo import Slo, parse_slo, parse_slos
from asr_load.results.sound import Measured
from asr_load.results.steady import sorted_by_length
from asr_load.stream.record import Record

SHARES = np.concatenate([np.linspace(0, 0.98, 99), np.linspace(0.981, 1, 20)])
"""Quantiles at which a distribution's curve is drawn, closer together at its upper end."""

SURE = 2.58
"""Standard errors by which a slope must exceed 0 (99 %)."""

POINTS = 1500
"""Maximum number of points in a scatter plot. More would hide each other and enlarge the page."""


class Series(msgspec.Struct):
    """Data of a chart. `kind`: line, points, or span (`data` are [from, to, y])."""

    name: str
    data: Sequence[tuple[float, ...]]
    kind: str = "line"


class Mark(msgspec.Struct):
    """A line across a chart at a value of an axis: a limit (level) or a moment (place)."""

    name: str
    at: float


class Plot(msgspec.Struct):
    """A chart. `rows` names the positions on the y axis if it has no numbers."""

    title: str
    x: str
    y: str
    series: list[Series]
    levels: list[Mark] = []
    places: list[Mark] = []
    rows: list[str] = []
    log_y: bool = False
    note: str = ""


def distributions(good: Sequence[Record], slos: Sequence[str]) -> list[Plot]:
    """Cumulative distributions of TTFT, ITL, E2E and, for realtime sessions, TTFS."""
    plots = []
    for name in ("ttft", "itl", "e2el", "ttfs"):
        metric = METRICS[name]
        values = METRICS[name].values(good)
        if values.size:
            curve = [(_short(value * metric.scale), _short(share * 100)) for value, share in _curve(values)]
            limits = [slo for slo in map(parse_slo, slos) if slo.metric == name]
            places = [Mark(f"limit of {slo.statistic}: {slo.limit:g} ms", slo.limit) for slo in limits]
            title = f"{metric.title}: share of values up to x"
            plots.append(Plot(title, f"{metric.title}, ms", "%", [Series(metric.title, curve)], places=places))
    return plots


def _curve(values: np.ndarray) -> list[tuple[float, float]]:
    """Quantiles with linear interpolation, like numpy's, but in half the time and a tenth less memory."""
    values.sort()
    places = SHARES * (values.size - 1)
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, values.size - 1)
    reached = values[below] + (places - below) * (values[above] - values[below])
    return list(zip(reached.tolist(), SHARES.tolist(), strict=True))


class Fit(msgspec.Struct):
    """Latency = `fixed_s` + `per_audio_s` x seconds of audio, over n requests. `per_audio_s` is None if latency does
    not grow with the length by more than chance."""

    metric: str
    fixed_s: float
    per_audio_s: float | None
    n: int
    by_order: bool = False
    """Whether a trend over time may distort the fit, because the clips are sorted by length."""

    @property
    def line(self) -> str:
        """The formula in milliseconds, with its reservations."""
        formula = "no relation to clip length found"
        if self.per_audio_s is not None:
            formula = f"{self.fixed_s * 1e3:.0f} ms + {self.per_audio_s * 1e3:.1f} ms per second of audio"
        doubt = " (the clips are sorted by length, so this may include a trend over time)"
        return formula + (doubt if self.by_order else "")


def _by_audio(name: str, good: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of audio and latency of the requests that have this latency; shapes (n,)."""
    audio = np.array([record.audio_s for record in good], float)
    values = np.array(list(map(METRICS[name].get, good)), float)  # None becomes NaN
    there = ~np.isnan(values)
    return audio[there], values[there]


def fit(name: str, good: Sequence[Record]) -> Fit | None:
    """Fit a latency by least squares as a fixed part plus a part per second of audio, neither below 0; None if lengths
    hardly differ. The slope must exceed 0 by 2.58 standard errors (99 %), which allow for correlation between requests
    of the same length."""
    audio, values = _by_audio(name, good)
    if audio.size < 3 or np.ptp(audio) < 0.5:
        return None
    from_mean, by_order = audio - audio.mean(), sorted_by_length(good)
    spread = float(from_mean @ from_mean)
    slope = float(from_mean @ values) / spread
    errors = from_mean * (values - values.mean() - slope * from_mean)
    alike = np.bincount(np.unique(audio, return_inverse=True)[1], errors)
    deviation = float(np.sqrt(max(alike @ alike, errors @ errors))) / spread
    if slope <= 0 or slope <= SURE * deviation:
        return Fit(name, float(values.mean()), None, int(audio.size), by_order)
    fixed = float(values.mean() - slope * audio.mean())
    if fixed < 0:  # use the best fit without a negative part
        fixed, slope = 0.0, float(audio @ values) / float(audio @ audio)
    return Fit(name, fixed, slope, int(audio.size), by_order)


def against_length(good: Sequence[Record]) -> list[Plot]:
    """TTFT and E2E plotted against clip length, with their fits."""
    plots = []
    for name in ("ttft", "e2el"):
        audio, values = _by_audio(name, good)
        if not audio.size:
            continue
        title, step = METRICS[name].title, -(-audio.size // POINTS)
        cloud = [(_short(x), _short(y * 1e3)) for x, y in zip(audio[::step], values[::step], strict=True)]
        plot = Plot(f"{title} by clip length", "audio, s", "ms", [Series("request", cloud, "points")])
        if found := fit(name, good):
            if found.per_audio_s is not None:
                ends = [audio.min(), audio.max()]
                line = [(_short(end), _short((found.fixed_s + found.per_audio_s * end) * 1e3)) for end in ends]
                plot.series.append(Series("fit", line))
            plot.note = found.line
        if step > 1:
            plot.note += f"{'; ' if plot.note else ''}1 in {step} points is drawn"
        plots.append(plot)
    return plots


def waterfall(good: Sequence[Record]) -> Plot | None:
    """The fastest, the median and the slowest request: upload, wait, and each chunk."""
    order = sorted(good, key=lambda record: record.e2el or 0.0)
    if not order:
        return None
    chosen = [("fastest", order[0]), ("median", order[(len(order) - 1) // 2]), ("slowest", order[-1])]
    spans: dict[str, list[tuple[float, ...]]] = {"upload": [], "wait": [], "response": []}
    chunks: list[tuple[float, ...]] = []
    for row, (_, record) in enumerate(chosen):
        sent, first, last = record.upload or 0.0, record.ttft or 0.0, record.e2el or 0.0
        for name, begin, end in (("upload", 0.0, sent), ("wait", sent, first), ("response", first, last)):
            spans[name].append((_short(begin * 1e3), _short(end * 1e3), row))
        times = first + np.concatenate([[0.0], np.cumsum(record.itl)])
        chunks += [(_short(at * 1e3), row) for at in times[:: -(-len(times) // (POINTS // 3))].tolist()]
    rows = [f"{name}: {record.clip[:24]}" for name, record in chosen]
    series = [*(Series(name, data, "span") for name, data in spans.items()), Series("chunk", chunks, "points")]
    return Plot("Three requests", "ms since the start", "", series, rows=rows)


class Bar(NamedTuple):
    """A part of a request in the picture of where the time goes: its kind, and its place and width in percent."""

    kind: str
    left: float
    width: float
    text: str


class WaterfallRow(NamedTuple):
    """A request in the picture of where the time goes. `ticks`: places of its chunks in percent."""

    name: str
    text: str
    bars: list[Bar]
    ticks: list[float]


def waterfall_rows(plot: Plot) -> tuple[list[WaterfallRow], list[tuple[float, str]]]:
    """The rows of a waterfall, and the labels of its axis with their places in percent."""
    spans = [series for series in plot.series if series.kind == "span"]
    chunks = [series.data for series in plot.series if series.kind == "points"]
    end = max((to for series in spans for _, to, _ in series.data), default=0.0) or 1.0
    rows = []
    for row, name in enumerate(plot.rows):
        bars = [
            Bar(series.name, 100 * begin / end, 100 * (to - begin) / end, f"{series.name} {to - begin:.0f} ms")
            for series in spans
            for begin, to, place in series.data
            if place == row
        ]
        ticks = [100 * at / end for data in chunks for at, place in data if place == row]
        rows.append(WaterfallRow(name, ", ".join(bar.text for bar in bars), bars, ticks))
    return rows, [(25.0 * quarter, f"{end * quarter / 4:,.0f} ms") for quarter in range(5)]


def capacity_plots(search: Capacity) -> list[Plot]:
    """Throughput, and each SLO's figure, by load, with the limit, the answer and the knee marked."""
    steps = sorted(search.steps, key=lambda step: step.load)
    if not steps:
        return []
    unit = _load_unit(search)
    bend = knee(steps)
    throughput = Series("successes", [(step.load, _short(step.requests_per_s)) for step in steps])
    plots = [Plot("Throughput by load", unit, "requests/s", [throughput])]
    if bend is not None:
        plots[0].places = [Mark(f"knee: {bend.load:.3g}", bend.load)]
    return plots + [plot for slo in parse_slos(search.slos) if (plot := _slo_by_load(search, steps, slo))]


def _slo_by_load(search: Capacity, steps: Sequence[Step], slo: Slo) -> Plot | None:
    """The figure of an SLO by load; None if no step measured it."""
    is_latency = slo.metric in METRICS
    scale = 1 if is_latency else 100
    measured = [
        (step.load, _short(result.value * scale))
        for step in steps
        for result in step.slo
        if result.name == slo.name and result.value is not None
    ]
    if not measured:
        return None
    unit = slo.unit.strip() if is_latency else "%"
    plot = Plot(f"{slo_title(slo)} by load", _load_unit(search), unit, [Series("steps", measured)])
    plot.levels = [Mark(f"limit: {slo.limit * scale:g}{slo.unit if is_latency else '%'}", slo.limit * scale)]
    plot.places = _answer_marks(search)
    return plot


def _answer_marks(search: Capacity) -> list[Mark]:
    if not search.answer:
        return []
    return [Mark(f"answer: {'at least ' if search.at_least else ''}{search.answer:.3g}", search.answer)]


def _load_unit(search: Capacity) -> str:
    return "streams" if search.kind == "streams" else "requests/s"


def latency_by_load(search: Capacity) -> Plot | None:
    """The latency that a search limits, by load; TTFT if it limits none; None without steps."""
    steps = sorted(search.steps, key=lambda step: step.load)
    for slo in parse_slos(search.slos):
        if slo.metric in METRICS and (plot := _slo_by_load(search, steps, slo)):
            return plot
    figures = [(step.load, step.ttft) for step in steps]
    plot = _percentiles_by_load("TTFT by load", _load_unit(search), figures)
    if plot is not None:
        plot.places = _answer_marks(search)
    return plot


def latency_by_stage(run: Measured, info: RunInfo) -> Plot | None:
    """TTFT by number of users in a test whose load rose in steps; None for other tests."""
    if info.shape != "steps" or len(info.stages) < LEAST_STAGES:
        return None
    begins = [at for at, _ in info.stages]
    parts = by(run, lambda record: bisect_right(begins, record.begins) - 1)
    found = []
    for part in parts:
        end = begins[part.key + 1] if 0 <= part.key + 1 < len(begins) else math.inf
        users = [count for changed, count in info.users if changed < end]
        if part.key >= 0 and users:
            found.append((users[-1], part.figures("ttft")))
    return _percentiles_by_load("TTFT by load", "users", found)


LEAST_STAGES = 2
"""Minimum number of stages for a plot by stage."""


def _percentiles_by_load(title: str, unit: str, figures: Sequence[tuple[float, Figures]]) -> Plot | None:
    """TTFT p50 and p95, in ms, by load; None without a value."""
    series = [
        Series(
            name, [(load, _short(value * 1e3)) for load, each in figures if (value := getattr(each, name)) is not None]
        )
        for name in ("p50", "p95")
    ]
    return Plot(title, unit, "ms", series) if series[0].data else None


def _short(value: float) -> float:
    """Round to the five digits that a chart can show."""
    return float(f"{value:.5g}")
