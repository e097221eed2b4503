"""The comparison of two sides, as printed and as a page."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from asr_load.report.comparison import (
    SHARES,
    comparison_table,
    comparison_view,
    forest,
    markdown,
    print_comparison,
    title_of,
)
from asr_load.report.main import main
from asr_load.report.page import comparison_page
from asr_load.results.compare import point_figures
from asr_load.results.summary import Finished
from asr_load.stream.record import Record
from harness.comparisons import made, run
from harness.records import failure, health, record, run_folder, run_info, worker_info


def folder_of(folder: Path, records: list[Record]) -> str:
    """Write the files of a run; return the path of the folder."""
    return str(run_folder(folder, records, run_info(workers=[worker_info(ended_at=1061.0)])))


def headings(text: str) -> int:
    """Number of lines that are the headings of a comparison's table."""
    return sum("95 % interval" in line and "relative" in line for line in text.splitlines())


@pytest.mark.parametrize("warnings", [0, 1, 3])
def test_comparison_table_is_printed_once_with_any_number_of_warnings(warnings: int) -> None:
    found = comparison_view([run(made(1))], [run(made(2))])
    found.comparison.warnings = [f"warning {number}" for number in range(warnings)]
    out = io.StringIO()
    print_comparison(found, out)
    assert headings(out.getvalue()) == 1
    assert out.getvalue().count("TTFT p95, ms") == 1
    assert [f"  - warning {number}" in out.getvalue() for number in range(warnings)] == [True] * warnings
    assert markdown(found).count("| TTFT p95, ms |") == 1
    assert comparison_page(found, [run(made(1))], [run(made(2))]).count('<td class="name">TTFT p95, ms<') == 1


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
    assert headings(out) == 1
    assert out.count("TTFT p95, ms") == 1


def test_runs_without_a_common_figure_print_an_empty_comparison() -> None:
    found = comparison_view([run([])], [run([])])
    found.comparison.figures = []
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
    assert "TTFT mean, ms" in out
    written = json.loads((tmp_path / "a" / "comparison.json").read_text())
    assert written["format"] == 1
    assert {"name", "unit", "baseline", "value", "difference", "low", "high", "relative", "word"} == set(
        written["figures"][0]
    )
    assert "worse" in (tmp_path / "a" / "comparison.html").read_text()
    assert "| TTFT mean, ms |" in (tmp_path / "a" / "comparison.md").read_text()
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
    page = comparison_page(comparison_view([sides[0]], [sides[1]]), [sides[0]], [sides[1]])
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', page)
    assert found is not None
    ends = {plot["title"]: [one["data"][-1][0] for one in plot["series"]] for plot in json.loads(found[1])["plots"]}
    assert ends == {"TTFT: share of values up to x": [200, 200], "E2E: share of values up to x": [200, 400]}


def failing(share: float) -> list[Record]:
    """600 requests, of which a share fails, spread over the run."""
    return [
        failure(n, "http_503", clip=one.clip, started_at=one.started_at, ended_at=one.end)
        if n % round(1 / share) == 0
        else one
        for n, one in enumerate(made(1))
    ]


@pytest.mark.parametrize(
    ("value", "start", "end"),
    [
        (
            made(1),
            "No difference shown between A and B: TTFT p95 ",
            " ms; errors unchanged; WER unchanged.",
        ),
        (made(1, scale=1.2), "B is slower: TTFT p95 +", "; errors unchanged; WER unchanged."),
        (made(1, scale=0.8), "B is faster: TTFT p95 -", "; errors unchanged; WER unchanged."),
        (made(1, scale=1.2, word="sad"), "B is slower and less accurate: TTFT p95 +", " points."),
        (failing(0.1), "B fails more often: TTFT p95 ", "; WER unchanged."),
    ],
    ids=["same", "slower", "faster", "less accurate", "failing"],
)
def test_sentence_names_the_better_side_and_the_differences(value: list[Record], start: str, end: str) -> None:
    text = comparison_view([run(value)], [run(made(2))]).sentence
    assert text.startswith(start)
    assert text.endswith(end)
    assert ", 95 % interval " in text


def test_sentence_has_difference_share_and_interval_of_the_file() -> None:
    view = comparison_view([run(made(1, scale=1.2))], [run(made(2))])
    p95 = next(figure for figure in view.figures if figure.name == "ttft_p95")
    assert None not in (p95.difference, p95.relative, p95.low, p95.high)
    share = f"{p95.relative:+.0%}"
    interval = f"{p95.low:.0f} to {p95.high:.0f} ms"
    assert f": TTFT p95 {p95.difference:+.0f} ms ({share}), 95 % interval {interval}; errors unchanged" in view.sentence


