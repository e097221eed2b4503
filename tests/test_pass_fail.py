"""The verdict on a run is the same everywhere it is shown."""

from __future__ import annotations

import html
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast
from xml.etree import ElementTree

import msgspec
import pytest
from locust.runners import Runner

from asr_load.load.reports import exit_code
from asr_load.report.capacity import print_search
from asr_load.report.comparison import comparison_view
from asr_load.report.exports import export
from asr_load.report.headline import words
from asr_load.report.page import make_report
from asr_load.report.summary import print_summary
from asr_load.report.view import view_finished, view_running
from asr_load.results.capacity import Capacity, answer_lines
from asr_load.results.live import Live
from asr_load.results.pass_fail import Kind, PassRules, Verdict, conclude
from asr_load.results.runfile import RunInfo
from asr_load.results.slo import parse_slos
from asr_load.results.summary import Finished, Summary, summarise
from asr_load.results.verdict import judge_clients
from asr_load.stream.record import Record
from harness.records import failure, health, record, run_info, worker_info
from harness.searches import search_of

SLOW = {"workers": [worker_info(health=health(loop_lag_p99=0.2))]}
LOST = {"workers": [worker_info(ended=False, lost_at=1004.0)]}
GOOD = [record(0), record(1)]
ONE_FAILED = [record(0), record(1), failure(2, "http_500")]
NOTHING = [failure(0, "connect", error="Connection refused")]


class Case(NamedTuple):
    """A run and its expected verdict."""

    records: list[Record]
    info: dict[str, Any]
    code: int
    said: str
    server: str = "good"
    """The look of the server's status."""

    @property
    def run(self) -> RunInfo:
        return run_info(**self.info)


HELD, MISSED = "ttft:p95:500", "e2el:max:1"
MISS = "e2el:max is 400 ms (limit 1 ms)"
CASES = {
    "held": Case(GOOD, {"slos": [HELD]}, 0, "passed, SLOs 1 of 1 met"),
    "missed": Case(GOOD, {"slos": [HELD, MISSED]}, 1, f"NOT passed: {MISS}", "bad"),
    "no SLO": Case(GOOD, {}, 0, "passed (no SLO was set)"),
    "no SLO, client-bound": Case(GOOD, SLOW, 0, "passed (no SLO was set)"),
    "client-bound": Case(
        GOOD,
        {"slos": [HELD], **SLOW},
        1,
        "NOT passed: the run is client-bound (--allow-client-bound accepts this)",
        "doubt",
    ),
    "client-bound, accepted": Case(
        GOOD, {"slos": [HELD], "allow_client_bound": True, **SLOW}, 0, "passed, SLOs 1 of 1 met"
    ),
    # The option is not named, as the run would not pass with it.
    "client-bound and missed": Case(
        GOOD, {"slos": [MISSED], **SLOW}, 1, f"NOT passed: {MISS}; the run is client-bound", "bad"
    ),
    "worker lost": Case(
        GOOD,
        {"slos": [HELD], **LOST},
        1,
        "NOT passed: records of worker 0 are missing (--allow-lost-workers accepts this)",
        "doubt",
    ),
    "worker lost, no SLO": Case(
        GOOD, LOST, 1, "NOT passed: records of worker 0 are missing (--allow-lost-workers accepts this)", "doubt"
    ),
    "worker lost, accepted": Case(GOOD, {"allow_lost_workers": True, **LOST}, 0, "passed (no SLO was set)"),
    "failures": Case(
        ONE_FAILED,
        {"slos": [HELD]},
        1,
        "NOT passed: 1 of 3 requests failed (--slo errors:rate:LIMIT accepts this)",
        "bad",
    ),
    "failures within their SLO": Case(ONE_FAILED, {"slos": ["errors:rate:0.5"]}, 0, "passed, SLOs 1 of 1 met", "bad"),
    "failures of warm-up": Case(
        [*GOOD, failure(2, "http_500", warmup=True)], {"slos": [HELD]}, 0, "passed, SLOs 1 of 1 met"
    ),
    "failures with exit code 7": Case(
        ONE_FAILED,
        {"exit_code_on_error": 7},
        7,
        "NOT passed: 1 of 3 requests failed (--slo errors:rate:LIMIT accepts this)",
        "bad",
    ),
    "failures with exit code 0": Case(ONE_FAILED, {"exit_code_on_error": 0}, 0, "passed (no SLO was set)", "bad"),
    "nothing succeeded": Case(NOTHING, {"slos": ["errors:rate:1"]}, 1, "NOT passed: no request succeeded", "bad"),
    "no request": Case([], {}, 1, "NOT passed: no request succeeded", ""),
    "others failed": Case(
        GOOD, {"other_failures": 2}, 1, "NOT passed: 2 failures in the locustfile's own requests or users"
    ),
    "disk full": Case(
        GOOD,
        {"unwritten": "No space left on device"},
        2,
        "NOT passed: records could not be written: No space left on device",
        "doubt",
    ),
}

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def finished(case: Case) -> Finished:
    return Finished(case.run, case.records)


