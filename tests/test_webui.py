"""The web UI and the HTML report in a real browser."""

from __future__ import annotations

import csv
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from playwright.sync_api import Browser, Page

from asr_load.results.summary import summarise
from asr_load.web.page import MARK, add_streaming_section
from conftest import prepare_clips
from harness.browser import browser, chromium, locust, open_tab, start_test
from harness.records import record, run_info
from harness.serving import serve

pytestmark = pytest.mark.long

if chromium() is None:
    pytest.skip("Chromium is not installed", allow_module_level=True)

SERVER = ("--engine", "scripted", "--tokens", "6", "--ttft-ms", "30", "--itl-ms", "5", "--fault", "503=0.1")
SECRET = "sk-very-secret-4711"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight short clips, prepared."""
    return prepare_clips(tmp_path_factory.mktemp("clips"), {f"clip{number}": 0.5 for number in range(8)})


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as running:
        yield running


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition, and return what it holds."""
    end = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.1)
    return found


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        body: bytes = response.read()
    return body


def table(page: Page) -> dict[str, list[str]]:
    """The rows of the tab's table, by their first cell."""
    rows = page.locator(".MuiTableBody-root tr").evaluate_all(
        "rows => rows.map(r => [...r.cells].map(c => c.innerText))"
    )
    return {row[0]: row[1:] for row in rows}


def count(page: Page, row: str = "TTFT (ms), whole run") -> int:
    return int(table(page).get(row, ["0"])[0])


def drawn(page: Page, title: str) -> int:
    """Points of the longest line of a chart."""
    paths = page.locator(f'.asr-chart:has(h4:text-is("{title}")) path.asr-series')
    return max(
        (path.count("L") + path.count("M") for path in paths.evaluate_all("ps => ps.map(p => p.getAttribute('d'))")),
        default=0,
    )


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_a_test_from_the_form_to_the_downloads(chrome: Browser, clips: Path, tmp_path: Path) -> None:
    results = tmp_path / "run"
    with serve(*SERVER) as host, locust("--host", host, "--results", results, "--api-key", SECRET) as ui:
        page = chrome.new_page(color_scheme="light", viewport={"width": 1280, "height": 1000})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(ui.url)

        # A bad value gets a message, and starts nothing.
        start_test(page, 4, 4, data=str(tmp_path / "nowhere"))
        page.get_by_text("there is no such folder").wait_for()
        assert json.loads(get(ui.url + "stats/requests"))["state"] == "ready"
        assert not results.exists()

        start_test(page, 4, 4, data=str(clips), max_tokens="5", unique="none")
        open_tab(page)
        watch(page)
        assert count(page) <= len(records_of(results))
        switch_to_dark(page)

        # A page that is opened later shows the past too.
        before = drawn(page, "Number of Users")
        late = chrome.new_page()
        late.goto(f"{ui.url}?tab=streaming")
        until(lambda: drawn(late, "Number of Users") >= before, "the past in a page opened late")
        late.close()

        stop(page)
        compare(page, results)
        download(page, results)
        assert MARK in get(ui.url + "stats/report").decode()
        start_afresh(page, tmp_path / "run-2")

        seen = [get(ui.url + path) for path in ("", "stats/requests", "stats/report", "logs", "streaming/points")]
        assert SECRET not in b"".join(seen).decode() + page.content() + ui.said
        assert SECRET not in "".join(file.read_text() for file in tmp_path.glob("run*/*"))
        assert errors == []


def watch(page: Page) -> None:
    """While the test runs: the table fills, the charts draw, the verdict is there, and pointing shows values."""
    until(lambda: count(page) > 50, "fifty streams in the table")
    until(lambda: drawn(page, "TTFT (ms)") >= 3 and drawn(page, "ITL (ms)") >= 3, "three points of each")
    until(page.locator(".asr-chart rect.asr-bar").count, "a bar of failures")
    assert "Client: " in page.locator(".asr-verdict").inner_text()
    charts = page.locator(".asr-chart svg")
    for label in charts.evaluate_all("all => all.map(svg => svg.getAttribute('aria-label'))"):
        assert " from " in label
    charts.first.hover(position={"x": 200, "y": 100})
    tip = page.locator(".asr-tip").first.inner_text()
    assert all(share in tip for share in ("p50", "p95", "p99")), tip


def switch_to_dark(page: Page) -> None:
    """By Locust's own button: the charts follow without a new load."""
    title = page.locator(".asr-chart h4").first
    light = title.evaluate("element => getComputedStyle(element).color")
    page.locator("header .MuiIconButton-root:visible").last.click()
    until(lambda: title.evaluate("element => getComputedStyle(element).color") != light, "the dark theme")