def test_sentence_of_opposite_differences_names_the_metrics() -> None:
    fast_start = [
        record(n, clip=one.clip, started_at=one.started_at, ttft=(one.ttft or 0) / 2, e2el=(one.ttft or 0) / 2 + 0.8)
        for n, one in enumerate(made(1))
    ]
    text = comparison_view([run(fast_start)], [run(made(2))]).sentence
    assert text.startswith("B is faster in TTFT and slower in E2E: TTFT p95 -")
    assert "; E2E p95 +" in text


@pytest.mark.parametrize(
    ("slow", "end"),
    [
        ({"value": 1.0}, "Do not rely on this: the figures of B are client-bound."),
        ({"baseline": 0.02}, "Do not rely on this: the figures of A are suspect."),
        (
            {"value": 0.02, "baseline": 1.0},
            "Do not rely on this: the figures of A are client-bound and the figures of B are suspect.",
        ),
    ],
)
def test_figures_that_are_not_trusted_have_no_colour(slow: dict[str, float], end: str) -> None:
    """The event loop of the load generator was late on one side or both."""

    def side(name: str, records: list[Record]) -> Finished:
        lag = slow.get(name, 0.0)
        late = health(loop_lag_p99=lag, stamp_lag_p99=lag, loop_lag_max=lag, stamp_lag_max=lag) if lag else health()
        return Finished(run_info(workers=[worker_info(ended_at=1061.0, health=late)]), records, folder=Path(name))

    sides = [side("value", made(1, scale=1.2))], [side("baseline", made(2))]
    view = comparison_view(*sides)
    assert view.sentence.startswith("B looks slower: ")
    assert view.sentence.endswith(end)
    body = comparison_page(view, *sides)
    body = body[body.index("<body") : body.index("<script")]
    assert not re.search(r'class="[^"]*\b(better|worse)\b', body)
    assert ">worse</td>" in body  # what the file says
    trusted = [run(made(1, scale=1.2))], [run(made(2))]
    assert re.search(r'class="dot worse"', comparison_page(comparison_view(*trusted), *trusted))


def test_comparison_shows_the_sentences_of_both_sides() -> None:
    sides = [run(made(1), "new")], [run(made(2), "old")]
    view, out = comparison_view(*sides), io.StringIO()
    print_comparison(view, out)
    assert out.getvalue().splitlines()[1] == view.sentence
    for name, folder in (("A", "old"), ("B", "new")):
        (one,) = view.sides[name]
        assert one.sentence.startswith("Held 1 stream for 61 s: TTFT p95 ")
        assert f"{name} ({folder}): {one.sentence}\n" in out.getvalue()
        assert f"<dd>{folder}: {one.sentence}</dd>".replace("'", "&#39;") in comparison_page(view, *sides)


def test_figures_have_the_titles_and_units_of_all_pages() -> None:
    view = comparison_view([run(failing(0.1))], [run(made(2))])
    rows = {row[0]: row for row in comparison_table(view).rows}
    assert {"TTFT p95, ms", "E2E mean, ms", "RTF p50", "RTFx", "Requests/s", "Tokens/s", "Errors", "WER", "CER"} <= set(
        rows
    )
    assert rows["Errors"][1:4] == ("0.0%", "10.0%", "+10.0 points")
    assert rows["WER"][1:4] == ("0.0%", "0.0%", "+0.0 points")


def test_forest_plot_has_every_difference_on_one_axis() -> None:
    view = comparison_view([run(failing(0.1))], [run(made(2))])
    found = forest(view)
    assert len(found.rows) == len(view.figures)
    assert [at for at, _ in found.ticks] == [0, 25, 50, 75, 100]
    end = float(found.ticks[-1][1].rstrip("%")) / 100
    for row, figure in zip(found.rows, view.figures, strict=True):
        base = figure.baseline or 1.0  # the baseline has no failure and no wrong word: in points
        assert (figure.baseline == 0) == (figure.name in SHARES)
        assert row.at == pytest.approx(50 + 50 * (figure.difference or 0.0) / base / end)
        if figure.low is not None:
            assert row.low == pytest.approx(max(50 + 50 * figure.low / base / end, 0))
            assert row.beyond[0] == (figure.low / base < -end)


def test_titles_of_all_figures() -> None:
    finished = run(made(1))
    assert all(title_of(name) for name in point_figures(finished))
    assert [title_of(f"{name}_p95") for name in ("ttfs", "rtf_live", "done_latency")] == [
        "TTFS p95", "RTF live p95", "Done p95",
    ]  # fmt: skip
