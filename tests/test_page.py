"""report.html: the contents of the page, for runs of every kind."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from asr_load.report.page import make_report
from asr_load.report.plots import fit
from asr_load.report.tables import latencies
from asr_load.results.summary import Finished, summarise
from asr_load.stream.record import Record
from harness.records import failure, record, run_info, worker_info

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
