"""report.html: a run or a search on one self-contained page."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
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
from asr_load.report.breakdown import Breakdown
from asr_load.report.comparison import A, B, ComparisonView, comparison_table, forest
from asr_load.report.tables import Table
from asr_load.report.transcripts import errors_of, worst
from asr_load.report.view import View, view_finished, view_running
from asr_load.report.words import ms, normalizer_words, number, percent
from asr_load.results.capacity import Capacity
from asr_load.results.compare import one_is_realtime
from asr_load.results.course import course, span, width_for
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
COURSE_POINTS = 300
"""Maximum number of points in the charts over time."""

LATE_MARKS = 20
"""Maximum number of late stretches that the charts mark."""

BURST_S = 0.001
"""Chunks closer together than this arrived at once."""

HIDDEN = ("workers", "users", "stages", "refused", "packages", "user_classes", "id", "format", "command", "metadata")
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
    """The HTML of report.html. `slice_s`: seconds per row of the table over time; None: at most 20 rows. `by_column`:
    tables by columns of a manifest."""
    info, summary, part = finished.info, finished.summary, finished.measured
    measured, good = part.counted, part.good
    sections, all_plots = _sections(good, info, finished.search)
    drawn: dict[str, Any] = {"plots": all_plots}
    note = ""
    if measured:
        first, last = span(measured)
        width = width_for(last - first, COURSE_POINTS)
        drawn["course"] = {
            "began": first,
            "points": compact(course(measured, info, width)),
            "places": [*places(info.stages, info.workers, first), *_late_places(part, info, first, last)],
            "limits": limits_of(map(parse_slo, info.slos)),
        }
        note = f"Each point covers {width:g} s. A request counts in the point in which it ended."
    return _render(
        "report.html.j2",
        drawn,
        head=_head(info, view_finished(summary)),
        course=range(8) if measured else (),
        course_note=note,
        sections=sections,
        tables=list(_tables(finished, slice_s)),
        by_column=list(by_column),
        worst=worst(good, info.scoring, summary.rate),
        rate=summary.rate.upper(),
        options=list(_options(info)),
    )


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
    falls = plots.waterfall(good)
    by_title = {
        "Capacity": plots.capacity_plots(search) if search else [],
        "Distributions": plots.distributions(good, info.slos),
        "By clip length": plots.against_length(good),
        "Where the time goes": [falls] if falls else [],
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
    """Moments at which the load generator was late, so that requests are excluded, in seconds since the first request;
    only those between the first and the last moment of the chart."""
    if not run.left.late:
        return []
    stretches = (
        each.moved(worker.master_offset_s - first)
        for worker in info.workers
        for each in (worker.health.late or [] if worker.health else [])
    )
    begins = sorted(max(each.begin, 0.0) for each in stretches if each.end > 0 and each.begin < last - first)
    return [plots.Mark("load generator late", at) for at in begins[:LATE_MARKS]]


def _head(info: RunInfo, view: View) -> dict[str, Any]:
    """The first screen: what was tested, the verdict, the headline figures, failures."""
    return {
        "title": f"{info.model} on {info.host}",
        "tested": list(_tested(info)),
        "words": headline.words(view),
        "tiles": headline.tiles(view),
        "failures": list(view.failures.items()),
    }


def _tested(info: RunInfo) -> Iterator[tuple[str, str]]:
    software = next((worker.server for worker in info.workers if worker.server), "")
    facts = [f"{name}: {value}" for name, value in info.server.items() if isinstance(value, str | int | float)]
    if software or facts:
        yield "Server software", visible(", ".join(filter(None, (software, *facts))))[:300]
    yield "API", f"{info.api}, {info.endpoint or 'default path'}" + (f", preset {info.preset}" if info.preset else "")
    yield "Data", f"{info.data}: {count_of(info.data_clips, 'clip')}, manifest {info.data_sha256[:12]}"
    yield "Load", _load(info)
    began = datetime.fromtimestamp(info.began_at).astimezone()
    yield "Began", began.strftime("%Y-%m-%d %H:%M:%S %z")
    if info.metadata:
        yield "Metadata", ", ".join(f"{key}={value}" for key, value in info.metadata.items())


def _load(info: RunInfo) -> str:
    if info.loop:
        rate = f"{info.loop['rate']:g} requests/s" if info.loop.get("rate") else info.loop.get("stages") or "a trace"
        load = f"open loop, {rate}, {info.loop.get('arrivals', '')}"
    else:
        streams = info.num_users or max((count for _, count in info.users), default=0)
        load = f"closed loop, {count_of(streams, 'stream')}"
    requests = f", {count_of(info.requests, 'request')}" if info.requests else ""
    limit = requests or (f", {info.run_time:g} s" if info.run_time else "")
    shape = f", shape {info.shape}" if info.shape != "none" else ""
    return load + shape + limit


def _tables(finished: Finished, slice_s: float | None) -> Iterator[Table]:
    info, summary, part = finished.info, finished.summary, finished.measured
    measured, good = part.counted, part.good
    yield tables.latencies(summary)
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
    yield "command", " ".join(info.command)
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