def words_of(summary: Summary | None, live: Live, case: Case, verdict: Verdict | None = None) -> dict[str, Any]:
    running = view_running(live, parse_slos(case.run.slos), judge_clients(case.run.workers), verdict)
    return {word.name: word for word in words(running if summary is None else view_finished(summary))}


@each_case
def test_summary_has_the_verdict(case: Case) -> None:
    verdict = msgspec.json.decode(msgspec.json.encode(finished(case).summary), type=Summary).verdict
    assert verdict is not None
    assert (verdict.exit_code, verdict.sentence()) == (case.code, case.said)
    assert verdict.passed == (case.code == 0)


@each_case
def test_console_tab_and_report_show_the_same_verdict(case: Case, tmp_path: Path) -> None:
    run, out = finished(case), io.StringIO()
    print_summary(tmp_path, run.info, run.summary, run.records, out)
    assert [line for line in out.getvalue().splitlines() if line.startswith("Verdict")] == [f"Verdict: {case.said}"]
    shown = words_of(run.summary, Live(0.0), case)
    assert shown["Verdict"].text == case.said
    assert (shown["Verdict"].look == "bad") == (case.code != 0)
    assert shown["Server"].look == case.server
    page = html.unescape(make_report(run))
    assert f">{case.said}</strong>" in page


@each_case
def test_exports_and_comparisons_have_the_same_verdict(case: Case, tmp_path: Path) -> None:
    run = finished(case)
    assert f"- Verdict: {case.said}\n" in export(tmp_path, run, "markdown").read_text()
    suite = ElementTree.fromstring(export(tmp_path, run, "junit").read_bytes())
    assert (suite.get("failures") != "0") == (case.code != 0)
    fine = finished(CASES["held"])
    run.folder = Path("new")
    warnings = comparison_view([run], [fine]).comparison.warnings
    assert (f"new: {case.said}" in warnings) == (case.code != 0)


@each_case
def test_exit_code_is_that_of_the_verdict(case: Case) -> None:
    for errors in ({}, {"a row of Locust's": 1}):
        runner = cast(Runner, SimpleNamespace(errors=errors, exceptions={}))
        # Without an error of ours, Locust exits with 0 unless something crashed.
        assert (exit_code(finished(case).summary, runner) or 0) == case.code


@pytest.mark.parametrize("name", ["held", "missed", "failures", "client-bound", "client-bound and missed"])
def test_running_test_is_judged_like_a_finished_one(name: str) -> None:
    case = CASES[name]
    slos, validity = parse_slos(case.info["slos"]), judge_clients(case.run.workers)
    live = Live(999.0, slos=slos)
    live.add(case.records, [one.end for one in case.records])
    verdict = conclude(
        case.run.rules,
        live.slo_results(slos),
        success=live.successes,
        failed=live.failures.total(),
        client_bound=validity.verdict == "client-bound",
        running=True,
    )
    assert (verdict.exit_code, verdict.sentence()) == (case.code, case.said)
    shown = words_of(None, live, case, verdict)
    assert shown["Verdict"].text == case.said.replace("passed", "passed so far")
    assert shown["Server"].look == case.server
    assert f"SLOs {verdict.met} of {verdict.slos} met so far, errors " in shown["Server"].text


@pytest.mark.parametrize("name", ["disk full", "worker lost", "client-bound"])
def test_slo_does_not_pass_if_the_metrics_cannot_prove_it(name: str) -> None:
    case = CASES[name]
    summary = finished(case._replace(info=case.info | {"slos": [HELD]})).summary
    assert (summary.passed, len(summary.not_passed)) == (False, 1)


