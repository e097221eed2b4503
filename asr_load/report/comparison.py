"""A comparison as people read it: one sentence, the sentences of both sides, warnings, a table and a forest plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TextIO

from asr_load.report.console import console_for, rich_table
from asr_load.report.sentence import sentence
from asr_load.report.tables import Table
from asr_load.report.view import View, view_finished
from asr_load.report.words import number, percent
from asr_load.results.compare import (
    BETTER,
    BOOTSTRAP_ROUNDS,
    NO_DIFFERENCE,
    STATISTICS,
    STRETCHES,
    WORSE,
    BrokenGate,
    Caution,
    CautionKind,
    Compared,
    Comparison,
    compare,
    several,
)
from asr_load.results.metrics import METRICS
from asr_load.results.summary import Finished
from asr_load.text import count_of

A, B = "A", "B"
"""Names of the sides: the baseline, and the runs to judge."""

TITLES = {
    "rtfx": "RTFx", "requests_per_s": "Requests/s", "output_tokens_per_s": "Tokens/s", "goodput": "Goodput, requests/s",
    "error_rate": "Errors", "wer": "WER", "cer": "CER",
}  # fmt: skip
"""Titles of the figures that are not statistics of a latency."""

SHARES = ("error_rate", "wer", "cer")
"""Figures that are shown in percent, and their differences in percentage points."""

LATENCY_ORDER = ("ttfs", "ttft", "e2el", "itl", "tpot", "rtf", "rtf_live")
STATISTIC_ORDER = ("p95", "mean", "p50", "p90", "p99")
"""Latencies and statistics in the order in which the sentence looks for a difference."""


class ComparedRun(NamedTuple):
    """A run of a side."""

    folder: str
    sentence: str
    view: View


@dataclass(frozen=True)
class ComparisonView:
    """What people see of a comparison. The console, the page and the Markdown export draw from it."""

    comparison: Comparison
    sides: Mapping[str, Sequence[ComparedRun]]
    """The runs of A and of B."""
    rate: str
    """The more meaningful of wer and cer."""

    @cached_property
    def untrusted(self) -> dict[str, str]:
        """The worst verdict on the figures of each side that has a run whose figures are not valid."""
        verdicts = {name: [run.view.validity.verdict for run in runs] for name, runs in self.sides.items()}
        worst = {name: next(filter(found.count, ("client-bound", "suspect")), "") for name, found in verdicts.items()}
        return {name: verdict for name, verdict in worst.items() if verdict}

    @property
    def figures(self) -> list[Compared]:
        """The figures that both sides have."""
        return [figure for figure in self.comparison.figures if figure.difference is not None]

    @cached_property
    def sentence(self) -> str:
        """Which side is better, by how much, and whether to rely on it."""
        figures = {figure.name: figure for figure in self.figures}
        if not figures:
            return "A and B have no figure in common."
        text = _finding(figures, self.rate, trusted=not self.untrusted)
        if self.untrusted:
            doubts = (f"the figures of {name} are {verdict}" for name, verdict in self.untrusted.items())
            text += f". Do not rely on this: {' and '.join(doubts)}"
        return f"{text}."

    def look(self, figure: Compared) -> str:
        """The word that colours a figure; empty if the figures are not trusted, or show no difference."""
        return "" if self.untrusted or figure.word == NO_DIFFERENCE else figure.word


def comparison_view(
    values: Sequence[Finished], baselines: Sequence[Finished], min_change: float = 0.0
) -> ComparisonView:
    """Compare two sides; arguments are those of `compare`. Raises InputError."""
    found = compare(values, baselines, min_change)
    sides = {A: baselines, B: values}
    comparison = Comparison(
        figures=found.figures,
        warnings=list(map(warning_line, found.cautions)),
        runs={"value": _folders(values), "baseline": _folders(baselines)},
        method=_method(values, baselines),
        min_change=min_change,
    )
    return ComparisonView(
        comparison,
        {name: [_compared_run(run) for run in runs] for name, runs in sides.items()},
        values[0].summary.rate,
    )


def _folders(runs: Sequence[Finished]) -> list[str]:
    return [str(run.folder) for run in runs]


def _compared_run(run: Finished) -> ComparedRun:
    view = view_finished(run.summary)
    return ComparedRun(str(run.folder), sentence(run.info, view), view)


def _finding(figures: Mapping[str, Compared], rate: str, *, trusted: bool) -> str:
    """The sentence without its reservations. `figures`: by name."""
    proven = {name: figure for name, figure in figures.items() if figure.word != NO_DIFFERENCE}
    latencies = [name for metric in LATENCY_ORDER if (name := _first(metric, proven))]
    words = {proven[name].word for name in latencies}
    described = [next((name for name in latencies if proven[name].word == word), "") for word in (WORSE, BETTER)]
    shown = sorted(filter(None, described), key=latencies.index)
    speed = {WORSE: "slower", BETTER: "faster"}
    adjectives = [
        speed[proven[name].word] + (f" in {METRICS[_metric(name)].title}" if len(words) > 1 else "") for name in shown
    ]
    if not shown:
        shown = [name for metric in LATENCY_ORDER if (name := _first(metric, figures))][:1]
    if rate in proven:
        adjectives.append("less accurate" if proven[rate].word == WORSE else "more accurate")
    verbs = []
    if adjectives:
        verbs.append(f"{'is' if trusted else 'looks'} {' and '.join(adjectives)}")
    if "error_rate" in proven:
        verbs.append("fails more often" if proven["error_rate"].word == WORSE else "fails less often")
    if not verbs and (rates := [name for name in TITLES if name in proven and name not in SHARES]):
        verbs.append(f"has {'less' if proven[rates[0]].word == WORSE else 'more'} throughput")
        shown.insert(0, rates[0])
    head = f"{B} {' and '.join(verbs)}" if verbs else f"No difference shown between {A} and {B}"
    details = [_detail(figures[name]) for name in shown]
    details += [_detail(figures[name]) for name in ("error_rate", rate) if name in figures]
    return f"{head}: {'; '.join(details)}" if details else head


def _first(metric: str, figures: Mapping[str, Compared]) -> str:
    """The name of a metric's first statistic, in STATISTIC_ORDER, among some figures; empty without any."""
    names = (f"{metric}_{statistic}" for statistic in STATISTIC_ORDER)
    return next((name for name in names if name in figures), "")