def test_the_form_has_the_groups_of_the_options(chrome: Browser, clips: Path) -> None:
    with locust("--host", "http://h", "--data", clips) as ui:
        page = chrome.new_page()
        page.goto(ui.url)
        page.locator(".MuiAccordion-root [name=api]").wait_for(state="attached")
        headings = """fields => fields.map(field =>
            [field.name, getComputedStyle(field.closest(".MuiFormControl-root"), "::before").content])"""
        shown = dict(page.locator(".MuiAccordion-root :is(input, select)").evaluate_all(headings))
        page.close()
    headed = {"api": '"Target"', "data": '"Data"', "requestRate": '"Load"'}
    assert {name: heading for name, heading in shown.items() if heading != "none"} == headed
    fields = ["api", "model", "prompt", "maxTokens", "apiKey", "data", "unique", "requestRate", "arrivals"]
    assert [name for name in shown if name in fields] == fields


def stop(page: Page) -> None:
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("whole test").wait_for()


def compare(page: Page, results: Path) -> None:
    """The form's values were used, and the table agrees with the records to the last one."""
    asked = json.loads((results / "run.json").read_text())
    assert (asked["max_tokens"], asked["unique"]) == (5, "none")
    assert len({(one["worker"], one["user"]) for one in records_of(results)}) == 4
    good = [one for one in records_of(results) if one["ok"]]
    until(lambda: count(page) == len(good), "the last count in the table")
    assert_agrees(table(page)["TTFT (ms), whole run"], [one["ttft"] * 1e3 for one in good])
    assert_agrees(table(page)["ITL (ms), whole run"], [gap * 1e3 for one in good for gap in one["itl"]])


def download(page: Page, results: Path) -> None:
    """What comes from the Download Data tab is what lies in the run's folder."""
    open_tab(page, "Download Data")
    assert downloaded(page, "records") == (results / "records.jsonl").read_bytes()
    assert downloaded(page, "summary") == (results / "summary.json").read_bytes()
    rows = {row["metric"]: row for row in csv.DictReader(io.StringIO(downloaded(page, "streaming CSV").decode()))}
    summary = json.loads((results / "summary.json").read_text())
    for metric, key in {"TTFT": "ttft", "ITL": "itl", "TPOT": "tpot", "E2E": "e2el", "RTF": "rtf"}.items():
        figures = {name: float(value) for name, value in rows[metric].items() if name != "metric"}
        assert figures == {"count" if name == "n" else name: value for name, value in summary[key].items()}
    open_tab(page)


def start_afresh(page: Page, results: Path) -> None:
    """A new test, and a reset, begin from nothing; the records keep what came before the reset."""
    shown = drawn(page, "Number of Users")
    page.get_by_role("button", name="New").click()
    start_test(page, 2, 2)
    until(lambda: 0 < drawn(page, "Number of Users") < shown, "the charts of the second test")
    until(lambda: count(page) > 20, "twenty streams of the second test")
    assert count(page) <= len(records_of(results))
    until(lambda: drawn(page, "Number of Users") > 4, "four seconds of the second test")
    page.get_by_role("button", name="Reset").click()
    until(lambda: drawn(page, "Number of Users") < 4, "charts that begin again")
    stop(page)
    assert count(page) < sum(one["ok"] for one in records_of(results))


def assert_agrees(row: list[str], values: list[float]) -> None:
    """The figures of a row are within 0.5 % of the records' (between two samples, any value between them is right)."""
    for cell, share in zip(row[1:5], (50, 90, 95, 99), strict=True):
        low, high = (np.percentile(values, share, method=method) for method in ("lower", "higher"))
        assert low * 0.995 <= float(cell) <= high * 1.005, (share, cell, low, high)
    assert float(row[5]) == pytest.approx(max(values), rel=0.005)


