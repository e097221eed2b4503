"""report.html: a run or a search on one self-contained page."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from asr_load.files import write_atomically
from asr_load.report import headline, plots, tables
from asr_load.report.bands import bands
from asr_load.report.breakdown import Breakdown
from asr_load.report.comparison import A, B, ComparisonView, comparison_table, forest
from asr_load.report.environment import command_of, environment
from asr_load.report.sentence import sentence, slo_amount, slo_title
from asr_load.report.server_tables import server_tables
from asr_load.report.tables import Table
from asr_load.report.transcripts import errors_of, worst
from asr_load.report.view import View, view_finished, view_running
from asr_load.report.words import ms, normalizer_words, number, percent
from asr_load.results.capacity import Capacity, answer_lines
from asr_load.results.compare import one_is_realtime
from asr_load.results.course import LONGEST_S, course, span, stretch_of, thinned
from asr_load.results.live import Live
from asr_load.results.metrics import METRICS
from asr_load.results.pass_fail import Verdict
from asr_load.results.runfile import RunInfo, WorkerInfo
from asr_load.results.slo import Slo, parse_slo
from asr_load.results.sound import Measured
from asr_load.results.summary import Finished, Summary
from asr_load.results.verdict import Validity
from asr_load.stream.record import Record
from asr_load.text import count_of, visible

REPORT = "report.html"
LATE_MARKS = 20
"""Maximum number of late stretches that the charts mark."""

BURST_S = 0.001
"""Chunks closer together than this arrived at once."""

HIDDEN = (
    "workers",
    "users",
    "stages",
    "refused",
    "packages",
    "user_classes",
    "id",
    "format",
    "command",
    "metadata",
    "ended_at",
)
"""Fields of run.json that other parts of the page show."""


@cache
def asset(name: str, package: str = "asr_load.report") -> str:
    """Text of a script or style sheet in a package."""
    return (files(package) / name).read_text("utf-8")


@cache
def templates() -> Environment:
    """The templates of pages, which escape the values put into them."""
    loader = PackageLoader("asr_load.report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _render(template: str, data: Any, **values: Any) -> str:
    """Render a page with its scripts, its style, and the data for its charts."""
    text = msgspec.json.encode(data).decode().replace("<", "\\u003c")
    scripts = {"echarts": asset("echarts.min.js"), "charts": asset("charts.js"), "report": asset("report.js")}
    more = {"css": asset("page.css"), "plots": text, "policy": policy(tuple(scripts.values()))}
    return templates().get_template(template).render(**scripts, **more, **values)


@cache
def policy(scripts: tuple[str, ...]) -> str:
    """A page's content security policy: only its own scripts run, even if text in it turns out to be markup. Inline
    styles and data images are for ECharts, which styles its tooltips and saves charts as pictures."""
    hashes = (b64encode(sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


def plots_page(title: str, drawn: Sequence[plots.Plot]) -> str:
    """A page that shows only plots."""
    return _render("plots.html.j2", {"plots": drawn}, title=title, plotted=list(enumerate(drawn)))


def comparison_page(view: ComparisonView, values: Sequence[Finished], baselines: Sequence[Finished]) -> str:
    """comparison.html: the sentence, both sides, the warnings, the differences, and both sides' distributions."""
    sides = {A: baselines, B: values}
    good = {name: [record for run in runs for record in run.measured.good] for name, runs in sides.items()}
    drawn = []
    if not one_is_realtime(run.info for run in (*values, *baselines)):
        curves = {
            name: {plot.title: plot for plot in plots.distributions(records, ())} for name, records in good.items()
        }
        for title in (title for title in curves[A] if title in curves[B]):
            plot = curves[A][title]
            plot.series = [plots.Series(name, curves[name][title].series[0].data) for name in sides]
            drawn.append(plot)
    table = comparison_table(view)
    return _render(
        "comparison.html.j2",
        {"plots": drawn},
        title=f"{values[0].info.model}: comparison",
        view=view,
        table=table,
        looks=list(map(view.look, view.figures)),
        forest=forest(view),
        plotted=list(enumerate(drawn)),
    )