def _metric(name: str) -> str:
    return name.rpartition("_")[0]


def title_of(name: str) -> str:
    """A figure's title, such as TTFT p95, without its unit."""
    metric, _, statistic = name.rpartition("_")
    return f"{METRICS[metric].title} {statistic}" if statistic in STATISTICS and metric in METRICS else TITLES[name]


def _detail(figure: Compared) -> str:
    """A difference with its interval, such as: TTFT p95 +38 ms (+11%), 95 % interval 21 to 55 ms."""
    title = title_of(figure.name)
    title = title.lower() if figure.name == "error_rate" else title
    if not figure.difference:
        return f"{title} unchanged"
    unit = " points" if figure.name in SHARES else f" {figure.unit}" if figure.unit == "ms" else ""
    text = f"{title} {_brief(figure, figure.difference, sign='+')}{unit}"
    if figure.relative is not None:
        text += f" ({figure.relative:+.0%})" if abs(figure.relative) >= 0.1 else f" ({figure.relative:+.1%})"
    if figure.name in SHARES and figure.word == NO_DIFFERENCE:
        return f"{text}, no difference shown"
    if figure.low is None or figure.high is None:
        return f"{text}, without an interval"
    return f"{text}, 95 % interval {_brief(figure, figure.low)} to {_brief(figure, figure.high)}{unit}"


