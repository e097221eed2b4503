"""report.html: the contents of the page, for runs of every kind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from asr_load.errors import InputError
from asr_load.report.main import main
from asr_load.report.page import make_report
from asr_load.report.plots import distributions, fit, waterfall
from asr_load.report.tables import latencies
from asr_load.report.transcripts import errors_of, worst
from asr_load.results.course import course, in_flight_at_start, width_for
from asr_load.results.record_file import RECORDS
from asr_load.results.summary import Finished, read_finished, summarise
from asr_load.stream.record import Record
from harness.records import failure, record, run_folder, run_info, worker_info

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
    assert course_of["places"] == [{"name": MARKUP, "at": 0.5}]


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
    assert places == [{"name": "worker 1 lost", "at": 2.0}]


def test_course_has_one_point_per_slice() -> None:
    records = [record(0), record(1), failure(2, "http_503", ended_at=1002.5), record(4, text="")]
    info = run_info(users=[(999.0, 3), (1002.0, 5)])
    points = course(records, info, 1)
    # The rest after whole seconds, if shorter than half a second, belongs to the last point.
    assert [point["successes_per_s"] for point in points] == [1.0, 1.0, 0.0, pytest.approx(1 / 1.41)]
    assert points[2]["failures_per_s"] == {"http_503": 1.0}
    assert points[0]["ttft"] == {"p50": 200.0, "p95": 200.0, "p99": 200.0}
    assert points[2]["ttft"]["p50"] is None
    assert [point["users"] for point in points][:3] == [3, 5, 5]
    # A request of 0.41 s in one second, and a failed one of 0.5 s.
    assert [round(point["in_flight"], 2) for point in points][:3] == [0.41, 0.41, 0.5]
    assert course([], info, 1) == []
    assert width_for(3600, 300) == 15


def test_requests_in_flight_at_each_start() -> None:
    records = [record(n, started_at=1000.0 + n / 10, stream_end=0.25) for n in range(4)]
    assert in_flight_at_start(records).tolist() == [1, 2, 3, 3]


def test_fit_of_latency_against_audio_length() -> None:
    records = [record(n, audio_s=float(n), ttft=0.1 + 0.02 * n) for n in range(1, 9)]
    found = fit("ttft", records)
    assert found is not None
    assert found.fixed_s == pytest.approx(0.1)
    assert found.per_audio_s == pytest.approx(0.02)
    assert fit("ttft", [record(n) for n in range(8)]) is None


def test_fit_finds_no_cost_of_audio_in_noise() -> None:
    """Noise gives no cost in nearly all runs, and never a negative one. A real cost is found."""
    costs = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        audio = random.uniform(1, 30, 120)
        noise = random.uniform(0.4, 1.0, 120)
        found = fit("ttft", [record(n, audio_s=a, ttft=y) for n, (a, y) in enumerate(zip(audio, noise, strict=True))])
        assert found is not None
        costs.append(found.per_audio_s)
        real = fit(
            "ttft", [record(n, audio_s=a, ttft=y + a / 50) for n, (a, y) in enumerate(zip(audio, noise, strict=True))]
        )
        assert real is not None
        assert real.per_audio_s == pytest.approx(0.02, abs=0.01)
    assert costs.count(None) >= 196
    assert all(cost is None or cost > 0 for cost in costs)


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


def test_waterfall_shows_fastest_median_and_slowest_request() -> None:
    records = [record(n, e2el=0.2 + 0.1 * n, itl=[0.1] * n, ttft=0.2) for n in range(5)]
    plot = waterfall(records)
    assert plot is not None
    assert plot.rows == ["fastest: clip0", "median: clip2", "slowest: clip4"]
    upload, wait, answer, chunks = plot.series
    assert list(upload.data) == [(0.0, 1.0, 0), (0.0, 1.0, 1), (0.0, 1.0, 2)]
    assert list(wait.data)[2] == (1.0, 200.0, 2)
    assert list(answer.data)[2] == (200.0, 600.0, 2)
    assert [row for _, row in chunks.data] == [0, 1, 1, 1, 2, 2, 2, 2, 2]


def test_distribution_spans_minimum_to_maximum() -> None:
    records = [record(n, ttft=0.1 * (n + 1)) for n in range(10)]
    ttft = distributions(records, ["ttft:p95:500"])[0]
    (series,) = ttft.series
    assert (series.data[0], series.data[-1]) == ((100.0, 0.0), (1000.0, 100.0))
    assert [mark.at for mark in ttft.places] == [500.0]


def test_errors_are_split_by_kind_and_capped_for_loops() -> None:
    looping = record(1, reference="a b", text="x " * 200)
    records = [record(0, reference="red green blue black", text="red grey black white"), looping]
    info = run_info()
    found = errors_of(records[:1], info.scoring)
    assert found.words.errors == found.words.substitutions + found.words.deletions + found.words.insertions == 3
    assert found.capped is None
    both = errors_of(records, info.scoring)
    assert both.capped == pytest.approx((3 + 2) / 6)
    assert both.words.errors / both.words.units > 10
    first, second = worst(records, info.scoring, "wer")
    assert (first.clip, second.clip) == ("clip1", "clip0")
    assert first.cut
    assert [piece.kind for piece in second.pieces if piece.kind != "equal"]
    assert " ".join(piece.reference for piece in second.pieces).split() == ["red", "green", "blue", "black"]


def test_report_command_writes_pages_with_slices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [run_folder(tmp_path / name, [record(n) for n in range(5)], run_info()) for name in ("a", "b")]
    monkeypatch.setattr("sys.argv", ["report.py", *map(str, folders), "--slice", "2s"])
    assert main() == 0
    assert capsys.readouterr().out.count("=== ASR Benchmark Summary ===") == 2
    page = (folders[1] / "report.html").read_text()
    assert "2 to 4" in page
    again = main()
    assert again == 0
    assert (folders[1] / "report.html").read_text() == page
    monkeypatch.setattr("sys.argv", ["report.py", str(folders[0]), "--slice", "soon"])
    assert main() == 2
    assert "--slice must be a time such as 60s" in capsys.readouterr().err


def test_truncated_records_file_is_read_and_a_broken_one_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", [record(n) for n in range(5)], run_info())
    lines = (folder / RECORDS).read_bytes()
    (folder / RECORDS).write_bytes(lines[:-20])
    finished = read_finished(folder)
    assert finished.summary.requests.total == 4
    assert "By outcome" in make_report(finished)
    (folder / RECORDS).write_bytes(lines[:50] + b"\n" + lines)
    assert read_finished(folder).summary.requests.total == 5
    (folder / RECORDS).write_bytes(lines[:50] + b"\n")
    with pytest.raises(InputError, match="line 1: not a record"):
        read_finished(folder)


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