def write_report(
    folder: Path, finished: Finished, slice_s: float | None = None, by_column: Iterable[Table] = ()
) -> Path:
    """Write a run's report.html and return its path. Arguments are those of `make_report`. Raises OSError,
    InputError."""
    path = folder / REPORT
    write_atomically(path, make_report(finished, slice_s, by_column).encode("utf-8", "replace"))
    return path


def make_report(finished: Finished, slice_s: float | None = None, by_column: Iterable[Table] = ()) -> str:
    """The HTML of report.html: an opening of half a page, and folded details. `slice_s`: seconds per row of the table
    over time; None: at most 20 rows. `by_column`: tables by columns of a manifest."""
    info, summary, part = finished.info, finished.summary, finished.measured
    measured, good = part.counted, part.good
    points: list[dict[str, Any]] = []
    first_plot = latency_by_load(finished)
    sections, all_plots = _sections(good, info, finished.search)
    drawn: dict[str, Any] = {"plots": [*all_plots, *([first_plot] if first_plot else [])]}
    if measured:
        first, last = span(measured)
        points = course(finished.records, info)
        drawn["course"] = {
            "began": info.began_at,
            "points": compact(thinned(points)),
            "steady": stretch_of(len(points)) > 1,
            "bands": bands(info.workers, info.began_at),
            "places": [*places(info.stages, info.workers, info.began_at), *_late_places(part, info, first, last)],
            "limits": limits_of(map(parse_slo, info.slos)),
        }
    view = view_finished(summary)
    return _render(
        "report.html.j2",
        drawn,
        head=_head(info, view),
        doubtful=summary.validity.verdict != "valid",
        limits=limit_lines(view, finished.search),
        first_plot=len(all_plots) if first_plot else None,
        panels=_panels(info, any_success=bool(good)),
        course=range(8) if measured else (),
        course_note=_course_note(finished, len(points)) if measured else "",
        sections=sections,
        waterfall=plots.waterfall_rows(falls) if (falls := plots.waterfall(good)) else None,
        latencies=tables.latencies(summary),
        tables=list(_tables(finished, slice_s)),
        by_column=list(by_column),
        worst=worst(good, info.scoring, summary.rate),
        rate=summary.rate.upper(),
        options=list(_options(info)),
    )


def latency_by_load(finished: Finished) -> plots.Plot | None:
    """Latency against load, for a search or a test whose load rose in steps; None for other tests."""
    if finished.search is not None:
        return plots.latency_by_load(finished.search)
    return plots.latency_by_stage(finished.measured, finished.info)


def _panels(info: RunInfo, *, any_success: bool) -> tuple[str, str]:
    """Beginnings of the titles of the charts in the opening: latency, or without a success failures, and the load."""
    if not any_success:
        return "Sessions per second" if info.realtime else "Requests per second", "Users and "
    return "TTFS" if info.realtime else "TTFT", "Users and "


def _course_note(finished: Finished, seconds: int) -> str:
    """What a point of the charts over this many seconds is."""
    stretch = stretch_of(seconds)
    point = "one second" if stretch < 2 else f"the highest of {stretch} seconds"
    left = finished.measured.left
    trimmed = " The charts include requests that --trim-start and --trim-end exclude from the figures."
    text = f"Each point is {point}. A request counts in the second in which it ended."
    if seconds >= LONGEST_S:
        text += f" The charts show the last {LONGEST_S / 3600:g} hours of the test."
    return text + (trimmed if left.trim_start or left.trim_end else "")


MARK = '<section class="asr asr-report">'