def _brief(figure: Compared, value: float, sign: str = "") -> str:
    """A value in two or more significant digits; shares in percentage points."""
    if figure.name in SHARES:
        return f"{100 * value:{sign}.1f}"
    if figure.unit == "ms" and abs(value) >= 10:
        return f"{value:{sign}.0f}"
    return f"{value:{sign}.2g}"


HEADINGS = ("", f"{A} (baseline)", B, "difference", "95 % interval", "relative", "beyond chance")


def comparison_table(view: ComparisonView) -> Table:
    """A table of the figures that both sides have."""
    return Table("Comparison", HEADINGS, [_row(figure) for figure in view.figures], view.comparison.method)


def _row(figure: Compared) -> tuple[str, ...]:
    is_share = figure.name in SHARES
    digits = 1 if is_share or figure.unit == "ms" else 3
    scale = 100 if is_share else 1

    def signed(value: float | None) -> str:
        # Adding 0 turns -0.0 into 0.0.
        return "" if value is None else f"{round(scale * value, digits) + 0.0:+,.{digits}f}"

    interval = "" if figure.low is None else f"{signed(figure.low)} to {signed(figure.high)}"
    relative = "" if figure.relative is None else f"{round(figure.relative, 3) + 0.0:+.1%}"
    name = f"{title_of(figure.name)}, ms" if figure.unit == "ms" else title_of(figure.name)
    both = [percent(value) if is_share else number(value, digits) for value in (figure.baseline, figure.value)]
    difference = signed(figure.difference) + (" points" if is_share else "")
    return name, *both, difference, interval, relative, "" if figure.word == NO_DIFFERENCE else figure.word


class ForestRow(NamedTuple):
    """A difference and its 95 % interval as positions on the axis, from 0 (left) to 100 (right)."""

    name: str
    text: str
    at: float | None
    """None if the baseline is 0 and the figure is not a share, so that nothing can be drawn."""
    low: float | None
    high: float | None
    """None without an interval."""
    beyond: tuple[bool, bool]
    """Whether the interval extends beyond the left and the right end of the axis."""
    look: str


class Forest(NamedTuple):
    """A forest plot: all differences on one axis. `ticks`: positions from 0 to 100, and labels."""

    rows: list[ForestRow]
    ticks: list[tuple[float, str]]


def forest(view: ComparisonView) -> Forest:
    """The forest plot of the figures that both sides have, relative to A. A share that is 0 in A is drawn in percentage
    points. The axis extends to the largest difference and to nine in ten bounds of intervals."""
    figures = view.figures
    drawn = [_relative(figure) for figure in figures]
    differences = [abs(at) for at, _, _ in drawn if at is not None]
    bounds = sorted(abs(bound) for _, *interval in drawn for bound in interval if bound is not None)
    usual = bounds[int(0.9 * (len(bounds) - 1))] if bounds else 0.0
    end = _round_up(max([*differences, usual], default=0.0))

    def place(share: float | None) -> float | None:
        return None if share is None else 50 + 50 * min(max(share / end, -1.0), 1.0)

    rows = []
    for figure, (at, low, high) in zip(figures, drawn, strict=True):
        name, _, _, difference, _, relative, _ = _row(figure)
        text = f"{difference} ({relative})" if relative else difference
        beyond = (low or 0.0) < -end, (high or 0.0) > end
        rows.append(ForestRow(name, text, place(at), place(low), place(high), beyond, view.look(figure)))
    ticks = [(25.0 * number, (number / 2 - 1) * end) for number in range(5)]
    return Forest(rows, [(at, f"{100 * share:+.3g}%" if share else "0") for at, share in ticks])


def _relative(figure: Compared) -> tuple[float | None, float | None, float | None]:
    """A difference and the bounds of its interval as shares of the baseline."""
    base = figure.baseline or (1.0 if figure.name in SHARES else None)
    bounds = (figure.difference, figure.low, figure.high)
    at, low, high = (None if bound is None or base is None else bound / base for bound in bounds)
    return at, low, high


