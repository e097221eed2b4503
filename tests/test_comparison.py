"""The comparison of two sides, as printed and as a page."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from asr_load.report.comparison import markdown, print_comparison
from asr_load.report.main import main
from asr_load.report.page import comparison_page
from asr_load.results.compare import (
    compare,
)
from asr_load.stream.record import Record
from harness.comparisons import made, run
from harness.records import record, run_folder, run_info, worker_info


def folder_of(folder: Path, records: list[Record]) -> str:
    """Write the files of a run; return the path of the folder."""
    return str(run_folder(folder, records, run_info(workers=[worker_info(ended_at=1061.0)])))


@pytest.mark.parametrize("warnings", [0, 1, 3])
def test_comparison_table_is_printed_once_with_any_number_of_warnings(warnings: int) -> None:
    found = compare([run(made(1))], [run(made(2))])
    found.warnings = [f"warning {number}" for number in range(warnings)]
    out = io.StringIO()
    print_comparison(found, out)
    assert out.getvalue().count("95 % interval") == 1
    assert out.getvalue().count("ttft_p95, ms") == 1
    assert [f"  - warning {number}" in out.getvalue() for number in range(warnings)] == [True] * warnings
    assert markdown(found).count("| ttft_p95, ms |") == 1
    assert comparison_page(found, [run(made(1))], [run(made(2))]).count(">ttft_p95, ms<") == 1


@pytest.mark.parametrize("warnings", [0, 1, 3])
def test_report_prints_one_comparison_table_for_several_runs(
    warnings: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run without warm-up gives one warning."""
    folders = []
    for number in range(4):
        records = made(number, count=200)
        records[0].warmup = number >= warnings
        folders.append(folder_of(tmp_path / str(number), records))
    monkeypatch.setattr("sys.argv", ["report.py", *folders[:2], "--baseline", *folders[2:]])
    assert main() == 0
    out = capsys.readouterr().out
    assert len(json.loads((tmp_path / "0" / "comparison.json").read_text())["warnings"]) == warnings
    assert out.count("95 % interval") == 1
    assert out.count("ttft_p95, ms") == 1


def test_runs_without_a_common_figure_print_an_empty_comparison() -> None:
    found = compare([run([])], [run([])])
    found.figures = []
    out = io.StringIO()
    print_comparison(found, out)
    assert "0 of 0 figures" in out.getvalue()


def test_report_with_baseline_prints_and_writes_the_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, records in (("a", made(1, scale=1.2)), ("b", made(2))):
        folder_of(tmp_path / name, records)
    command = ["report.py", str(tmp_path / "a"), "--baseline", str(tmp_path / "b")]
    monkeypatch.setattr("sys.argv", [*command, "--export", "markdown"])
    assert main() == 0
    out = capsys.readouterr().out
    assert "=== Comparison ===" in out
    assert "ttft_mean, ms" in out
    written = json.loads((tmp_path / "a" / "comparison.json").read_text())
    assert written["format"] == 1
    assert {"name", "unit", "baseline", "value", "difference", "low", "high", "relative", "word"} == set(
        written["figures"][0]
    )
    assert "worse" in (tmp_path / "a" / "comparison.html").read_text()
    assert "| ttft_mean, ms |" in (tmp_path / "a" / "comparison.md").read_text()
    monkeypatch.setattr("sys.argv", [*command, "--fail-on", "ttft:p95:1%"])
    assert main() == 1
    first = (tmp_path / "a" / "comparison.json").read_bytes()
    monkeypatch.setattr("sys.argv", [*command, "--fail-on", "ttft:p95:50%"])
    assert main() == 0
    assert (tmp_path / "a" / "comparison.json").read_bytes() == first
    for words in (["--min-change", "lots"], ["--fail-on", "ttft"]):
        monkeypatch.setattr("sys.argv", [*command, *words])
        assert main() == 2
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path / "a"), "--fail-on", "ttft:p95:1%"])
    assert main() == 2
    assert "--baseline" in capsys.readouterr().err


def test_comparison_page_plots_each_metric_of_both_sides() -> None:
    """Responses in one piece have no gaps between chunks."""
    whole = [record(n, itl=[], chunks=1, e2el=0.2, stream_end=0.21) for n in range(20)]
    sides = run([record(n) for n in range(20)]), run(whole)
    page = comparison_page(compare([sides[0]], [sides[1]]), [sides[0]], [sides[1]])
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', page)
    assert found is not None
    ends = {plot["title"]: [one["data"][-1][0] for one in plot["series"]] for plot in json.loads(found[1])["plots"]}
    assert ends == {"TTFT: share of values up to x": [200, 200], "E2E: share of values up to x": [400, 200]}
