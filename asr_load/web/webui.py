"""Add streaming to Locust's web UI: a tab with table, charts and verdict; downloads; a section in the report.

Locust's page is a compiled React program, to which a plugin can add a tab with a table, and links. The charts come from
a script that is added to the page (tab.js) and polls this module for its data."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
from flask import Blueprint, Response, jsonify, make_response, request, send_file
from locust.env import Environment
from locust.runners import STATE_CLEANUP, STATE_RUNNING, STATE_STOPPING
from werkzeug.datastructures import ImmutableMultiDict

from asr_load.decode import decode
from asr_load.errors import InputError
from asr_load.options.form import Form, check_classes, check_user_class, field_of, form_fields
from asr_load.report import headline
from asr_load.report.bands import bands
from asr_load.report.page import REPORT, add_section, asset, compact, limits_of, places
from asr_load.report.sentence import sentence
from asr_load.report.view import MetricRows, View, view_finished, view_running
from asr_load.results.live import WINDOW_S, Live
from asr_load.results.metrics import METRICS, Figures
from asr_load.results.pass_fail import Verdict
from asr_load.results.record_file import RECORDS
from asr_load.results.runfile import RunInfo, WorkerInfo, read_run
from asr_load.results.slo import Slo
from asr_load.results.summary import SUMMARY, Summary
from asr_load.results.verdict import Validity
from asr_load.web.exporter import PATH as METRICS_PATH
from asr_load.web.exporter import Wsgi, metrics_app
from asr_load.web.guard import guarded

KEY = "streaming"
SHOWN = ("p50", "p90", "p95", "p99", "max")
SPANS = (f"last {WINDOW_S} s", "whole run")
"""The two rows of each metric in Locust's table."""

MOST_POINTS = 600
"""Maximum number of points in a response. Encoding them takes a millisecond, and the charts request the rest."""

SCRIPTS = {
    "echarts.min.js": "asr_load.report",
    "charts.js": "asr_load.report",
    "tab.js": "asr_load.web",
    "form.js": "asr_load.web",
}
"""Scripts of the tab in loading order, and the package of each."""

FRESH_S = 1.0
"""Seconds for which a table is cached: with many streams, its percentiles block the event loop for tens of ms."""