def _round_up(share: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least as large, and at least 1 %."""
    share = max(share, 0.01)
    power = 10.0 ** math.floor(math.log10(share))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= share * 0.999999)


def warning_line(caution: Caution) -> str:
    """Why runs may not be comparable, or their intervals too narrow."""
    verdict = caution.run.summary.verdict if caution.run else None
    here, there = ", ".join(caution.values), ", ".join(caution.baselines)
    texts = {
        CautionKind.REALTIME: "one side is realtime and the other uploads: latencies and rates are not compared",
        CautionKind.SETTING: f"different {caution.setting}: {here} here, {there} in the baseline",
        CautionKind.ARRIVALS: "the arrivals differ, so the two sides did not have the same load",
        CautionKind.MACHINES: "the client's machines, cores or readers differ",
        CautionKind.CLIENT_BOUND: "the client was too slow, so these figures are not the server's",
        CautionKind.NOT_PASSED: verdict.sentence() if verdict else "",
        CautionKind.WARMUP: "warm-up is included; exclude it with --warmup-requests",
        CautionKind.ONE_RUN: "one run on each side: intervals do not include differences between runs, such as after a"
        " restart",
        CautionKind.FEW_CLIPS: f"{count_of(caution.number, 'clip')}, too few for intervals over clips",
        CautionKind.FEW_REQUESTS: f"with only {count_of(caution.number, 'successful request')}, the p99 is the maximum",
    }
    return f"{caution.run.folder}: {texts[caution.kind]}" if caution.run else texts[caution.kind]


def gate_line(broken: BrokenGate) -> str:
    """How a gate is broken."""
    title = title_of(broken.gate.name)
    if broken.worse is None:
        return f"--fail-on {broken.gate.text}: {title} cannot be compared"
    return f"--fail-on {broken.gate.text}: {title} is worse by at least {broken.worse:.4g} {broken.unit}".rstrip()


def _method(values: Sequence[Finished], baselines: Sequence[Finished]) -> str:
    within = (
        f"bootstrap of {BOOTSTRAP_ROUNDS} rounds: latencies by clip and by {STRETCHES} stretches of time, wider"
        " interval; WER by clip, rates by time; error rates: Newcombe's interval"
    )
    if not several((values, baselines)):
        return within
    between = f"Welch's t over {len(values)} and {len(baselines)} runs"
    return f"wider interval of {between} and, within runs, a {within}"


def print_comparison(view: ComparisonView, file: TextIO) -> None:
    """Print the sentence, those of both sides and the warnings, then the figures."""
    console, comparison = console_for(file), view.comparison
    console.out(f"\n{view.sentence}")
    console.out("\n=== Comparison ===")
    for line in _sides(view):
        console.out(line)
    for warning in comparison.warnings:
        console.out(f"  - {warning}")
    console.print(rich_table(comparison_table(view)))
    words = [figure for figure in comparison.figures if figure.word != NO_DIFFERENCE]
    console.out(f"Differences beyond chance: {len(words)} of {len(comparison.figures)} figures ({comparison.method})")


def _sides(view: ComparisonView) -> Iterator[str]:
    for name, runs in view.sides.items():
        for run in runs:
            yield f"{name} ({run.folder}): {run.sentence}"


def markdown_table(table: Table) -> str:
    """Format a table as GitHub Markdown."""

    def line(cells: tuple[str, ...] | list[str]) -> str:
        return (
            "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in cells) + " |"
        )

    ends = ["---" if not number else "---:" for number in range(len(table.headings))]
    return "\n".join(
        [f"### {table.title}", "", line(list(table.headings)), line(ends), *(line(list(row)) for row in table.rows)]
    )


def markdown(view: ComparisonView) -> str:
    """Format the comparison as a Markdown page."""
    warnings = "\n".join(f"- {warning}" for warning in view.comparison.warnings)
    sides = "\n".join(f"- {line}" for line in _sides(view))
    parts = [view.sentence, markdown_table(comparison_table(view)), view.comparison.method, sides, warnings]
    return "\n\n".join(filter(None, parts)) + "\n"
