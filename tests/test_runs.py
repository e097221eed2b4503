"""The runs of a results folder: `asr-load list`, `asr-load compare` and index.html."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asr_load.cli import compare_runs, list_runs
from asr_load.errors import InputError
from asr_load.files import alone_in
from asr_load.report import main as report
from asr_load.report import runs
from asr_load.report.runs import INDEX, find_run, index_page, listed_runs, update_index, write_index
from asr_load.report.sentence import sentence
from asr_load.report.view import view_finished
from asr_load.results.capacity import write_capacity
from asr_load.results.summary import read_finished, summarise_folder, write_summary
from harness.browser import browser, chromium
from harness.records import failure, record, run_folder, run_info
from harness.searches import search_of


def add_run(results: Path, name: str, began_at: float, ttft: float = 0.2, **changes: Any) -> Path:
    """A finished run of 30 requests and a failure."""
    results.mkdir(exist_ok=True)
    records = [*(record(n, ttft=ttft, e2el=ttft + 0.2) for n in range(30)), failure(30, "http_503")]
    folder = run_folder(results / name, records, run_info(began_at=began_at, num_users=4, **changes))
    summarise_folder(folder)
    return folder


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """results/ in the current folder, with three runs; their names are not in the order of time."""
    monkeypatch.chdir(tmp_path)
    for name, began_at in (("b", 1000.0), ("c", 3000.0), ("a", 2000.0)):
        add_run(Path("results"), name, began_at, slos=["ttft:p95:500"])
    return Path("results")


def call(main: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["asr-load", *words])
    code: int = main()
    return code


def test_runs_are_listed_newest_first_with_the_sentence_of_their_records(results: Path) -> None:
    listed = listed_runs(results)
    assert [run.folder.name for run in listed] == ["c", "a", "b"]
    for run in listed:
        finished = read_finished(run.folder)
        assert run.text == sentence(finished.info, view_finished(finished.summary))
        assert "(limit 500 ms: met), errors 3.2%" in run.text
        assert run.finished


def test_unfinished_and_unreadable_runs_do_not_stop_the_list(results: Path) -> None:
    run_folder(results / "unfinished", [record(1)], run_info(began_at=4000.0, ended=False))
    (results / "loop").mkdir()
    (results / "loop" / "run.json").symlink_to("run.json")
    for name in ("no-json", "other-rate", "control"):
        shutil.copytree(results / "a", results / name)
    (results / "no-json" / "run.json").write_text("{")
    for name, file, field in (("other-rate", "summary.json", "rate"), ("control", "summary.json", "wall_s")):
        path = results / name / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: "\x1b[31m"}))
    (results / "bench").mkdir()
    (results / "notes.txt").touch()
    found = {run.folder.name: run for run in listed_runs(results)}
    assert found.keys() == {"a", "b", "c", "unfinished", "loop", "no-json", "other-rate", "control"}
    assert found["unfinished"].text == (
        "Unfinished: it is still running, or it was killed."
        " asr-load report results/unfinished computes its figures so far."
    )
    for name in ("loop", "no-json", "other-rate", "control"):
        assert found[name].text.startswith("Unreadable: "), name
        assert found[name].text.isprintable()
    assert [run.finished for run in found.values()].count(True) == 3


def test_stopped_search_says_how_to_continue(results: Path) -> None:
    for name, changes in (("answered", {}), ("stopped", {"answer": None})):
        folder = add_run(results, name, 500.0, shape="capacity", slos=["ttft:p95:500"])
        write_capacity(folder, search_of({4: 1.0, 8: 2.0, 16: 2.0}, **changes))
        write_summary(folder, read_finished(folder))
    unfinished = run_folder(results / "unfinished", [record(1)], run_info(ended=False))
    write_capacity(unfinished, search_of({4: 1.0}, answer=None))
    found = {run.folder.name: run.text for run in listed_runs(results)}
    assert found["unfinished"].endswith(" --resume results/unfinished continues the search.")
    assert found["answered"].startswith("Maximum effective streams: 8, with TTFT p95 at most 500 ms.")
    assert found["stopped"].startswith(
        "The search stopped after 3 steps, before its answer. Continue it with --resume "
    )


def test_list_prints_names_for_compare_and_writes_the_page(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(results / "unfinished", [record(1)], run_info(began_at=2500.0, ended=False))
    assert call(list_runs.main, monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:-1:2]] == [["last", "c"], ["unfinished"], ["last-1", "a"], ["last-2", "b"]]
    assert lines[1].strip().startswith("Held 4 streams for ")
    assert lines[-1] == "Page: results/index.html"
    assert (results / INDEX).is_file()


def test_list_refuses_what_is_no_folder_of_runs(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for word, error in (("nowhere", "is not a folder of runs"), ("results/a", "is one run")):
        with pytest.raises(InputError, match=error):
            call(list_runs.main, monkeypatch, word)
    (results / "empty").mkdir()
    assert call(list_runs.main, monkeypatch, "results/empty") == 0
    assert capsys.readouterr().out == "results/empty holds no runs\n"
    assert not list((results / "empty").iterdir())


def test_run_is_found_by_path_name_and_place(results: Path, tmp_path: Path) -> None:
    run_folder(results / "unfinished", [record(1)], run_info(began_at=4000.0, ended=False))
    elsewhere = add_run(tmp_path, "elsewhere", 9000.0)
    for name, folder in (
        ("last", results / "c"),
        ("last-0", results / "c"),
        ("last-2", results / "b"),
        ("a", results / "a"),
        ("results/a", results / "a"),
        ("unfinished", results / "unfinished"),
        (str(elsewhere), elsewhere),
    ):
        assert find_run(name) == folder
    for name, error in (("last-3", "last-3: results/ has 3 finished runs"), ("d", "d is neither a results folder")):
        with pytest.raises(InputError, match=error):
            find_run(name)


@pytest.mark.parametrize("words", [("last", "last-1"), ("last-1", "last"), ("a", "results/c")])
def test_compare_takes_the_older_run_as_the_baseline(
    words: tuple[str, str], results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(compare_runs.main, monkeypatch, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Comparing results/c with the baseline results/a, which is the older run"
    assert lines[-1] == "Comparison: results/c/comparison.html"
    sides = json.loads((results / "c" / "comparison.json").read_text())["runs"]
    assert sides == {"value": ["results/c"], "baseline": ["results/a"]}
    assert '<a href="./c/comparison.html">comparison with a</a>' in (results / INDEX).read_text()


def test_compare_has_the_gates_of_report(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(results, "slow", 9000.0, ttft=0.4)
    for gates, code in (((), 0), (("--fail-on", "ttft:p50:10%", "--fail-on", "wer:mean:0.5"), 1)):
        assert call(compare_runs.main, monkeypatch, "last", "last-1", *gates) == code
    capsys.readouterr()
    assert (
        call(compare_runs.main, monkeypatch, "last", "last-1", "--min-change", "99%", "--fail-on", "ttft:p50:150%") == 0
    )
    with pytest.raises(InputError, match="--min-change must be a share"):
        call(compare_runs.main, monkeypatch, "last", "last-1", "--min-change", "some")
    with pytest.raises(InputError, match="last and slow are the same run"):
        call(compare_runs.main, monkeypatch, "last", "slow")


def test_page_escapes_names_and_texts(results: Path) -> None:
    add_run(results, "<b>'\"&\x1b", 4000.0, slos=["ttft:p95:500"])
    (results / "<img src=x onerror=alert(1)>").mkdir()
    (results / "<img src=x onerror=alert(1)>" / "run.json").write_text("{")
    page = index_page(results)
    assert "<b>" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert "&lt;b&gt;&#39;&#34;&amp;\\x1b" in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src &#39;none&#39;; script-src &#39;sha256-")


def test_names_that_are_no_text_are_listed_and_not_selectable(results: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    add_run(results, name, 4000.0)
    (results / name / "report.html").touch()
    page = index_page(results)
    assert r'data-name="\udcff\udcfe" data-word=""' in page
    assert 'href="./%FF%FE/report.html"' in page


def test_full_disk_does_not_stop_the_list(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(path: Path, _: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(runs, "write_atomically", fails)
    assert call(list_runs.main, monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[-1] == f"The page was not written: {results / INDEX}: No space left on device"
    assert call(report.main, monkeypatch, "results/a") == 0
    assert "index.html was not written: No space left on device" in capsys.readouterr().err


def test_page_has_a_limited_number_of_runs(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for at, name in enumerate("bac"):  # the time at which run.json was written decides
        os.utime(results / name / "run.json", (at, at))
    monkeypatch.setattr(runs, "MOST_RUNS", 2)
    page = index_page(results)
    assert re.findall(r'data-name="(\w)"', page) == ["c", "a"]
    assert "1 older run is not on this page" in page


def test_page_is_written_in_results_and_where_it_was_requested(results: Path, tmp_path: Path) -> None:
    update_index(results)
    assert (results / INDEX).is_file()
    elsewhere = tmp_path / "elsewhere"
    add_run(elsewhere, "r", 1000.0)
    update_index(elsewhere)
    assert not (elsewhere / INDEX).exists()
    assert write_index(elsewhere) == elsewhere / INDEX
    add_run(elsewhere, "s", 2000.0)
    update_index(elsewhere)
    assert 'data-name="s"' in (elsewhere / INDEX).read_text()
    # The names of these runs would be looked up in results/, so the page shows paths.
    assert f'data-word="{elsewhere.resolve()}/s"' in (elsewhere / INDEX).read_text()


def test_page_of_somebody_else_is_kept(results: Path) -> None:
    (results / INDEX).write_text("mine")
    update_index(results)
    assert write_index(results) is None
    assert (results / INDEX).read_text() == "mine"


def test_page_is_written_although_another_writer_hangs(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "TURN_S", 0.001)
    with alone_in(results):
        assert write_index(results) == results / INDEX


@pytest.mark.long
@pytest.mark.skipif(chromium() is None, reason="needs Chromium")
def test_two_selected_runs_show_the_command_that_compares_them(results: Path) -> None:
    add_run(results, "with space", 4000.0)
    comparison = {"runs": {"value": ["results/c"], "baseline": ["results/a"]}}
    (results / "c" / "comparison.json").write_bytes(msgspec.json.encode(comparison))
    (results / "c" / "comparison.html").write_text("compared")
    write_index(results)
    with browser() as chrome:
        page = chrome.new_page()
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text))
        page.goto((results / INDEX).resolve().as_uri())
        bar = page.locator(".compare")
        box = {name: page.locator(f'[data-name="{name}"]') for name in ("a", "c", "with space")}
        box["a"].check()
        assert not bar.is_visible()
        box["c"].check()
        assert bar.locator("code").inner_text() == "asr-load compare a c"
        link = bar.locator("a")
        assert link.get_attribute("href") == "./c/comparison.html"
        box["with space"].check()
        assert bar.locator("code").inner_text() == "asr-load compare c 'with space'"
        assert not box["a"].is_checked()
        assert not link.is_visible()
        bar.locator("button").click()
        assert bar.locator("button").inner_text() in ("Copied", "Selected")
        box["c"].uncheck()
        assert not bar.is_visible()
        assert errors == []