def test_running_test_without_a_response_has_no_verdict() -> None:
    case = CASES["held"]
    verdict = conclude(case.run.rules, [], success=0, failed=0, client_bound=False, running=True)
    assert verdict.passed
    assert list(words_of(None, Live(0.0), case, verdict)) == ["Server", "Client"]


def test_most_serious_reason_comes_first() -> None:
    info = {
        "slos": [MISSED],
        "unwritten": "full",
        "other_failures": 1,
        **LOST,
        "workers": [*SLOW["workers"], *LOST["workers"]],
    }
    verdict = summarise(ONE_FAILED, run_info(**info)).verdict
    assert verdict is not None
    assert [reason.kind for reason in verdict.reasons] == [
        Kind.UNWRITTEN, Kind.MISSING, Kind.SLO, Kind.FAILURES, Kind.OTHER_FAILURES, Kind.CLIENT_BOUND,
    ]  # fmt: skip
    assert verdict.exit_code == 2


def test_cause_comes_first_if_nothing_succeeded(tmp_path: Path) -> None:
    run, out = finished(CASES["nothing succeeded"]), io.StringIO()
    print_summary(tmp_path, run.info, run.summary, run.records, out)
    assert (
        out.getvalue().splitlines()[1].startswith("No request succeeded: 1× connection refused by http://127.0.0.1:1")
    )
    assert run.summary.not_passed == ["no request succeeded"]


SEARCHES = {
    "answered": (search_of({4: 8, 8: 15, 16: 16}), 0, "good"),
    "nothing held": (search_of({16: 16}, answer=0.0), 1, "bad"),
    "at least": (
        search_of({4: 8, 8: 15}, limited_by="the load generator stalled at 9 streams", stalled_at=9.0),
        2,
        "bad",
    ),
    "unknown": (
        search_of({}, answer=None, limited_by="the load generator stalled at 1 stream", stalled_at=1.0),
        2,
        "bad",
    ),
    "ended": (search_of({4: 8}, answer=None), 1, "bad"),
    "gone": (search_of({}, answer=None, limited_by="the server is gone: no request succeeded", gone_at=1.0), 1, "bad"),
    "gone later": (search_of({4: 8, 8: 15}, limited_by="the server is gone", gone_at=12.0), 1, "bad"),
}


def test_search_that_lost_a_worker_reports_it_with_its_answer(tmp_path: Path) -> None:
    search, out = search_of({4: 8, 8: 15, 16: 16}), io.StringIO()
    info = run_info(**LOST)
    summary = summarise(GOOD, info, search)
    verdict = summary.verdict
    assert verdict is not None
    assert (verdict.exit_code, verdict.sentence()) == (
        1,
        "maximum effective streams: 8; records of worker 0 are missing",
    )
    print_search(tmp_path, info, summary, search, out)
    assert "\n  - records of worker 0 are missing\n" in out.getvalue()
    assert out.getvalue().splitlines()[-1] == "maximum effective streams: 8"  # scripts read this line


@pytest.mark.parametrize(("search", "code", "look"), SEARCHES.values(), ids=SEARCHES)
def test_verdict_of_a_search_is_its_answer(search: Capacity, code: int, look: str, tmp_path: Path) -> None:
    """Failures at loads beyond the capacity do not fail a search."""
    case = Case(ONE_FAILED, {}, code, "")
    summary = summarise(case.records, case.run, search)
    assert summary.verdict is not None
    assert summary.verdict.exit_code == code
    run = Finished(case.run, case.records, search)
    answer = answer_lines(search)[-1] if search.answer is not None or search.unknown else ""
    said = answer or "NOT passed: the search stopped before its answer"
    shown = words_of(summary, Live(0.0), case)
    assert (shown["Verdict"].text, shown["Verdict"].look) == (said, look)
    assert f">{said}</strong>" in html.unescape(make_report(run))
    suite = ElementTree.fromstring(export(tmp_path, run, "junit").read_bytes())
    assert (suite.get("failures") != "0") == (code != 0)


@pytest.mark.parametrize(("realtime", "text"), [(False, "1 of 3 requests failed"), (True, "1 of 3 sessions failed")])
def test_failures_are_those_of_requests_or_sessions(realtime: bool, text: str) -> None:
    verdict = conclude(PassRules(), [], success=2, failed=1, client_bound=False, realtime=realtime)
    assert verdict.reasons[0].text.startswith(text)