class Test(Protocol):
    """What the pages need to know about the running test or, without one, the last test."""

    live: Live

    @property
    def id(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def stages(self) -> Sequence[tuple[float, str]]:
        """When the load changed, in seconds since the epoch, and what it changed to."""

    @property
    def labels(self) -> tuple[str, str]:
        """The model and the API."""

    @property
    def slos(self) -> Sequence[Slo]: ...
    @property
    def workers(self) -> Sequence[WorkerInfo]: ...
    def info(self) -> RunInfo: ...

    def validity(self) -> Validity: ...
    def verdict(self) -> Verdict | None:
        """The verdict so far; None in a search."""

    def lost(self) -> Sequence[str]:
        """A line for each lost worker."""

    def reset_live(self) -> None: ...


class LoadPicture(NamedTuple):
    """The number of users over time: the corners of a line, as seconds since the start and users, and a description."""

    corners: Sequence[tuple[float, int]] = ()
    words: str = ""


class FormActions(Protocol):
    """What the form that starts or edits a test needs to know and do."""

    def take(self, form: Form) -> Form:
        """Check the fields of a form, and return those that belong to Locust. Raises InputError."""

    def data(self) -> list[str]:
        """The prepared folders to choose from."""

    def models(self, host: str, key: str) -> list[str]:
        """The models of a server. Raises InputError."""

    def picture(self, form: Form) -> LoadPicture:
        """The load of the test. Raises InputError."""


class FinishedRun(NamedTuple):
    """A finished test of the session, as the tab lists it."""

    began: str
    folder: str
    sentence: str


def _finished_run(folder: Path) -> FinishedRun:
    info, summary = read_run(folder), decode((folder / SUMMARY).read_bytes(), Summary)
    began = datetime.fromtimestamp(info.began_at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return FinishedRun(began, str(folder), sentence(info, view_finished(summary)))


class _Pages:
    """The current test, as the pages need it, and the session's finished ones."""

    def __init__(self, current: Callable[[], Test | None], *, sends_trial: bool) -> None:
        self._current = current
        self.starting_line = "Starting: trial request …" if sends_trial else "Starting …"
        """The pages' text while a test starts."""
        self._replaced: Test | None = None
        self.is_starting = False
        """Whether a test is to start that has no files yet. The pages then show nothing of the last one."""
        self._runs: dict[Path, FinishedRun | None] = {}
        """The tests of the session by folder; None for one whose summary has not been read."""
        self._live: Live | None = None
        self._number = 0
        self._rows: tuple[float, bool, MetricRows] | None = None
        self._summary: tuple[Path, Summary] | None = None

    @property
    def test(self) -> Test | None:
        test = self._current()
        if test is not None:
            self._runs.setdefault(test.folder)
        if self.is_starting and test is self._replaced:
            return None
        self.is_starting = False
        return test

    def begin(self) -> None:
        """Note that a test is to start, unless one is running."""
        if self.test is None or self.summary() is not None:
            self.is_starting, self._replaced = True, self._current()

    def cancel(self, **_: Any) -> None:
        """Note that no test is starting any more."""
        self.is_starting = False

    def runs(self) -> list[FinishedRun]:
        """The finished tests of the session, the latest first."""
        for folder, known in self._runs.items():
            if known is None and (folder / SUMMARY).exists():
                self._runs[folder] = _finished_run(folder)
        return [known for known in reversed(self._runs.values()) if known is not None]

    def reset(self, **_: Any) -> None:
        """Reset the live figures when Locust resets its own. The records keep everything."""
        if self.test is not None:
            self.test.reset_live()

    def series(self) -> str:
        """An identifier of the charts' data, which changes with each test and each reset."""
        if self.test is None:
            return ""
        if self.test.live is not self._live:
            self._live, self._number, self._rows = self.test.live, self._number + 1, None
        return f"{self.test.id}-{self._number}"

    def summary(self) -> Summary | None:
        """The summary of a finished test; None while it runs."""
        if self.test is None:
            return None
        path = self.test.folder / SUMMARY
        if self._summary is None or self._summary[0] != path:
            try:
                self._summary = path, decode(path.read_bytes(), Summary)
            except FileNotFoundError:
                return None
        return self._summary[1]

    def rows(self) -> MetricRows:
        """The rows of the live figures, cached for a moment."""
        self.series()
        now, ended = time.monotonic(), self.summary() is not None
        if self._rows is not None:
            at, of_the_end, rows = self._rows
            if of_the_end == ended and (ended or now - at < FRESH_S):
                return rows
        rows = (Live(0.0) if self.test is None else self.test.live).table()
        self._rows = now, ended, rows
        return rows

    def first_screen(self) -> View | None:
        """The first screen of the test; None without one."""
        if self.test is None:
            return None
        if summary := self.summary():
            return view_finished(summary, self.rows(), self.test.live)
        return view_running(self.test.live, self.test.slos, self.test.validity(), self.test.verdict(), self.rows())

    def table(self) -> list[dict[str, Any]]:
        """The rows in the form that Locust's page expects: `metric`, `count`, and the figures."""
        return [
            {
                "metric": f"{METRICS[name].heading}, {block}",
                "count": spread.n,
                **{key: _rounded(getattr(spread, key)) for key in SHOWN},
            }
            for name, spreads in self.rows().items()
            for block, spread in zip(SPANS, spreads, strict=True)
        ]


def set_up(environment: Environment, current: Callable[[], Test | None], form: FormActions) -> None:
    """Add streaming to Locust's web UI. Call this in Locust's `init` event, before the UI is served.

    `current` returns the running test or, without one, the last test.
    """
    web_ui: Any = environment.web_ui
    if web_ui is None:
        return
    options = environment.parsed_options
    pages = _Pages(current, sends_trial=not (options and options.no_preflight))
    environment.events.reset_stats.add_listener(pages.reset)
    environment.events.test_stop.add_listener(pages.cancel)
    if environment.reset_stats:  # Locust then resets its statistics without firing reset_stats
        environment.events.spawning_complete.add_listener(pages.reset)
    _add_tab(web_ui.template_args)
    _fill_form(web_ui, environment)
    web_ui.app.register_blueprint(_blueprint(web_ui, pages, form))
    if environment.runner is not None:
        _add_metrics_page(web_ui, metrics_app(environment.runner, current))
    _check_forms(web_ui, environment, form, pages)
    web_ui.app.after_request(lambda response: _extended(response, pages))
    names = (options and options.web_allow_host) or []
    web_ui.app.wsgi_app = guarded(
        web_ui.app.wsgi_app, web_ui.host or "", names, (options and options.web_base_path) or ""
    )


def _check_forms(web_ui: Any, environment: Environment, form: FormActions, pages: _Pages) -> None:
    """Check the form that starts or edits a test, and the edit of a user class, before Locust gets them."""
    views = web_ui.app.view_functions
    start, edit = views["locust.swarm"], views["locust.update_user"]

    def check_and_start() -> Any:
        pages.begin()
        try:
            if web_ui.userclass_picker_is_active:
                check_classes(
                    request.form, environment.available_user_classes or {}, environment.available_shape_classes or {}
                )
            request.form = ImmutableMultiDict(form.take(request.form))
        except InputError as error:
            pages.cancel()
            # Locust answers a wrong number of users in the same way, and its form shows the message. `field` is for
            # form.js, which marks that field.
            field = field_of(error, request.form.get("host", ""))
            return jsonify({"success": False, "message": str(error), "host": environment.host, "field": field})
        return start()

    def check_and_edit() -> Any:
        try:
            shown = web_ui.userclass_picker_is_active
            classes, tasks = environment.available_user_classes, environment.available_user_tasks
            check_user_class(request.get_data(), (classes or {}) if shown else {}, tasks or {})
        except InputError as error:
            return make_response(f"{error}\n", 400)
        return edit()

    views["locust.swarm"] = web_ui.auth_required_if_enabled(check_and_start)
    views["locust.update_user"] = web_ui.auth_required_if_enabled(check_and_edit)


def _extended(response: Response, pages: _Pages) -> Response:
    """Locust's response with the table, the scripts or the section of the report."""
    if response.status_code != 200:
        return response
    match request.endpoint:
        case "locust.request_stats":
            if response.is_json:
                # Do not change this response: Locust caches it for all requests within two seconds.
                stats = decode(response.get_data())
                if stats["state"] in (STATE_CLEANUP, STATE_STOPPING):
                    # Otherwise the page would ask no more, and never offer to start the next test.
                    stats["state"] = STATE_RUNNING
                return jsonify(stats | {"extended_stats": [{"key": KEY, "data": pages.table()}]})
        case "locust.index":
            response.set_data(_with_script(response.get_data(as_text=True)))
        case "locust.stats_report":
            response.set_data(_with_section(response.get_data(as_text=True), pages))
    return response


def _add_tab(template_args: dict[str, Any]) -> None:
    columns = {"metric": "Metric", "count": "Count", **{name: name for name in SHOWN[:-1]}, "max": "Max"}
    more: dict[str, list[dict[str, Any]]] = {
        "extended_tabs": [{"title": "Streaming", "key": KEY}],
        # No column may be called "name", because Locust would sort by it and put E2E before TTFT.
        "extended_tables": [
            {"key": KEY, "structure": [{"key": key, "title": title} for key, title in columns.items()]}
        ],
        "extended_csv_files": [
            {"href": f"./{KEY}/report", "title": "asr-load: download report HTML, with verdict, charts and tables"},
            {"href": f"./{KEY}/summary", "title": "asr-load: download summary JSON, with all figures"},
            {"href": f"./{KEY}/records", "title": "asr-load: download records JSONL, one line for each request"},
            {"href": f"./{KEY}/csv", "title": "asr-load: download streaming CSV, with the percentiles of each metric"},
        ],
    }
    for name, entries in more.items():
        template_args[name] = [*template_args.get(name, []), *entries]


def _fill_form(web_ui: Any, environment: Environment) -> None:
    """Order the form's fields, and fill in the values of the last test, without the secrets that Locust would write
    into the page as defaults."""
    update = web_ui.update_template_args
    # The page shows the fields in the order of this object's keys, so Jinja must not sort them.
    web_ui.app.jinja_env.policies["json.dumps_kwargs"] = {"sort_keys": False}

    def update_and_arrange() -> None:
        update()
        fields = web_ui.template_args["extra_options"]
        ordered = {field.name: fields[field.name] for field in form_fields() if field.name in fields}
        web_ui.template_args["extra_options"] = {**ordered, **fields}
        for name, field in fields.items():
            field["default_value"] = getattr(environment.parsed_options, name, field["default_value"])
            if field["is_secret"]:
                field["default_value"] = ""

    web_ui.update_template_args = update_and_arrange
    update_and_arrange()


def _with_script(page: str) -> str:
    # The last match is the page's own tag, even if strings before it contain one.
    before, end, after = page.rpartition("</body>")
    scripts = "".join(f'<script defer src="./{KEY}/{name}"></script>' for name in SCRIPTS)
    added = f'<link rel="stylesheet" href="./{KEY}/page.css" />{scripts}'
    return f"{before}{added}{end}{after}" if end else page


def _with_section(report: str, pages: _Pages) -> str:
    test, first_screen = pages.test, pages.first_screen()
    if test is None or first_screen is None:
        return report
    run, verdict = read_run(test.folder), first_screen.verdict
    return add_section(report, run, pages.summary(), test.live, first_screen.validity, verdict=verdict)


def _blueprint(web_ui: Any, pages: _Pages, form: FormActions) -> Blueprint:
    """Data for the charts, and the downloads; behind Locust's login and base path like its own pages."""
    base = web_ui.app.blueprints["locust"].url_prefix or ""
    blueprint = Blueprint(f"asr_load_{KEY}", __name__, url_prefix=f"{base.rstrip('/')}/{KEY}")

    def script(name: str) -> Response:
        return Response(asset(name, SCRIPTS[name]), mimetype="text/javascript")

    def page_css() -> Response:
        return Response(asset("page.css"), mimetype="text/css")

    def file(name: str, mimetype: str, not_yet: str) -> Response:
        # Only the records can be downloaded while they are being written.
        if pages.test is None or (name != RECORDS and pages.summary() is None):
            return _not_yet(not_yet)
        path = (pages.test.folder / name).resolve()
        if not path.exists():
            return _not_yet(not_yet)
        return send_file(path, mimetype, True, _file_name(pages.test.info(), name))

    def report_of(number: int) -> Response:
        runs = pages.runs()
        path = Path(runs[-1 - number].folder).resolve() / REPORT if number < len(runs) else None
        return send_file(path, "text/html") if path and path.exists() else _not_yet("There is no such report.")

    def streaming_csv() -> Response:
        finished = pages.summary()
        if pages.test is None or finished is None:
            return _not_yet("The exact figures are available after the test. Until then, see the Streaming tab.")
        response = Response(_csv(finished), mimetype="text/csv")
        name = _file_name(pages.test.info(), "streaming.csv")
        response.headers.set("Content-Disposition", "attachment", filename=name)
        return response

    views: dict[str, Callable[[], Response]] = {
        "points": partial(_points, pages),
        **{name: partial(script, name) for name in SCRIPTS},
        "page.css": page_css,
        "records": partial(file, RECORDS, "application/jsonl", "No test has run yet."),
        "summary": partial(file, SUMMARY, "application/json", "The summary is available after the test."),
        "report": partial(file, REPORT, "text/html", "The report is available after the test."),
        "csv": streaming_csv,
    }
    for path, view in views.items():
        blueprint.add_url_rule(f"/{path}", path.replace(".", "_"), web_ui.auth_required_if_enabled(view))
    blueprint.add_url_rule("/runs/<int:number>", "run", web_ui.auth_required_if_enabled(report_of))

    def form_page() -> Response:
        fields = [field._asdict() for field in form_fields()]
        return jsonify({"fields": fields, "data": form.data(), "starting": pages.starting_line})

    def models() -> Response:
        host = request.form.get("host", "").strip()
        try:
            return jsonify({"models": form.models(host, request.form.get("api_key", "").strip())})
        except InputError as error:
            return jsonify({"models": [], "field": field_of(error) or "host", "message": str(error)})

    def load() -> Response:
        try:
            return jsonify(form.picture(request.form)._asdict())
        except InputError:  # half-typed values are no error yet
            return jsonify(LoadPicture()._asdict())

    blueprint.add_url_rule("/form", "form", web_ui.auth_required_if_enabled(form_page))
    for path, view in {"models": models, "load": load}.items():
        # POST, because the fields may contain an API key, which no address should.
        blueprint.add_url_rule(f"/{path}", path, web_ui.auth_required_if_enabled(view), methods=["POST"])
    return blueprint


def _file_name(info: RunInfo, name: str) -> str:
    """The name of a downloaded file: when the test began, its model, its load, and the content."""
    began = datetime.fromtimestamp(info.began_at).astimezone().strftime("%Y%m%d-%H%M%S")
    load = f"{info.loop['rate']:g}-per-s" if info.loop.get("rate") else f"{info.num_users or 1}-streams"
    return f"{began}_{re.sub(r'[^A-Za-z0-9.-]+', '-', info.model)[:60]}_{load}_{name}"


def _add_metrics_page(web_ui: Any, app: Wsgi) -> None:
    """Serve the metrics page, behind Locust's login and base path like its own pages."""
    base = web_ui.app.blueprints["locust"].url_prefix or ""
    view = web_ui.auth_required_if_enabled(lambda: Response.from_app(app, request.environ))
    web_ui.app.add_url_rule(f"{base.rstrip('/')}{METRICS_PATH}", "asr_load_metrics", view)


def _points(pages: _Pages) -> Response:
    """The data of the charts, the table, and the first screen: the points after those that the page has."""
    runs = pages.runs()
    series, test, first_screen = pages.series(), pages.test, pages.first_screen()
    goes_on = request.args.get("run") == series
    live = test.live if test else Live(0.0)
    fresh = live.points(_number(request.args.get("after")) if goes_on else 0.0)
    running = first_screen is None or first_screen.running
    answer: dict[str, Any] = {
        "run": series,
        "running": running,
        "began": live.began,
        "points": compact(fresh[:MOST_POINTS]),
        "more": len(fresh) > MOST_POINTS,
        "table": headline.table(pages.rows() if first_screen is None else first_screen.rows),
        "starting": "",
        "words": [],
        "tiles": [],
        "now": [],
        "runs": [{**run._asdict(), "report": f"runs/{len(runs) - 1 - place}"} for place, run in enumerate(runs)],
    }
    if pages.is_starting:
        answer["starting"] = pages.starting_line
    if test is not None and first_screen is not None:
        answer |= {
            "sentence": sentence(test.info(), first_screen),
            "look": headline.look_of(first_screen),
            "words": [word._asdict() for word in headline.remarks(first_screen)],
            "tiles": [
                {**tile._asdict(), "span": headline.span_of(tile, first_screen)}
                for tile in headline.tiles(first_screen)
            ],
            "now": headline.now(test.stages, live, test.lost()) if running else [],
            "places": places(test.stages, test.workers, live.began),
            "limits": limits_of(test.slos),
            "bands": bands(test.workers, live.began),
            "sessions": live.is_realtime,
            "validity": first_screen.validity,
        }
    return Response(msgspec.json.encode(answer), mimetype="application/json")


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _not_yet(sentence: str) -> Response:
    response = make_response(f"{sentence}\n", 409)
    response.mimetype = "text/plain"
    return response


def _rounded(value: float | None) -> float | str:
    return "\N{EN DASH}" if value is None else round(value, 3)


def _csv(summary: Summary) -> str:
    """The table as CSV, exact from the records: in seconds, RTF as a ratio, --metadata in each row."""
    out = io.StringIO()
    writer = csv.writer(out)
    columns = [name for name in Figures.__struct_fields__ if name != "n"]
    writer.writerow(["metric", "count", *columns, *summary.metadata])
    for metric in METRICS.values():
        row: Figures = getattr(summary, metric.name)
        if row.n or metric.usual:
            values = [getattr(row, column) for column in columns]
            writer.writerow([metric.title, row.n, *values, *summary.metadata.values()])
    return out.getvalue()