def add_section(
    report: str,
    info: RunInfo,
    summary: Summary | None,
    live: Live,
    validity: Validity,
    *,
    verdict: Verdict | None = None,
) -> str:
    """Locust's HTML report with a section on streaming before its own; unchanged if it already has one. While the test
    runs, `summary` is None and `verdict` is the verdict so far."""
    if MARK in report:
        return report
    shown = [] if summary is None else [tables.latencies(summary), tables.lengths(summary)]
    if len(validity.clients) > 1 and summary is not None:
        shown.append(tables.clients(summary))
    drawn = {
        "course": {
            "began": live.began,
            "points": compact(live.points()),
            "places": places(info.stages, info.workers, live.began),
            "bands": bands(info.workers, live.began),
            "limits": limits_of(map(parse_slo, info.slos)),
        },
        "plots": [],
    }
    slos = list(map(parse_slo, info.slos))
    view = view_running(live, slos, validity, verdict) if summary is None else view_finished(summary)
    section = _render("section.html.j2", drawn, head=_head(info, view), tables=shown, options=list(_options(info)))
    # Locust's scripts come before its body and may contain any text, so the root of its page is the last match.
    before, root, after = report.rpartition('<div id="root"')
    return f"{before}{section}{root}{after}" if root else report


def compact(points: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Points for a chart, rounded to five significant digits."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: short(each) for name, each in value.items()}
        return float(f"{value:.5g}") if isinstance(value, float) else value

    return [{**short(point), "t": point["t"]} for point in points]


def _sections(
    good: Sequence[Record], info: RunInfo, search: Capacity | None
) -> tuple[list[tuple[str, list[tuple[int, plots.Plot]]]], list[plots.Plot]]:
    """Sections, each a title and numbered plots; and all plots in the order of their numbers."""
    by_title = {
        "Capacity": plots.capacity_plots(search) if search else [],
        "Distributions": plots.distributions(good, info.slos),
        "By clip length": plots.against_length(good),
    }
    numbers = count()
    sections = [(title, [(next(numbers), plot) for plot in own]) for title, own in by_title.items() if own]
    return sections, [plot for own in by_title.values() for plot in own]


def limits_of(slos: Iterable[Slo]) -> dict[str, list[plots.Mark]]:
    """Limits to draw in the charts, by metric."""
    limits: dict[str, list[plots.Mark]] = {}
    for slo in slos:
        limits.setdefault(slo.metric, []).append(plots.Mark(f"{slo.statistic} {slo.limit:g}{slo.unit}", slo.limit))
    return limits


def places(stages: Iterable[tuple[float, str]], workers: Iterable[WorkerInfo], began: float) -> list[plots.Mark]:
    """Moments at which the load changed or a worker was lost, in seconds since the start of the chart."""
    lost = [
        (worker.lost_at, f"worker {worker.worker} lost")
        for worker in workers
        if worker.lost_at is not None and not worker.ended
    ]
    return [plots.Mark(name, max(at - began, 0.0)) for at, name in (*stages, *lost) if at >= began - 1]


def _late_places(run: Measured, info: RunInfo, first: float, last: float) -> list[plots.Mark]:
    """Moments at which the load generator was late, so that requests are excluded, in seconds since the start of the
    test; only those between the first request and the last end."""
    if not run.left.late:
        return []
    stretches = (
        each.moved(worker.master_offset_s)
        for worker in info.workers
        for each in (worker.health.late or [] if worker.health else [])
    )
    begins = sorted(max(each.begin, first) for each in stretches if each.end > first and each.begin < last)
    return [plots.Mark("load generator late", at - info.began_at) for at in begins[:LATE_MARKS]]


def _head(info: RunInfo, view: View) -> dict[str, Any]:
    """The first screen: the sentence, what was tested, the verdict, the headline figures, failures."""
    return {
        "title": f"{info.model} on {info.host}",
        "sentence": sentence(info, view),
        "tested": list(environment(info)),
        "words": headline.words(view),
        "tiles": headline.tiles(view),
        "failures": list(view.failures.items()),
    }


def limit_lines(view: View, search: Capacity | None) -> list[tuple[str, str]]:
    """The limits of a test, each with `good` if it was met, `bad` if it was missed, else an empty look. For a search,
    the loads that met and missed them."""
    if search is not None:
        return [(line, "") for line in answer_lines(search)[:-1]]
    lines = []
    for judged in view.slos:
        limit, value = (slo_amount(each, judged.slo) for each in (judged.slo.limit, judged.value))
        outcome = "met" if judged.ok else "missed"
        lines.append((f"{slo_title(judged.slo)} {value}, limit {limit}: {outcome}", "good" if judged.ok else "bad"))
    return lines or [("No limits were set (--slo).", "")]


def _tables(finished: Finished, slice_s: float | None) -> Iterator[Table]:
    info, summary, part = finished.info, finished.summary, finished.measured
    measured, good = part.counted, part.good
    for one in (tables.lengths(summary), tables.user_classes(summary), tables.replicas(summary)):
        if one.rows:
            yield one
    yield _outcomes(measured)
    if measured:
        parts = Breakdown(finished)
        yield parts.over_time(slice_s)
        if info.stages:
            yield parts.by_stage()
        yield parts.by_load()
        yield parts.by_worker()
    if good:
        yield _stream(good, summary)
    yield from server_tables(summary)
    if summary.references:
        yield _accuracy(good, info, summary)
    if len(summary.validity.clients) > 1:
        yield tables.clients(summary)


def _outcomes(measured: Sequence[Record]) -> Table:
    counts = Counter(record.outcome for record in measured)
    first = {record.outcome: record.error for record in reversed(measured) if record.error}
    rows = [
        (name, f"{count:,}", percent(count / len(measured)), visible(first.get(name) or "")[:160])
        for name, count in counts.most_common()
    ]
    return Table("By outcome", ("", "n", "share", "first error"), rows)


def _stream(good: Sequence[Record], summary: Summary) -> Table:
    gaps = METRICS["itl"].values(good)
    longest = ms(None), ""
    if gaps.size:
        at = gaps.argmax()
        clip = good[int(np.searchsorted(np.cumsum([len(record.itl) for record in good]), at, "right"))].clip
        longest = ms(gaps[at]), f" (clip {clip})"
        gaps.sort()
    rows = [
        ("tokens per chunk", number(summary.tokens_per_chunk, 2)),
        ("chunks per response, mean", number(sum(record.chunks for record in good) / len(good), 1)),
        (
            "gaps below 1 ms (chunks that arrived together)",
            percent(np.searchsorted(gaps, BURST_S) / gaps.size if gaps.size else None),
        ),
        ("longest gap in a response", "{} ms{}".format(*longest)),
        ("responses that reached --max-tokens", str(summary.requests.truncated)),
    ]
    rows += [
        (f"{METRICS[name].title}, fitted", found.line) for name in ("ttft", "e2el") if (found := plots.fit(name, good))
    ]
    return Table("Shape of the streams", ("", ""), rows)


def _accuracy(good: Sequence[Record], info: RunInfo, summary: Summary) -> Table:
    found = errors_of(good, info.scoring)
    rows = []
    for name, edits in (("WER", found.words), ("CER", found.characters)):
        counts = (edits.substitutions, edits.deletions, edits.insertions, edits.units)
        rows.append((name, percent(edits.errors / edits.units), *(f"{count:,}" for count in counts)))
    if found.capped is not None:
        rows.append(("WER, with a repetition loop counted as all wrong", percent(found.capped), *[""] * 4))
    empty = sum(not record.text.strip() for record in good)
    short = summary.requests.truncated + summary.requests.out_of_room
    others = (
        f"Transcripts with repetition loops: {summary.looping}, cut short: {short}, empty: {empty}."
        f" Normalizer: {normalizer_words(summary)}"
    )
    return Table("Accuracy", ("", "rate", "substituted", "deleted", "inserted", "of"), rows, others)


def _options(info: RunInfo) -> Iterator[tuple[str, str]]:
    yield "command", visible(command_of(info)) if info.command else ""
    for name, value in msgspec.to_builtins(info).items():
        if name not in HIDDEN and value not in ("", None, [], {}, False):
            text = msgspec.json.encode(value).decode() if isinstance(value, dict | list) else str(value)
            yield name, visible(text)[:1000]
    for each in info.user_classes:
        yield f"user class {each.name}", f"{each.api} {each.endpoint}, model {each.model}, data {each.data}"
    yield "packages", ", ".join(f"{name} {version}" for name, version in info.packages.items())
    for worker in info.workers:
        calibrated = "" if worker.calibration is None else ", calibrated"
        cores = count_of(worker.cores, "core")
        yield f"worker {worker.worker}", f"{worker.host}, {cores}, reader {worker.reader}{calibrated}"
