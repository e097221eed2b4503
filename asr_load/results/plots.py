"""What charts of a run show: lines, points and bars with their titles. How they are drawn is charts.js's."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from asr_load.results.capacity import Capacity, knee
from asr_load.results.metrics import METRICS
from asr_load.results.slo import parse_slo
from asr_load.results.steady import sorted_by_length
from asr_load.stream.record import Record

SHARES = np.concatenate([np.linspace(0, 0.98, 99), np.linspace(0.981, 1, 20)])
"""Of a distribution's curve: its upper end is looked at closely."""

SURE = 2.58
"""Standard errors by which a slope has to exceed 0 (99 %)."""

POINTS = 1500
"""Of a cloud: more than so many hide each other, and fill the page's file."""


class Series(msgspec.Struct):
    """`kind`: line, points, or span (`data` are [from, to, y])."""

    name: str
    data: Sequence[tuple[float, ...]]
    kind: str = "line"


class Mark(msgspec.Struct):
    """A limit, or a place: a line across, by its value on an axis."""

    name: str
    at: float


class Plot(msgspec.Struct):
    """A diagram. `rows` are the names of the y axis's places, where it has no numbers."""

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
    """The share of values that are at most so large, for TTFT, ITL, E2E and, of realtime sessions, TTFS."""
    plots = []
    for name in ("ttft", "itl", "e2el", "ttfs"):
        metric = METRICS[name]
        values = METRICS[name].values(good)
        if values.size:
            curve = [(_short(value * metric.scale), _short(share * 100)) for value, share in _curve(values)]
            limits = [slo for slo in map(parse_slo, slos) if slo.metric == name]
            places = [Mark(f"limit of {slo.statistic}: {slo.limit:g} ms", slo.limit) for slo in limits]
            title = f"{metric.title}: share of values up to it"
            plots.append(Plot(title, f"{metric.title}, ms", "%", [Series(metric.title, curve)], places=places))
    return plots


def _curve(values: np.ndarray) -> list[tuple[float, float]]:
    """Linear between samples, as numpy's quantiles, which take twice as long and another tenth of the memory."""
    values.sort()
    places = SHARES * (values.size - 1)
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, values.size - 1)
    reached = values[below] + (places - below) * (values[above] - values[below])
    return list(zip(reached.tolist(), SHARES.tolist(), strict=True))


class Fit(msgspec.Struct):
    """Latency = `fixed_s` + `per_audio_s` x seconds of audio, over n requests. `per_audio_s` is None where latency does
    not grow with the length by more than chance."""

    metric: str
    fixed_s: float
    per_audio_s: float | None
    n: int
    by_order: bool = False
    """Whether a trend over time may be in it, as the clips are sorted by length."""

    @property
    def line(self) -> str:
        """The formula in milliseconds, and what else may be in it."""
        said = "no relation to the length of the clip is shown"
        if self.per_audio_s is not None:
            said = f"{self.fixed_s * 1e3:.0f} ms + {self.per_audio_s * 1e3:.1f} ms for each second of audio"
        if self.by_order:
            said += " (the clips are sorted by length: a trend over time may be in it)"
        return said


def _by_audio(name: str, good: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of audio, and the latency of that name, of those that have it; shapes (n,)."""
    audio = np.array([record.audio_s for record in good], float)
    values = np.array(list(map(METRICS[name].get, good)), float)  # None becomes NaN
    there = ~np.isnan(values)
    return audio[there], values[there]


def fit(name: str, good: Sequence[Record]) -> Fit | None:
    """Fit a latency by a fixed part and a part for each second of audio, neither below 0, by least squares; None where
    lengths hardly differ. The slope has to exceed 0 by 2.58 standard errors (99 %), which allow for requests of one
    length being alike."""
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
    if fixed < 0:  # the best fit that has no part below 0
        fixed, slope = 0.0, float(audio @ values) / float(audio @ audio)
    return Fit(name, fixed, slope, int(audio.size), by_order)


def against_length(good: Sequence[Record]) -> list[Plot]:
    """TTFT and E2E of each clip's length, with what fits them."""
    plots = []
    for name in ("ttft", "e2el"):
        audio, values = _by_audio(name, good)
        if not audio.size:
            continue
        title, step = METRICS[name].title, -(-audio.size // POINTS)
        cloud = [(_short(x), _short(y * 1e3)) for x, y in zip(audio[::step], values[::step], strict=True)]
        plot = Plot(f"{title} against length", "audio, s", "ms", [Series("request", cloud, "points")])
        if found := fit(name, good):
            if found.per_audio_s is not None:
                ends = [audio.min(), audio.max()]
                line = [(_short(end), _short((found.fixed_s + found.per_audio_s * end) * 1e3)) for end in ends]
                plot.series.append(Series("fit", line))
            plot.note = found.line
        if step > 1:
            plot.note += f"{'; ' if plot.note else ''}one point in {step} is drawn"
        plots.append(plot)
    return plots


def waterfall(good: Sequence[Record]) -> Plot | None:
    """The fastest, the median and the slowest request: upload, wait, and each chunk."""
    order = sorted(good, key=lambda record: record.e2el or 0.0)
    if not order:
        return None
    chosen = [("fastest", order[0]), ("median", order[(len(order) - 1) // 2]), ("slowest", order[-1])]
    spans: dict[str, list[tuple[float, ...]]] = {"upload": [], "wait": [], "answer": []}
    chunks: list[tuple[float, ...]] = []
    for row, (_, record) in enumerate(chosen):
        sent, first, last = record.upload or 0.0, record.ttft or 0.0, record.e2el or 0.0
        for name, begin, end in (("upload", 0.0, sent), ("wait", sent, first), ("answer", first, last)):
            spans[name].append((_short(begin * 1e3), _short(end * 1e3), row))
        came = first + np.concatenate([[0.0], np.cumsum(record.itl)])
        chunks += [(_short(at * 1e3), row) for at in came[:: -(-len(came) // (POINTS // 3))].tolist()]
    rows = [f"{name}: {record.clip[:24]}" for name, record in chosen]
    series = [*(Series(name, data, "span") for name, data in spans.items()), Series("chunk", chunks, "points")]
    return Plot("Three requests", "ms since the start", "", series, rows=rows)


def capacity_plots(search: Capacity) -> list[Plot]:
    """Throughput, and what each SLO is on, against the load; the limit, the answer and the knee marked."""
    steps = sorted(search.steps, key=lambda step: step.load)
    if not steps:
        return []
    unit = "streams" if search.kind == "streams" else "requests/s"
    bend = knee(steps)
    throughput = Series("successes", [(step.load, _short(step.requests_per_s)) for step in steps])
    plots = [Plot("Throughput against load", unit, "requests/s", [throughput])]
    if bend is not None:
        plots[0].places = [Mark(f"knee: {bend.load:.3g}", bend.load)]
    for slo in map(parse_slo, search.slos):
        measured = [
            (step.load, _short(result.value))
            for step in steps
            for result in step.slo
            if result.name == slo.name and result.value is not None
        ]
        if measured:
            plot = Plot(
                f"{slo.metric} {slo.statistic} against load", unit, slo.unit.strip(), [Series("steps", measured)]
            )
            plot.levels = [Mark(f"limit: {slo.limit:g}{slo.unit}", slo.limit)]
            if search.answer:
                answer = f"{'at least ' if search.at_least else ''}{search.answer:.3g}"
                plot.places = [Mark(f"answer: {answer}", search.answer)]
            plots.append(plot)
    return plots


def _short(value: float) -> float:
    """With as many digits as a chart can show."""
    return float(f"{value:.5g}")
