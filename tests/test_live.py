"""The live view agrees with the records that it receives."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from asr_load.report.headline import Tile, tiles
from asr_load.report.view import view_running
from asr_load.results.accuracy import Sample
from asr_load.results.course import course
from asr_load.results.judge_slos import judge_slos
from asr_load.results.live import REALTIME_DRAWN, Histogram, Live
from asr_load.results.normalizers import Scoring
from asr_load.results.slo import Goodput, parse_slos
from asr_load.results.verdict import judge_clients
from asr_load.stream.record import RealtimeRecord, Record
from harness.records import failure, record, run_info


@pytest.mark.parametrize("spread", [0.1, 1.0, 2.5])
def test_histogram_percentiles_are_accurate_to_a_quarter_percent(spread: float) -> None:
    values = np.random.default_rng(0).lognormal(3, spread, 20_000)
    histogram = Histogram()
    histogram.add(values)
    exact = np.percentile(values, [50, 90, 95, 99], method="inverted_cdf")
    for found, right in zip(histogram.percentiles([50, 90, 95, 99]), exact, strict=True):
        assert found == pytest.approx(right, rel=0.0026)
    assert (histogram.n, histogram.max) == (20_000, values.max())


def fed(live: Live, *records: Record) -> None:
    live.add(records, [one.end for one in records])


def shown_in(live: Live, slos: list[str]) -> dict[str, Tile]:
    """The tiles of a running test, by name."""
    view = view_running(live, parse_slos(slos), judge_clients([]), None)
    return {tile.name: tile for tile in tiles(view)}


def test_live_table_is_empty_before_the_first_second() -> None:
    assert {spread.n for row in Live(0.0).table().values() for spread in row} == {0}


def test_live_table_has_the_last_10_seconds_and_the_run() -> None:
    live = Live(1000.0)
    for second in range(15):
        fed(live, record(second, ttft=0.1 if second < 5 else 0.3, e2el=0.5))
        live.tick(1001.0 + second, users=second, in_flight=2, complete_until=1001.0 + second)
    rows = live.table()
    assert list(rows)[:2] == ["ttft", "itl"]
    recent, whole = rows["ttft"]
    assert (recent.n, whole.n) == (10, 15)
    assert recent.p50 == pytest.approx(300)
    assert whole.p50 == pytest.approx(300, rel=0.003)
    assert rows["itl"][1].n == 30
    assert rows["rtf"][1].max == 0.25


def test_live_view_has_one_point_per_second() -> None:
    live = Live(1000.0)
    fed(live, record(0), failure(0, "http_503", ttft=9.0))
    live.tick(1000.5, users=3, in_flight=2, complete_until=1000.5)
    assert live.points() == []
    live.tick(1001.5, users=4, in_flight=2, complete_until=1001.5)
    live.tick(1002.0, users=4, in_flight=2, complete_until=1002.0)
    first, second = live.points()
    assert (first["t"], second["t"]) == (1001.0, 1002.0)
    assert first["ttft"] == {"p50": 200.0, "p95": 200.0, "p99": 200.0}
    assert first["itl"]["p50"] == pytest.approx(100.0)
    assert (first["users"], first["in_flight"], first["successes_per_s"]) == (3, 2, 1)
    assert (first["tokens_per_s"], first["rtfx"]) == (3.0, 2.0)
    assert first["failures_per_s"] == {"http_503": 1}
    assert second["ttft"] == {"p50": None, "p95": None, "p99": None}
    assert (second["users"], second["tokens_per_s"]) == (4, 0.0)
    assert live.points(after=1001.0) == [second]
    assert (live.requests, dict(live.failures)) == (2, {"http_503": 1})


def test_second_is_drawn_when_all_workers_have_reported_past_it() -> None:
    live = Live(1000.0)
    for now in range(1, 7):
        # Every three seconds, a report covers everything since the last one.
        if now % 3 == 0:
            fed(live, *(record(second) for second in range(now - 3, now)))
        live.tick(1000.0 + now, users=2, in_flight=2, complete_until=1000.0 + now // 3 * 3)
        assert len(live.points()) == now // 3 * 3
    assert [point["tokens_per_s"] for point in live.points()] == [3.0] * 6


def test_late_record_is_added_to_its_drawn_second() -> None:
    live = Live(1000.0)
    live.tick(1003.0, users=1, in_flight=2, complete_until=1003.0)
    fed(live, record(1), failure(2, "cut"))
    fed(live, record(-5))  # before the view was reset
    assert [point["tokens_per_s"] for point in live.points()] == [0.0, 3.0, 0.0]
    assert [point["failures_per_s"] for point in live.points()] == [{}, {}, {"cut": 1}]


def test_live_tokens_are_unknown_without_usage() -> None:
    live = Live(1000.0)
    fed(live, record(0, output_tokens_source="chunks"), record(1))
    live.close(1001.5)
    assert [point["tokens_per_s"] for point in live.points()] == [None, 3.0]


def test_goodput_and_the_error_limit_are_shown_live() -> None:
    live = Live(1000.0, goodput=Goodput("ttft:250"))
    fed(
        live,
        record(0),
        record(0, ttft=0.3, e2el=0.5),
        record(0, ttft=0.25, e2el=0.45),
        failure(0, "http_503", ttft=0.1),
    )
    live.tick(1002.0, users=1, in_flight=0, complete_until=1002.0)
    fed(live, record(1))  # for a second that is already drawn
    assert [point["goodput_per_s"] for point in live.points()] == [2.0, 1.0]
    shown = shown_in(live, ["errors:rate:0.1"])
    assert (shown["Goodput"].value, shown["Goodput"].unit) == ("1.50", "requests/s")
    assert shown["Errors"][1:] == ("20.0%", "", "limit 10.0%, missed", "bad")
    assert len(shown) == 5


def test_tile_compares_the_whole_test_with_the_limit() -> None:
    slos = ["ttft:p95:200", "ttft:max:350", "e2el:mean:600", "lag:p50:5", "tpot:p95:1000"]
    live = Live(1000.0, slos=parse_slos(slos))
    for second in range(30):
        fed(live, record(second, ttft=0.3 if second < 20 else 0.1, e2el=0.5, lag=0.01, output_tokens=1))
        live.tick(1001.0 + second, users=1, in_flight=0, complete_until=1001.0 + second)
    shown = shown_in(live, slos)
    assert shown["TTFT p95"][1:] == ("100.0", "ms", "limit 200 ms, missed; whole test 300 ms", "bad")
    assert shown["TTFT max"][1:] == ("100.0", "ms", "limit 350 ms; whole test 300 ms", "good")
    assert shown["E2E mean, whole test"][1:] == ("500 ms", "", "limit 600 ms", "good")
    assert shown["Sent after due p50, whole test"][3:] == ("limit 5 ms, missed", "bad")
    assert shown["TPOT p95"][1:] == ("n/a", "ms", "limit 1000 ms, not judged yet", "")  # no response had two tokens


@pytest.mark.parametrize(
    ("slo", "value"),
    [("ttft:p90:1", 200), ("itl:mean:1", 100), ("e2el:max:1", 400), ("rtf:p50:1", 0.2), ("errors:rate:0", 0.2)],
)
def test_live_slo_results_equal_those_of_the_records(slo: str, value: float) -> None:
    live = Live(1000.0, slos=parse_slos([slo]))
    assert live.slo_results(parse_slos([slo])) == []  # nothing to judge yet
    fed(live, *(record(n) for n in range(4)), failure(4, "cut", ended_at=1004.5), failure(5, "unfinished"))
    (found,) = live.slo_results(parse_slos([slo]))
    assert found.value == pytest.approx(value, rel=0.0026)
    (exact,) = judge_slos(parse_slos([slo]), [*(record(n) for n in range(4)), failure(4, "cut")], Scoring())
    assert found.ok == exact.ok


def test_realtime_sessions_have_separate_charts() -> None:
    live = Live(1000.0, REALTIME_DRAWN)
    spoken = RealtimeRecord(**msgspec.structs.asdict(record(0)), ttfs=0.4, rtf_live=1.25)
    fed(live, spoken)
    live.close(1000.5)
    info = run_info(realtime={"dialect": "vllm"}, began_at=1000.0)
    for point in (*live.points(), *course([spoken], info)):
        assert point["ttfs"]["p95"] == pytest.approx(400)
        assert point["rtf_live"]["p50"] == pytest.approx(1.25)
        assert "e2el" not in point
        assert "rtf" not in point


def test_some_transcripts_are_scored_live() -> None:
    live = Live(1000.0, accuracy=Sample(Scoring()))
    fed(live, *(record(0, reference="four words are here", text="four words are there") for _ in range(4)))
    fed(live, failure(0, "http_503"), record(0, reference="", text="noise"))
    fed(live, record(0, reference="word " * 300, text="word " * 300))  # too long: scored only at the end
    live.tick(1001.0, users=1, in_flight=0, complete_until=1001.0)
    fed(live, *(record(1, reference="four words are here", text="four words are here") for _ in range(50)))
    live.tick(1002.0, users=1, in_flight=0, complete_until=1002.0)
    shown = shown_in(live, ["wer:mean:0.05"])
    # Four of the first second, and at most ten of the next.
    assert shown["WER"] == ("WER", "7.1%", "", "limit 5.0%, missed", "bad")
    assert live.accuracy is not None
    assert live.accuracy.references == 14
    assert len(shown) == 5
    unspaced = Live(1000.0, accuracy=Sample(Scoring("zh")))
    fed(unspaced, record(0, reference="广州市", text="广州"))
    unspaced.tick(1001.0, users=1, in_flight=0, complete_until=1001.0)
    assert shown_in(unspaced, [])["CER"] == ("CER", "33.3%", "", "of 1 transcript so far", "")
