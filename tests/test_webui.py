"""The web UI and the HTML report in a real browser."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from asr_load.report.comparison import comparison_view
from asr_load.report.page import MARK, add_section, comparison_page, make_report, plots_page
from asr_load.report.plots import Plot, Series
from asr_load.results.live import Live
from asr_load.results.summary import read_finished, summarise
from conftest import prepare_clips
from harness.browser import ROOT, browser, chromium, locust, open_tab, start_test
from harness.models import STREAM, AnsweringServer, answering
from harness.patience import PATIENCE_S
from harness.records import failure, record, run_folder, run_info
from harness.serving import serve, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.long, pytest.mark.skipif(chromium() is None, reason="Chromium is not installed")]

SERVER = ("--engine", "scripted", "--tokens", "6", "--ttft-ms", "30", "--itl-ms", "5", "--fault", "503=0.1")
PACKAGE = ROOT / "asr_load"
SECRET = "sk-very-secret-4711"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight short prepared clips."""
    return prepare_clips(tmp_path_factory.mktemp("clips"), {f"clip{number}": 0.5 for number in range(8)})


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as running:
        yield running


until = wait_until


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        body: bytes = response.read()
    return body


def table(page: Page, block: int = 1) -> dict[str, list[str]]:
    """Rows of the tab's table by metric: p50, p90, p95, p99, max and n, of the last seconds (block 0) or test (1)."""
    rows = page.locator(".asr-tab .table tbody tr").evaluate_all(
        "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    return {name: [cell.replace(",", "") for cell in cells][6 * block : 6 * block + 6] for name, *cells in rows}


def count(page: Page, row: str = "TTFT (ms)") -> int:
    return int(table(page).get(row, ["0"])[-1])


def drawn(page: Page, title: str, series: str | None = None) -> list[list[Any]]:
    """The points of a chart's first series, or of the series with this name, as ECharts stores them."""
    found: list[list[Any]] = page.evaluate(
        """([title, name]) => {
            for (const element of document.querySelectorAll(".asr .plot")) {
                const chart = echarts.getInstanceByDom(element);
                const option = chart && chart.getOption();
                if (!option || !option.title[0].text.startsWith(title)) continue;
                const one = option.series.find((each) => !name || each.name === name);
                return one ? one.data : [];
            }
            return [];
        }""",
        [title, series],
    )
    return found


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_web_ui_from_the_form_to_the_downloads(chrome: Browser, clips: Path, tmp_path: Path) -> None:
    results = tmp_path / "run"
    with serve(*SERVER) as host, locust("--host", host, "--results", results, "--api-key", SECRET) as ui:
        page = chrome.new_page(color_scheme="light", viewport={"width": 1280, "height": 1000})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(ui.url)

        # An invalid value gets a message and starts nothing.
        start_test(page, 4, 4, data=str(tmp_path / "nowhere"))
        page.get_by_text("there is no such folder").wait_for()
        assert json.loads(get(ui.url + "stats/requests"))["state"] == "ready"
        assert not results.exists()

        start_test(page, 4, 4, data=str(clips), max_tokens="5", unique="none")
        # START opens the Streaming tab, which is the second one.
        tab = page.get_by_role("tab", name="Streaming", exact=True)
        tab.wait_for()
        until(lambda: tab.get_attribute("aria-selected") == "true", "the tab that START leads to")
        lefts = page.get_by_role("tab").evaluate_all("t => t.map(e => [e.getBoundingClientRect().left, e.textContent])")
        assert [name for _, name in sorted(lefts)][:2] == ["Statistics", "Streaming"]
        watch(page)
        assert count(page) <= len(records_of(results))
        switch_to_dark(page)

        # A page opened later shows the past too.
        before = len(drawn(page, "Users"))
        late = chrome.new_page()
        late.goto(f"{ui.url}?tab=streaming")
        until(lambda: len(drawn(late, "Users")) >= before, "the past in a page opened late")
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
    """During the test, the table and charts fill, the headline is shown, and hovering shows values."""
    until(lambda: count(page) > 50, "fifty streams in the table")
    until(lambda: len(drawn(page, "TTFT")) >= 3 and len(drawn(page, "ITL", "p99")) >= 3, "three points of each")
    until(lambda: sum(value for _, value in drawn(page, "Requests", "http_503")), "a failure in the chart")
    words = page.locator(".asr-tab .head > :first-child").inner_text()
    assert "The load generator " in words
    assert "Holding 4 streams for " in words
    assert ", errors " in words
    tiles = page.locator(".asr-tab .tile .name").all_inner_texts()
    assert tiles == ["TTFT p95", "E2E p95", "Requests/s", "Errors", "WER"]
    spans = page.locator(".asr-tab .tile .of").all_inner_texts()
    assert spans == ["last 10 s", "last 10 s", "last 10 s", "last 10 s", ""]
    charts = page.locator(".asr-tab .plot")
    labels = charts.evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
    assert len(labels) == 8
    assert all("; latest: " in label for label in labels), labels
    charts.first.hover(position={"x": 300, "y": 150})
    tip = until(page.locator(".asr-tab .plot").first.inner_text, "the values that are pointed at")
    assert all(share in tip for share in ("p50", "p95", "p99")), tip
    open_tab(page, "Failures")
    page.get_by_text("http_503: This error was requested.", exact=True).wait_for()
    open_tab(page)
    until(lambda: page.locator(".asr-tab .plot svg").count() == 8, "the charts again")


def switch_to_dark(page: Page) -> None:
    """Switch with Locust's own button: the charts follow without a reload."""
    root = page.locator(".asr-tab")
    assert root.get_attribute("data-theme") == "light"
    page.locator("header .MuiIconButton-root:visible").last.click()
    until(lambda: root.get_attribute("data-theme") == "dark", "the dark theme")


def test_form_shows_the_groups_of_options(chrome: Browser, clips: Path) -> None:
    with locust("--host", "http://h", "--data", clips) as ui:
        page = chrome.new_page()
        page.goto(ui.url)
        page.locator(".MuiAccordion-root [data-group]").last.wait_for(state="attached")
        headings = """fields => fields.map(field =>
            [field.name, getComputedStyle(field.closest(".MuiFormControl-root"), "::before").content])"""
        shown = dict(page.locator(".MuiAccordion-root :is(input, select)").evaluate_all(headings))
        page.close()
    headed = {"prompt": '"Target"', "realtimeDialect": '"Realtime"', "unique": '"Data"', "arrivals": '"Load"'}
    headed |= {"warmupRequests": '"Measuring"', "goodput": '"Limits"'}
    assert {name: heading for name, heading in shown.items() if heading != "none"} == headed
    fields = [
        "data",
        "model",
        "api",
        "slo",
        "requestRate",
        "prompt",
        "maxTokens",
        "apiKey",
        "realtimeDialect",
        "packetMs",
        "pace",
        "unique",
        "arrivals",
    ]
    fields += ["requests", "warmupRequests", "warmupTime", "goodput"]
    assert [name for name in shown if name in fields] == fields


def test_form_marks_wrong_values_and_keeps_the_others(chrome: Browser, clips: Path, tmp_path: Path) -> None:
    listed = answering((200, STREAM), models=["first", "second"])
    words = ("-f", "locustfiles/transcribe.py,locustfiles/shapes.py", "--data", clips, "--results", tmp_path / "run")
    with listed as host, locust("--host", "http://127.0.0.1:1", *words) as ui:
        page = chrome.new_page(viewport={"width": 1280, "height": 1000})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(ui.url)
        # The server of the command line does not answer, which its field says.
        assert "http://127.0.0.1:1 does not answer" in message_at(page, "host")
        shown = page.locator("form :is(input, select):visible").evaluate_all("all => all.map(each => each.name)")
        top = ["userCount", "spawnRate", "host", "runTime", "data", "model", "api", "slo", "requestRate", "shape"]
        assert [name for name in shown if name] == top
        assert page.get_by_label("Limits (SLO)").is_visible()
        assert page.get_by_label("Packet length (ms)").is_hidden()

        page.locator("[name=host]").fill(host)
        page.locator("[name=host]").press("Tab")
        models = page.get_by_label("choose: 2 models")
        models.select_option("second")
        assert page.locator("[name=model]").input_value() == "second"
        page.get_by_label(re.compile(r"choose: \d+ prepared folders")).select_option(str(clips))
        assert page.locator(".asr-wrong").count() == 0

        page.locator("[name=shape]").select_option("steps")
        page.get_by_label("Load: up to 1 user, for 150 s").wait_for()
        page.locator("[name=shape]").select_option("none")

        # A wrong value that is folded is unfolded, marked, and has its message next to it.
        start_test(page, 2, 2, max_tokens="0", slo="ttft:p95:9000,errors:rate:0.5", api_key=SECRET)
        assert "--max-tokens must be 1 or more, not 0" in message_at(page, "maxTokens")
        assert page.locator("[name=maxTokens]").get_attribute("aria-invalid") == "true"
        page.get_by_text('Correct the field "Maximum length of a response (tokens)".').wait_for()
        page.get_by_role("button", name="More").click()
        page.locator("[name=maxTokens]").wait_for(state="hidden")
        page.get_by_role("button", name="Start", exact=True).click()
        assert "--max-tokens must be" in message_at(page, "maxTokens")
        page.locator("[name=maxTokens]").fill("7")
        assert page.locator(".asr-wrong").count() == 0
        page.get_by_role("button", name="Start", exact=True).click()
        until(lambda: count(page) > 2, "the figures of the test")
        assert AnsweringServer.asked[-1]["max_tokens"] == 7
        stop(page)

        # The next form has the values of the last test, in this page and in another one, but not the key.
        again = chrome.new_page()
        again.goto(ui.url)
        for each in (page, again):
            each.get_by_role("button", name="New").click()
            each.locator('form[data-asr="form"]').wait_for()
            values = each.locator("form :is(input, select)").evaluate_all(
                "all => Object.fromEntries(all.map(each => [each.name, each.value]))"
            )
            kept = {"userCount": "2", "model": "second", "maxTokens": "7", "slo": "ttft:p95:9000,errors:rate:0.5"}
            assert {name: values[name] for name in kept} == kept
            assert (values["data"], values["host"], values["apiKey"]) == (str(clips), host, "")
            assert SECRET not in each.content()
            stored = each.evaluate("JSON.stringify([{ ...localStorage }, { ...sessionStorage }])")
            assert SECRET not in stored
        assert errors == []


def message_at(page: Page, name: str) -> str:
    """The message next to a field, as soon as there is one."""
    message: str = page.locator(f".MuiFormControl-root:has([name={name}]) .asr-wrong").inner_text()
    return message


def test_key_in_the_form_reaches_the_server_and_no_page(chrome: Browser, clips: Path, tmp_path: Path) -> None:
    locked = serve(*SERVER[:-2], "--api-key", SECRET)
    with locked as host, locust("--host", host, "--data", clips, "--results", tmp_path / "run") as ui:
        page = chrome.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(ui.url)
        assert "returned 401 for its list of models" in message_at(page, "apiKey")
        page.locator("[name=apiKey]").fill("wrong")
        start_test(page, 2, 2)
        page.get_by_text("a trial request failed: 401").wait_for()
        until(lambda: page.locator("[name=apiKey]").input_value() == "wrong", "the key that was typed")
        page.locator("[name=apiKey]").fill(SECRET)
        page.locator("[name=apiKey]").press("Tab")
        page.get_by_label("choose: 1 model").wait_for()
        start_test(page, 2, 2)
        until(lambda: count(page) > 2, "the figures of the test")
        assert SECRET not in page.content()
        stop(page)
        page.get_by_role("button", name="New").click()
        page.get_by_label("choose: 1 model").wait_for()
        assert page.locator("[name=apiKey]").input_value() == ""
        assert SECRET not in page.content() + ui.said
        start_test(page, 1, 1)  # this process keeps the key for its host
        second = tmp_path / "run-2"
        until(lambda: (second / "records.jsonl").exists() and records_of(second), "a second test")
    outcomes = [one["outcome"] for folder in ("run", "run-2") for one in records_of(tmp_path / folder)]
    assert set(outcomes) <= {"ok", "unfinished"}
    assert outcomes.count("ok") > 2


def test_form_works_without_its_script(chrome: Browser, clips: Path, tmp_path: Path) -> None:
    with serve(*SERVER) as host, locust("--host", host, "--data", clips, "--results", tmp_path / "run") as ui:
        page = chrome.new_page()
        page.route("**/streaming/form.js", lambda route: route.abort())
        page.goto(ui.url)
        start_test(page, 2, 2, max_tokens="6")
        until(lambda: count(page) > 2, "the figures of the test")


def test_tab_from_one_test_to_the_next(chrome: Browser, clips: Path, tmp_path: Path) -> None:
    slow = ("--engine", "scripted", "--tokens", "6", "--ttft-ms", "1500", "--itl-ms", "5", "--fault", "503=0.3")
    limits = ("--slo", "errors:rate:0.01", "--slo", "ttft:p95:9000", "--goodput", "ttft:9000")
    with serve(*slow) as host, locust("--host", host, "--data", clips, "--results", tmp_path / "run", *limits) as ui:
        page = chrome.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(ui.url)
        start_test(page, 6, 6)
        until(lambda: count(page) > 8, "some streams")
        os.kill(ui.pid, signal.SIGSTOP)  # the load generator's loop is then late
        time.sleep(0.5)
        os.kill(ui.pid, signal.SIGCONT)
        until(lambda: {"errors", "late"} <= shaded(page), "the shaded stretches")
        assert "requests failed the load generator was late" in " ".join(page.locator(".shades").inner_text().split())
        assert (
            page.locator(".asr-tab .words details[open]").count() == page.locator(".asr-tab .words details").count() > 0
        )
        sentence = page.locator(".asr-tab > .head > :first-child")
        assert sentence.inner_text().startswith("Holding 6 streams for ")
        during = cards(page)
        assert "Goodput" in during
        header = page.locator("header").inner_text()
        assert "RPS (10 s)" in header
        assert "Failures (test)" in header
        stop(page)
        assert cards(page) == during
        assert sentence.inner_text().startswith("Held 6 streams for ")
        charts_share_their_axis_and_cursor(page)
        labels_do_not_overlap(page)

        other = chrome.new_page()
        other.goto(f"{ui.url}?tab=streaming")
        until(lambda: other.locator(".asr-tab .tile").count(), "the figures of the first test")
        page.get_by_role("button", name="New").click()
        page.get_by_role("button", name="Start", exact=True).click()
        assert page.locator(".asr-tab .tile").count() == 0
        for each in (page, other):
            each.get_by_text("Starting: trial request …").first.wait_for()
            assert each.locator(".asr-tab .tile").count() == 0
        until(lambda: count(page) > 2, "the second test")
        listed = page.locator(".asr-tab .runs tbody tr")
        assert listed.count() == 1
        assert "Held 6 streams for " in listed.inner_text()
        stop(page)
        until(lambda: listed.count() == 2, "both tests in the list")
        reports = listed.get_by_role("link", name="report").evaluate_all("links => links.map(link => link.href)")
        folders = [tmp_path / "run-2", tmp_path / "run"]
        assert [get(url) for url in reports] == [(folder / "report.html").read_bytes() for folder in folders]


def shaded(page: Page) -> set[str]:
    """The kinds of stretches that all charts shade."""
    kinds: list[list[str]] = page.evaluate(
        """() => [...document.querySelectorAll(".asr .plot")].map(element => {
            const [{ markArea }] = echarts.getInstanceByDom(element).getOption().series;
            const named = Object.fromEntries(Object.entries(asrCharts.SHADES).map(([kind, shade]) => [shade, kind]));
            return (markArea?.data || []).map(([from]) => named[from.itemStyle.color]);
        })"""
    )
    return set.intersection(*map(set, kinds)) if kinds else set()


def cards(page: Page) -> dict[str, list[float]]:
    """The place of each card within the row of cards, by name."""
    found: dict[str, list[float]] = page.evaluate(
        """() => {
            const at = document.querySelector(".asr-tab .tiles").getBoundingClientRect();
            return Object.fromEntries([...document.querySelectorAll(".asr-tab .tile")].map(tile => {
                const box = tile.getBoundingClientRect();
                return [tile.querySelector(".name").textContent, [box.left - at.left, box.top - at.top, box.width]];
            }));
        }"""
    )
    return found


def charts_share_their_axis_and_cursor(page: Page) -> None:
    """Check that a second has the same place in all charts, and that pointing at one chart points at all."""
    places = page.evaluate(
        """() => [...document.querySelectorAll(".asr-tab .plot")].map(element => {
            const chart = echarts.getInstanceByDom(element);
            return [0, 5].map(second => Math.round(chart.convertToPixel({ xAxisIndex: 0 }, second)));
        })"""
    )
    assert len(places) == 8
    assert all(place == places[0] for place in places), places

    def moments() -> list[str]:
        found: list[str] = page.evaluate(
            """() => [...document.querySelectorAll(".asr-tab .plot")].map(element =>
                (element.querySelector(":scope > div:not(:first-child)")?.innerText || "").split("\\n")[0])"""
        )
        return found

    page.locator(".asr-tab .plot").first.hover(position={"x": 300, "y": 150})
    until(lambda: len(set(moments())) == 1 and ":" in moments()[0], "the same moment in all charts")


def labels_do_not_overlap(page: Page) -> None:
    """Check all texts of the charts at three widths, and that no row of charts has a hole."""
    for width in (390, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(500)
        clashes, holes = page.evaluate(
            """() => {
                const clashes = [];
                for (const plot of document.querySelectorAll(".asr-tab .plot")) {
                    const texts = [...plot.querySelectorAll("svg text")].filter(text => text.textContent);
                    const boxes = texts.map(text => text.getBoundingClientRect());
                    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
                        if (a.left < b.right && b.left < a.right && a.top + 1 < b.bottom && b.top + 1 < a.bottom)
                            clashes.push([texts[i].textContent, texts[i + 1 + j].textContent]);
                    }));
                }
                const grid = document.querySelector(".asr-tab .charts").getBoundingClientRect();
                const last = [...document.querySelectorAll(".asr-tab figure")].pop().getBoundingClientRect();
                return [clashes, grid.right - last.right];
            }"""
        )
        assert clashes == [], width
        assert abs(holes) < 2, width


VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""What each kind of vision makes of linear red, green and blue (Machado, Oliveira and Fernandes 2009)."""


def test_percentiles_have_colours_that_everyone_can_tell_apart(chrome: Browser, tmp_path: Path) -> None:
    page, _ = opened(chrome, tmp_path, plots_page("p", [Plot("one", "x", "y", [Series("s", [(0.0, 1.0)])])]))
    hues = page.evaluate("asrCharts.PERCENTILES.map(({ hue }) => hue)")
    page.close()
    for theme, back in enumerate(("#ffffff", "#22262c")):
        colours = [linear(hue[theme]) for hue in hues]
        for kind, matrix in VISION.items():
            for one, other in itertools.combinations(colours, 2):
                far = np.linalg.norm(lab(np.array(matrix) @ one) - lab(np.array(matrix) @ other))
                assert far > 30, (kind, theme)
        for colour in colours:
            darker, lighter = sorted(
                float(np.array([0.2126, 0.7152, 0.0722]) @ each) for each in (colour, linear(back))
            )
            assert (lighter + 0.05) / (darker + 0.05) >= 3  # WCAG 2, graphics


def linear(hue: str) -> np.ndarray:
    """Linear red, green and blue of a colour such as #0080c8; shape (3,)."""
    parts = np.array([int(hue[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(colour: np.ndarray) -> np.ndarray:
    """CIELAB of a linear colour, in which a distance of 30 is plain to see; shape (3,)."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ np.clip(colour, 0.001, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def stop(page: Page) -> None:
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("exact figures of the whole test").wait_for()


def compare(page: Page, results: Path) -> None:
    """Check that the form's values were used, and that the table agrees with all records."""
    asked = json.loads((results / "run.json").read_text())
    assert (asked["max_tokens"], asked["unique"]) == (5, "none")
    assert len({(one["worker"], one["user"]) for one in records_of(results)}) == 4
    # Requests of late seconds are not in the table, and a busy machine has some.
    measured = {one.seq for one in read_finished(results).measured.sound}
    good = [one for one in records_of(results) if one["ok"] and one["seq"] in measured]
    until(lambda: count(page) == len(good), "the last count in the table")
    assert_agrees(table(page)["TTFT (ms)"], [one["ttft"] * 1e3 for one in good])
    assert_agrees(table(page)["ITL (ms)"], [gap * 1e3 for one in good for gap in one["itl"]])


def download(page: Page, results: Path) -> None:
    """Check that the Download Data tab serves the files of the results folder."""
    open_tab(page, "Download Data")
    assert downloaded(page, "records") == (results / "records.jsonl").read_bytes()
    assert downloaded(page, "summary") == (results / "summary.json").read_bytes()
    assert downloaded(page, "report HTML") == (results / "report.html").read_bytes()
    rows = {row["metric"]: row for row in csv.DictReader(io.StringIO(downloaded(page, "streaming CSV").decode()))}
    summary = json.loads((results / "summary.json").read_text())
    for metric, key in {"TTFT": "ttft", "ITL": "itl", "TPOT": "tpot", "E2E": "e2el", "RTF": "rtf"}.items():
        figures = {name: float(value) for name, value in rows[metric].items() if name != "metric"}
        assert figures == {"count" if name == "n" else name: value for name, value in summary[key].items()}
    open_tab(page)


def start_afresh(page: Page, results: Path) -> None:
    """Check that a new test and a reset start the charts from nothing, and that records before the reset are kept."""
    shown = len(drawn(page, "Users"))
    page.get_by_role("button", name="New").click()
    start_test(page, 2, 2)
    until(lambda: 0 < len(drawn(page, "Users")) < shown, "the charts of the second test")
    until(lambda: count(page) > 20, "twenty streams of the second test")
    assert count(page) <= len(records_of(results))
    until(lambda: len(drawn(page, "Users")) > 4, "four seconds of the second test")
    page.get_by_role("button", name="Reset").click()
    until(lambda: len(drawn(page, "Users")) < 4, "charts that begin again")
    assert count(page) < sum(one["ok"] for one in records_of(results))
    stop(page)
    # The summary covers the whole test, including the time before the reset.
    until(lambda: count(page) == sum(one["ok"] for one in records_of(results)), "the exact figures")


def assert_agrees(row: list[str], values: list[float]) -> None:
    """Check that the figures of a row equal those of the records, to the digit shown."""
    for cell, share in zip(row, (50, 90, 95, 99, 100), strict=False):
        assert float(cell) == pytest.approx(np.percentile(values, share), abs=0.051), (share, cell)


def downloaded(page: Page, text: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("link", name=text).click()
    return Path(download.value.path()).read_bytes()


@pytest.mark.parametrize(("words", "times"), [((), 1), (("--reset-stats",), 2)])
def test_live_view_restarts_when_locusts_statistics_do(
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


def test_web_ui_under_a_base_path_before_any_test(clips: Path) -> None:
    # No server is needed, as nothing is sent.
    words = ("--host", "http://127.0.0.1:1", "--data", clips, "--web-base-path", "/load")
    with locust(*words, OPENAI_API_KEY=SECRET) as ui:
        page = get(ui.url + "load/").decode()
        assert SECRET not in page
        for script in ("report/echarts.min.js", "report/charts.js", "web/tab.js", "web/form.js"):
            name = Path(script).name
            assert page.count(f"./streaming/{name}") == 1
            assert get(ui.url + f"load/streaming/{name}") == (PACKAGE / script).read_bytes()
        assert page.rstrip().endswith("</html>")
        assert b".asr" in get(ui.url + "load/streaming/page.css")
        points = json.loads(get(ui.url + "load/streaming/points?after=nonsense"))
        assert (points["run"], points["points"], points["words"], points["tiles"]) == ("", [], [], [])
        stats = json.loads(get(ui.url + "load/stats/requests"))
        (streaming,) = stats["extended_stats"]
        assert [row["metric"].split()[0].rstrip(",") for row in streaming["data"]][::2] == [
            "TTFT",
            "ITL",
            "TPOT",
            "E2E",
            "RTF",
        ]
        for path in ("records", "summary", "report", "csv"):
            with pytest.raises(urllib.error.HTTPError, match="409") as refused:
                get(f"{ui.url}load/streaming/{path}")
            assert refused.value.read().strip().endswith(b".")
            refused.value.close()


LOCUSTS = (
    '<html><head></head><body style="background: {back}"><div id="root"></div><script>"</body>"</script></body></html>'
)


def test_section_in_locusts_html_report(chrome: Browser, tmp_path: Path) -> None:
    """It is the first section, occurs once, and follows Locust's theme. Names that look like HTML are text."""
    live = Live(1000.0)
    bad = [failure(number, "</script><b>odd</b>", started_at=1000.0 + number) for number in range(5)]
    records = [record(seq=number) for number in range(5)] + bad
    live.add(records, [each.end for each in records])
    live.close(1010.0)
    info = run_info(model="<i>m</i>", slos=["ttft:p95:100"], stages=[(1003.0, "4 <users>")])
    summary = summarise(records, info)
    report = add_section(LOCUSTS.format(back="#121212"), info, summary, live, summary.validity)
    assert report.index(MARK) < report.index('<div id="root"')
    assert add_section(report, info, summary, live, summary.validity) == report
    page, errors = opened(chrome, tmp_path, report)
    assert errors == []
    assert page.locator("section.asr-report").get_attribute("data-theme") == "dark"
    assert page.locator(".plot svg").count() == 8
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert len(drawn(page, "TTFT")) == 11
    missed, plain = (
        page.locator(f".tile:has(.name:text-is('{name}')) .more").evaluate("it => getComputedStyle(it).color")
        for name in ("TTFT p95", "E2E p95")
    )
    assert missed != plain
    assert sum(value for _, value in drawn(page, "Requests", "</script><b>odd</b>")) == 5
    text = page.locator("section.asr-report").inner_text()
    assert all(word in text for word in ("<i>m</i>", "</script><b>odd</b>", "4 <users>", "limit 100 ms", "Latencies"))
    page.close()


def test_report_page_runs_only_its_own_scripts_and_loads_nothing(chrome: Browser, tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, [record(n) for n in range(8)], run_info()) for name in ("a", "b")]
    runs = [read_finished(folder) for folder in folders]
    report = make_report(runs[0])
    compared = comparison_view(runs[:1], runs[1:])
    comparison = comparison_page(compared, runs[:1], runs[1:])
    for html in (report, comparison):
        page, errors = opened(chrome, tmp_path, html)
        page.wait_for_function(
            "document.querySelectorAll('.plot').length === document.querySelectorAll('.plot svg').length"
        )
        page.evaluate(
            """() => {
                const chart = echarts.getInstanceByDom(document.querySelector(".plot"));
                chart.dispatchAction({ type: "showTip", seriesIndex: 0, dataIndex: 0 });
                const picture = new Image();
                picture.src = chart.getDataURL();
                return picture.decode();
            }"""
        )
        assert errors == []
        page.close()
    evil = "<script>window.own = 1</script><img src='http://127.0.0.1:9/x' onerror='window.own = 1'>"
    page, errors = opened(chrome, tmp_path, report.replace("<h1>", evil + "<h1>", 1))
    assert len([error for error in errors if "Content Security Policy" in error]) >= 2
    assert not page.evaluate("window.own")
    page.close()


def opened(chrome: Browser, folder: Path, html: str) -> tuple[Page, list[str]]:
    """Open a page on a phone-sized screen and wait until it is drawn. Also return its errors."""
    file = folder / "page.html"
    file.write_text(html)
    page = chrome.new_page(viewport={"width": 400, "height": 900}, color_scheme="light")
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("request", lambda one: errors.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
    page.goto(file.as_uri())
    page.locator(".plot svg").first.wait_for()
    return page, errors


def test_charts_of_hours_are_thinned_without_losing_peaks(chrome: Browser, tmp_path: Path) -> None:
    page, _ = opened(chrome, tmp_path, plots_page("p", [Plot("one", "x", "y", [Series("s", [(0.0, 1.0)])])]))
    values = page.evaluate(
        """() => {
            const latency = (value) => ({ p50: value, p95: value, p99: value });
            const points = Array.from({ length: 7200 }, (_, at) => ({
                t: 1000 + at, users: 3, in_flight: 3, successes_per_s: 7, tokens_per_s: null, rtfx: 2,
                failures_per_s: {}, ttft: latency(at === 4321 ? 987 : 100), e2el: latency(1), itl: latency(1),
                rtf: latency(at < 60 ? null : 1),
            }));
            return asrCharts.course(points, 1000).map((plot) => plot.series[0].data.map((row) => row[1]));
        }"""
    )
    page.close()
    ttft, _, _, rtf, *_ = values
    assert len(ttft) == 600
    assert (max(ttft), min(ttft)) == (987, 100)
    assert rtf[:6] == [None] * 5 + [1]
