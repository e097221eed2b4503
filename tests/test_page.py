"""report.html: the contents of the page, for runs of every kind."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import asdict

from asr_load.report.page import make_report
from asr_load.report.plots import fit
from asr_load.report.tables import latencies
from asr_load.results.capacity import Capacity
from asr_load.results.course import thinned
from asr_load.results.live import DRAWN
from asr_load.results.summary import Finished, summarise
from asr_load.stream.record import RealtimeRecord, Record
from harness.browser import browser, chromium
from harness.comparisons import made
from harness.records import failure, health, record, run_info, worker_info
from harness.searches import search_of

MARKUP = "</script><b>\"'&{{7*7}}"


def page_of(records: list[Record], **changes: object) -> str:
    info = run_info(**changes)
    return make_report(Finished(info, records))


def data_of(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', page)
    assert found is not None
    data: dict[str, object] = json.loads(found[1])
    return data


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(0)],
        [failure(0, "http_503"), failure(1, "cut", ttft=0.1, chunks=1)],
        [record(0, audio_s=0.0, itl=[], chunks=1, e2el=0.2, stream_end=0.2)],
        [record(n, warmup=True) for n in range(3)],
        [failure(0, "unfinished")],
        [record(n, output_tokens=None, output_tokens_source=None, reference="") for n in range(3)],
    ],
    ids=["none", "one", "failures", "no audio", "warm-up", "unfinished", "no usage or reference"],
)
def test_every_run_has_a_report(records: list[Record]) -> None:
    page = page_of(records)
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")


def test_texts_of_servers_and_data_are_escaped() -> None:
    bad = failure(1, "stream_error", error=MARKUP)
    records = [record(0, clip=MARKUP, text=MARKUP, reference="he said"), bad]
    info = {"model": MARKUP, "metadata": {MARKUP: MARKUP}, "stages": [(1000.5, MARKUP)], "data": MARKUP}
    page = page_of(records, **info)
    assert MARKUP not in page
    assert "{{7*7}}" in page
    assert "<b>" not in page.replace(page[page.index("<script>") :], "")
    course_of = data_of(page)["course"]
    assert isinstance(course_of, dict)
    assert course_of["places"] == [{"name": MARKUP, "at": 1.5}]


def test_report_header_has_options_tiles_and_lost_workers() -> None:
    slos = ["ttft:p95:100", "errors:rate:0.5", "itl:p99:500", "wer:mean:0.1"]
    lost = worker_info(worker=1, ended=False, lost_at=1002.0, health=None)
    page = page_of([record(n) for n in range(3)], slos=slos, workers=[worker_info(), lost], metadata={"gpu": "H100"})
    text = " ".join(re.sub(r"<[^>]+>", " ", page[page.index("<h1>") : page.index("Over time")]).split())
    for said in ("m on http://127.0.0.1:1", "manifest 0", "gpu=H100", "Client: ", "worker 1 on here was lost"):
        assert said in text
    assert "TTFT p95 200.0 ms limit 100 ms" in text
    assert "ITL p99 100 ms limit 500 ms" in text
    assert "WER 0.0% limit 10.0%" in text
    places = data_of(page)["course"]["places"]  # type: ignore[index]
    assert places == [{"name": "worker 1 lost", "at": 3.0}]


def test_fit_over_clips_sorted_by_length_is_qualified() -> None:
    """The server takes 20 ms per second of audio, and each request takes 10 ms more than the one before."""
    lengths = np.linspace(1, 30, 100)
    slower = [record(n, audio_s=a, ttft=0.1 + 0.02 * a + 0.01 * n) for n, a in enumerate(lengths)]
    said = "(the clips are sorted by length, so this may include a trend over time)"
    assert said in page_of(slower)
    shuffled = np.random.default_rng(0).permutation(lengths)
    assert said not in page_of([record(n, audio_s=a, ttft=0.1 + 0.02 * a) for n, a in enumerate(shuffled)])


def test_fit_has_no_negative_part() -> None:
    convex = fit("ttft", [record(n, audio_s=1.0 + n, ttft=0.01 * (1 + n) ** 2) for n in range(30)])
    falling = fit("ttft", [record(n, audio_s=1.0 + n, ttft=1 - n / 50) for n in range(30)])
    assert convex is not None
    assert falling is not None
    assert convex.fixed_s == 0
    assert (convex.per_audio_s or 0) > 0
    assert falling.per_audio_s is None
    page = page_of([record(n, audio_s=1.0 + n, ttft=1 - n / 50, e2el=2 - n / 50) for n in range(30)])
    assert page.count("no relation to clip length found") >= 2
    assert "+ -" not in page


def test_size_of_the_page_does_not_grow_with_the_run() -> None:
    few = [record(n, started_at=1000.0 + n * 0.7, clip=f"clip{n % 50}") for n in range(6000)]
    # The size of its data does not depend on the number of requests.
    assert len(page_of(few)) < min(1_500_000, len(page_of(few[:600])) + 150_000)


def test_percentiles_of_few_requests_are_faint_in_every_table() -> None:
    """A p95 of 19 values, a p90 of 9 or a p99 of 99 is little more than their maximum."""
    for count, p95 in ((19, True), (20, False)):
        page = page_of([record(n) for n in range(count)], stages=[(999.0, "one")])
        tables = page[page.index("<h2>Tables</h2>") : page.index("<h2>Options and versions")]
        for title in (
            "Over time",
            "By stage",
            "By requests in flight at the start",
            "By worker",
            "By clip length",
        ):
            body = tables[tables.index(f"<h3>{title}</h3>") :]
            # A row of "Over time" covers one second; a row of the other tables covers all requests.
            faint = body[: body.index("</table>")].count("faint")
            assert (faint >= 2) is (p95 or title == "Over time")
    summary = summarise([record(n) for n in range(9)], run_info())
    assert {column for row, column in latencies(summary).faint if row == 0} == {3, 4, 5}
    summary = summarise([record(n) for n in range(99)], run_info())
    assert {column for row, column in latencies(summary).faint if row == 0} == {5}


def opening_of(page: str) -> str:
    """The text of the page before its folded details."""
    return " ".join(re.sub(r"<[^>]+>", " ", page[page.index("<h1>") : page.index("<details")]).split())


def test_report_opens_with_sentence_limits_chart_and_environment() -> None:
    slos = ["ttft:p95:100", "errors:rate:0.5"]
    server = {"/v1/models": {"data": [{"id": "m", "owned_by": "vllm"}]}, "/version": {"version": "0.32.0"}}
    changes = {"command": ["locust", "-u", "3"], "metadata": {"gpu": "H100"}, "num_users": 3}
    workers = [worker_info(server="uvicorn")]
    page = page_of([record(n) for n in range(9)], slos=slos, server=server, workers=workers, **changes)
    assert opening_of(page) == (
        "m on http://127.0.0.1:1 Held 3 streams for 10 s: TTFT p95 200 ms (limit 100 ms: missed), errors 0.0%"
        " (limit 50.0%: met), WER 0.0%. The load generator was healthy."
        " TTFT p95 200 ms, limit 100 ms: missed errors 0.0%, limit 50.0%: met"
        " Engine vLLM 0.32.0 Model m GPU H100 API chat, default path Data d: 3 clips, manifest 0"
        " Load closed loop, 3 streams Began 1970-01-01 00:16:39 +0000 Metadata gpu=H100 Command locust -u 3"
    )
    opening = page[: page.index("<details")]
    assert re.findall(r'data-course-title="([^"]+)"', opening) == ["TTFT", "Users and "]
    folds = re.findall(r'<details class="fold"[^>]*>', page)
    assert len(folds) >= 6
    assert not any("open" in fold for fold in folds)


@pytest.mark.parametrize(
    ("search", "changes", "title"),
    [
        (search_of({1: 2, 8: 15, 16: 16}), {}, "TTFT p95 by load"),
        (search_of({1: 2, 8: 15}, slos=["errors:rate:0.1"]), {}, "TTFT by load"),
        (
            None,
            {"shape": "steps", "stages": [(999.0, "2 users"), (1004.0, "4 users")], "users": [(999, 2), (1004.2, 4)]},
            "TTFT by load",
        ),
    ],
    ids=["search for a latency", "search for errors", "steps"],
)
def test_report_of_several_loads_opens_with_latency_by_load(
    search: Capacity | None, changes: dict[str, object], title: str
) -> None:
    page = make_report(Finished(run_info(**changes), [record(n) for n in range(9)], search))
    (number,) = re.findall(r'data-plot="(\d+)"', page[: page.index("<details")])
    plots = data_of(page)["plots"]
    assert isinstance(plots, list)
    assert plots[int(number)]["title"] == title
    assert all(series["data"] for series in plots[int(number)]["series"])


def test_report_of_failures_opens_with_the_rate_of_failures() -> None:
    page = page_of([failure(n, "http_503") for n in range(9)])
    assert 'data-course-title="Requests per second"' in page
    assert opening_of(page).startswith("m on http://127.0.0.1:1 No request succeeded: 9× 503")


def test_figures_of_a_doubtful_run_are_unfolded_with_the_reasons() -> None:
    late = [worker_info(health=health(loop_lag_p99=0.02))]
    for workers, unfolded in (([worker_info()], []), (late, ["Figures"])):
        page = page_of([record(n) for n in range(9)], workers=workers)
        folds = r'<details class="fold" data-print open><summary><h2>([^<]+)'
        assert re.findall(folds, page) == unfolded


def test_picture_of_where_the_time_goes_names_its_parts() -> None:
    page = page_of([record(n, ttft=0.1 + n / 10, e2el=0.5 + n / 10) for n in range(3)])
    picture = page[page.index('<figure class="waterfall">') :]
    picture = picture[: picture.index("</figure>")]
    assert re.findall(r'<li><i class="(\w+)"></i>(\w+)</li>', picture) == [
        (kind, kind) for kind in ("upload", "wait", "response", "chunk")
    ]
    text = " ".join(re.sub(r"<[^>]+>", " ", picture).split())
    assert "fastest: clip0 upload 1 ms, wait 99 ms, response 400 ms" in text
    assert "slowest: clip2 upload 1 ms, wait 299 ms, response 400 ms" in text
    assert text.endswith("0 ms 175 ms 350 ms 525 ms 700 ms")


def test_chart_note_says_how_many_seconds_a_point_covers() -> None:
    records = [record(n) for n in range(1300)]
    for count, note in ((300, "Each point is one second."), (1300, "Each point is the highest of 3 seconds.")):
        page = page_of(records[:count], ended_at=999.0 + count)
        assert note in page
        points = data_of(page)["course"]["points"]  # type: ignore[index]
        # One more for the last request, which ends in the next second.
        assert len(points) == (count + 1 if count < 600 else -(-(count + 1) // 3))


KINDS: dict[str, tuple[list[Record], dict[str, Any], Capacity | None]] = {
    "normal": (made(1, errors=12, word="sad"), {"slos": ["ttft:p95:300"]}, None),
    "no data": ([], {}, None),
    "one request": ([record(0)], {}, None),
    "failures": ([failure(n, "http_503") for n in range(20)], {}, None),
    "search": (made(2), {}, search_of({1: 2, 2: 4, 4: 8, 8: 15, 16: 16})),
    "realtime": (
        [RealtimeRecord(**asdict(one), ttfs=0.3, done_latency=0.2, rtf_live=1.0, dialect="vllm") for one in made(3)],
        {"api": "realtime", "realtime": {"dialect": "vllm"}},
        None,
    ),
}


def _add_error(errors: list[str], error: object) -> None:
    errors.append(str(error))


@pytest.mark.long
@pytest.mark.skipif(chromium() is None, reason="Chromium is not installed")
def test_report_prints_on_two_a4_pages_and_fits_every_screen(tmp_path: Path) -> None:
    with browser() as chrome:
        for name, (records, changes, search) in KINDS.items():
            info = run_info(began_at=1000.0, ended_at=1061.0, command=["locust", "-u", "3"], **changes)
            file = tmp_path / "page.html"
            file.write_text(make_report(Finished(info, records, search)))
            page = chrome.new_page(viewport={"width": 1280, "height": 900})
            errors: list[str] = []
            page.on("pageerror", partial(_add_error, errors))
            page.goto(file.as_uri())
            folded = "document.querySelectorAll('details.fold[open]').length"
            before = page.evaluate(folded)
            pdf = page.pdf(format="A4")
            assert pdf.count(b"/Type /Page") - pdf.count(b"/Type /Pages") == (1 if name == "no data" else 2), name
            assert page.evaluate(folded) == before
            for width in (390, 1280, 1920):
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
            drawn = "[...document.querySelectorAll('.opening .plot')].map(each => each.querySelectorAll('svg').length)"
            assert set(page.evaluate(drawn)) <= {1}
            assert errors == []
            page.close()


@pytest.mark.long
@pytest.mark.skipif(chromium() is None, reason="Chromium is not installed")
def test_single_value_between_gaps_is_drawn(tmp_path: Path) -> None:
    """In a test of 100 s with one request, no line connects its latency with others."""
    dots = """() => echarts.getInstanceByDom(document.querySelector(".opening .plot")).getZr().storage
        .getDisplayList(true).filter(({shape}) => shape?.symbolType === "circle").length"""
    file, counts = tmp_path / "page.html", []
    with browser() as chrome:
        for records in ([record(30)], [record(n) for n in range(100)]):
            file.write_text(make_report(Finished(run_info(began_at=1000.0, ended_at=1100.0), records)))
            page = chrome.new_page()
            page.goto(file.as_uri())
            page.locator(".opening .plot svg").first.wait_for()
            counts.append(page.evaluate(dots))
            page.close()
    assert counts[0] - counts[1] == 3  # p50, p95 and p99


@pytest.mark.long
@pytest.mark.skipif(chromium() is None, reason="Chromium is not installed")
def test_tab_thins_a_long_test_as_the_report_does(tmp_path: Path) -> None:
    """Both draw the same curves from the same points."""
    points = [
        {
            "t": 1001.0 + n, "users": 3, "in_flight": n % 4, "successes_per_s": n % 5,
            "tokens_per_s": None if n % 7 else n, "rtfx": n / 10, "failures_per_s": {"cut": 1} if n % 50 == 9 else {},
            **{name: {"p50": None if n < 8 else n % 90, "p95": n % 91, "p99": n % 92} for name in DRAWN},
        }
        for n in range(2000)
    ]  # fmt: skip
    file = tmp_path / "page.html"
    file.write_text(page_of([record(0)]))
    with browser() as chrome:
        page = chrome.new_page()
        page.goto(file.as_uri())
        draw = "([points, more]) => asrCharts.course(points, 1000, more).map(({title, series}) => [title, series])"
        drawn = [page.evaluate(draw, [points, {}]), page.evaluate(draw, [thinned(points), {"steady": True}])]
    assert len(drawn[0]) == 8
    for (title, tab), (_, report) in zip(*drawn, strict=True):
        for one, other in zip(tab, report, strict=True):
            assert one["name"] == other["name"]
            assert one["data"] == [[at, pytest.approx(value)] for at, value in other["data"]], title