def downloaded(page: Page, text: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("link", name=text).click()
    return Path(download.value.path()).read_bytes()


@pytest.mark.parametrize(("words", "times"), [((), 1), (("--reset-stats",), 2)])
def test_the_live_figures_begin_again_where_locusts_do(
    clips: Path, tmp_path: Path, words: tuple[str, ...], times: int
) -> None:
    test = ("--data", clips, "--results", tmp_path / "run", "--autostart", "-u", "3", "-r", "1")
    with serve(*SERVER) as host, locust("--host", host, *test, *words) as ui:

        def series() -> str:
            name: str = json.loads(get(ui.url + "streaming/points"))["run"]
            return name.rpartition("-")[2]

        until(lambda: series() == "1", "the figures of a test")
        until(lambda: json.loads(get(ui.url + "stats/requests"))["state"] == "running", "all users")
        assert series() == str(times)


def test_under_a_base_path_and_before_any_test(clips: Path) -> None:
    # No server: nothing is sent.
    words = ("--host", "http://127.0.0.1:1", "--data", clips, "--web-base-path", "/load")
    with locust(*words, OPENAI_API_KEY=SECRET) as ui:
        page = get(ui.url + "load/").decode()
        assert SECRET not in page
        assert page.count("./streaming/chart.js") == 1
        assert page.rstrip().endswith("</html>")
        assert b"asr-chart" in get(ui.url + "load/streaming/chart.js")
        assert b".asr-chart" in get(ui.url + "load/streaming/chart.css")
        points = json.loads(get(ui.url + "load/streaming/points?after=nonsense"))
        assert (points["run"], points["points"], points["validity"]) == ("", [], None)
        stats = json.loads(get(ui.url + "load/stats/requests"))
        (streaming,) = stats["extended_stats"]
        assert [row["metric"].split()[0].rstrip(",") for row in streaming["data"]][::2] == [
            "TTFT",
            "ITL",
            "TPOT",
            "E2E",
            "RTF",
        ]
        for path in ("records", "summary", "csv"):
            with pytest.raises(urllib.error.HTTPError, match="409") as refused:
                get(f"{ui.url}load/streaming/{path}")
            assert refused.value.read().strip().endswith(b".")
            refused.value.close()


LOCUSTS = (
    '<html><head></head><body style="background: {back}"><div id="root"></div><script>"</body>"</script></body></html>'
)


def second(t: float, ttft: float | None, failures: dict[str, int]) -> dict[str, Any]:
    shares = dict.fromkeys(("p50", "p95", "p99"), ttft)
    return {"t": t, "users": 3, "tokens_per_s": 7.5, "rtfx": 2.5, "failures": failures, "ttft": shares, "itl": shares}


def test_the_section_of_a_report(chrome: Browser, tmp_path: Path) -> None:
    """Hours of points are thinned without hiding the one peak; names that look like HTML are text."""
    points = [second(1e9 + number, 100.0, {}) for number in range(7200)]
    points[4321] = second(1e9 + 4321, 987.0, {"</script><b>odd</b>": 2})
    for number in range(100, 160):
        points[number] = second(1e9 + number, None, {})
    summary = summarise([record(seq=number) for number in range(5)], run_info())
    stages = [{"t": 1e9 + 3600, "name": "4 <users>"}]
    report = add_streaming_section(LOCUSTS.format(back="#121212"), summary, points, stages)
    assert report.startswith(LOCUSTS[:12])
    assert report.endswith("</section>") is False
    assert report.index(MARK) > report.index('"</body>"')
    assert add_streaming_section(report, summary, points, stages) == report
    file = tmp_path / "report.html"
    file.write_text(report)

    page = chrome.new_page(viewport={"width": 400, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(file.as_uri())
    page.locator("path.asr-series").first.wait_for()
    assert errors == []
    assert page.locator("section.asr-report").get_attribute("data-theme") == "dark"
    assert page.locator(".asr-chart").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    path = page.locator("path.asr-series").first.get_attribute("d") or ""
    assert 200 < path.count("L") < 1300
    assert path.count("M") == 2  # before and after the minute without a stream
    heights = [float(word.split(",")[1]) for word in path.replace("M", "L").split("L") if word]
    assert min(heights) < 0.3 * max(heights)
    assert page.locator("text.asr-stage").first.text_content() == "4 <users>"
    bars = page.locator("rect.asr-bar")
    assert bars.count() == 1
    assert page.locator(".asr-legend button").last.inner_text() == "</script><b>odd</b>"
    assert "TTFT (ms)" in page.locator(".asr-table").first.inner_text()

    # A series is hidden by its name, and shown again.
    lines = page.locator(".asr-chart").first.locator("path.asr-series")
    p99 = page.locator(".asr-legend button").nth(2)
    p99.click()
    assert (lines.count(), p99.get_attribute("aria-pressed")) == (2, "false")
    p99.click()
    assert lines.count() == 3

    # The keyboard moves the crosshair; on paper the text is dark.
    page.locator(".asr-chart svg").first.press("ArrowLeft")
    assert page.locator(".asr-tip").first.is_visible()
    page.emulate_media(media="print")
    assert page.locator(".asr-chart h4").first.evaluate("h => getComputedStyle(h).color") == "rgb(0, 0, 0)"
