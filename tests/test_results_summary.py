"""Metrics from records: only successes have latencies, and percentiles are computed from samples."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from asr_load.errors import InputError
from asr_load.results.metrics import METRICS, figures
from asr_load.results.record_file import RecordFile
from asr_load.results.runfile import write_run
from asr_load.results.summary import Summary, summarise, summarise_folder
from asr_load.schedule.work import ArrivalCounts
from asr_load.stream.record import Record
from harness.records import failure, health, record, run_info, worker_info


def test_summary_counts_requests_and_rates() -> None:
    records = [
        record(0),
        record(1, finish_reason="length", output_tokens=128),
        record(1, finish_reason="length"),
        failure(2, "http_503"),
        failure(3, "cut", ttft=0.3, itl=[], e2el=0.3, chunks=1),
        record(4, warmup=True),
    ]
    summary = summarise(records, run_info())
    assert msgspec.to_builtins(summary.requests) == {
        "total": 5,
        "success": 3,
        "fail": 2,
        "unfinished": 0,
        "truncated": 1,
        "out_of_room": 1,
        "by_outcome": {"cut": 1, "http_503": 1, "ok": 3},
    }
    assert (summary.wall_s, summary.audio_s, summary.rtfx) == (10.0, 6.0, 0.6)
    assert (summary.requests_per_s, summary.output_tokens_per_s) == (0.3, 13.4)
    assert summary.tokens_per_chunk == 134 / 9
    assert (summary.ttft.n, summary.itl.n, summary.tpot.n, summary.e2el.n) == (3, 6, 3, 3)
    assert summary.lag.n == 0
    assert summary.goodput is None


def test_latencies_include_only_successes() -> None:
    summary = summarise([record(0), failure(1, "stalled", ttft=99.0, itl=[99.0], e2el=198.0, chunks=2)], run_info())
    assert (summary.ttft.max, summary.itl.max, summary.e2el.max, summary.rtf.max) == (0.2, 0.1, 0.4, 0.2)
    assert summary.tpot.mean == pytest.approx(0.1)


def test_percentiles_are_those_of_the_samples() -> None:
    values = np.random.default_rng(1).gamma(2, 1, 1001)
    found = figures(values.tolist())
    assert (found.n, found.max) == (1001, values.max())
    assert found.mean == pytest.approx(values.mean())
    assert [found.p50, found.p90, found.p95, found.p99] == np.percentile(values, [50, 90, 95, 99]).tolist()
    empty = figures([])
    assert (empty.n, empty.mean, empty.p99, empty.max) == (0, None, None, None)


def test_metrics_per_clip_length() -> None:
    summary = summarise([record(n, audio_s=seconds) for n, seconds in enumerate((4.999, 5.0, 29.9, 40.0))], run_info())
    assert [(row.from_s, row.to_s, row.n) for row in summary.by_duration] == [
        (0, 5, 1),
        (5, 10, 1),
        (20, 30, 1),
        (30, None, 1),
    ]


def test_summary_of_a_run_without_a_request() -> None:
    summary = summarise([], run_info())
    assert (summary.requests.total, summary.rtfx, summary.wer, summary.ttft.n) == (0, None, None, 0)
    assert summary.validity.verdict == "suspect"


def test_scaled_figures_keep_their_number_and_missing_values() -> None:
    found = figures([0.1, 0.3]).scaled(1e3)
    assert (found.mean, found.max, found.n) == (200, 300, 2)
    assert figures([]).scaled(1e3) == figures([])


def test_summary_has_a_field_for_each_metric() -> None:
    assert set(METRICS) <= set(Summary.__struct_fields__)


def test_same_folder_gives_the_same_summary(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    for item in (record(1), record(0), failure(2, "empty")):
        file.write(item)
    file.close()
    write_run(tmp_path, run_info())
    first = summarise_folder(tmp_path)
    bytes_ = (tmp_path / "summary.json").read_bytes()
    assert summarise_folder(tmp_path) == first
    assert (tmp_path / "summary.json").read_bytes() == bytes_


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a results folder"):
        summarise_folder(tmp_path)


@pytest.mark.parametrize(
    ("clips", "sent", "passes", "repeated", "left_out"),
    [
        ("", 0, 0.0, 0, 0),
        ("abc", 3, 1.0, 0, 0),
        ("ab", 2, 2 / 3, 0, 0),  # half a pass needs no further requests
        ("aabbc", 3, 5 / 3, 0, 0),
        ("aab", 2, 1.0, 1, 1),
        ("aaaab", 2, 5 / 3, 2, 1),
        ("aaaaaa", 1, 2.0, 4, 4),
    ],
)
def test_coverage_counts_clips_passes_and_repeats(
    clips: str, sent: int, passes: float, repeated: int, left_out: int
) -> None:
    summary = summarise([record(n, clip=clip) for n, clip in enumerate(clips)], run_info(data_clips=3))
    found = summary.coverage
    assert (found.clips, found.sent, found.repeated, found.left_out) == (3, sent, repeated, left_out)
    assert found.passes == pytest.approx(passes)


def test_times_of_two_machines_are_on_one_clock() -> None:
    # Worker 1's clock is an hour ahead: uncorrected, the run would have taken an hour.
    records = [record(0), record(1, worker=1, started_at=4603.0)]
    workers = [
        worker_info(ended_at=1001.0),
        worker_info(worker=1, ended_at=4604.5, master_offset_s=-3600.0),
    ]
    assert summarise(records, run_info(workers=workers)).wall_s == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("allowed", "records", "passed"),
    [(False, [record(0)], False), (True, [record(0)], True), (True, [failure(0, "cut")], False)],
)
def test_client_bound_run_or_one_without_success_does_not_pass(
    allowed: bool, records: list[Record], passed: bool
) -> None:
    slow = worker_info(health=health(loop_lag_p99=0.2))
    info = run_info(workers=[slow], slos=["errors:rate:1.0"], allow_client_bound=allowed)
    summary = summarise(records, info)
    assert summary.validity.verdict == ("client-bound" if records[0].ok else "suspect")
    assert [result.ok for result in summary.slo] == [True]
    assert summary.passed is passed
    assert bool(summary.not_passed) is not passed


def test_run_without_slos_neither_passes_nor_fails() -> None:
    summary = summarise([record(0)], run_info(workers=[worker_info(health=health(loop_lag_p99=0.2))]))
    assert (summary.passed, summary.not_passed) == (None, [])


def test_tokens_are_unknown_if_one_response_lacks_usage() -> None:
    summary = summarise([record(0), record(1, output_tokens_source="chunks")], run_info(goodput="tpot:1000"))
    assert summary.output_tokens is summary.output_tokens_per_s is summary.tokens_per_chunk is summary.goodput is None
    assert summary.tpot.n == 1
    assert summarise([record(0, output_tokens_source="chunks")], run_info(goodput="ttft:1000")).goodput == 0.1


def test_open_loop_rate_has_a_random_interval() -> None:
    counts = ArrivalCounts(seconds=100.0, expected=400.0, deviation=20.0, due=368)
    workers = [worker_info(worker=n, started=180, arrivals=counts) for n in range(2)]
    found = summarise([record(0)], run_info(workers=workers)).open_loop
    assert found is not None
    assert (found.asked, found.due, found.sent) == (4.0, 3.68, 3.6)
    assert found.low == pytest.approx(3.608)
    assert found.high == pytest.approx(4.392)
    assert summarise([record(0)], run_info()).open_loop is None
