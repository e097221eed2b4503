"""When a run's figures can be trusted."""

from __future__ import annotations

import pytest

from asr_load.results.verdict import judge
from asr_load.stream.record import Record
from records import failure, health, record, run_info, worker_info


@pytest.mark.parametrize(
    ("client", "verdict"),
    [
        ({}, "valid"),
        ({"lag_p99": 0.010}, "valid"),
        ({"lag_p99": 0.011}, "suspect"),
        ({"lag_p99": 0.051}, "client-bound"),
        ({"cpu_mean": 0.81}, "suspect"),
        ({"cpu_mean": 0.96}, "client-bound"),
        ({"lag_max": 0.5, "cpu_max": 1.0}, "valid"),
    ],
)
def test_the_clients_health(client: dict[str, float], verdict: str) -> None:
    validity = judge([record()], run_info(workers=[worker_info(health=health(**client))]))
    assert validity.verdict == verdict
    assert bool(validity.reasons) == (verdict != "valid")


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "no request was sent"),
        ([failure(0, "connect")], "no request succeeded"),
        ([record(output_tokens_source="chunks")], "1 answers came without usage"),
        ([record(streamed=False)], "1 answers were not streamed"),
    ],
)
def test_what_the_records_admit(records: list[Record], said: str) -> None:
    validity = judge(records, run_info())
    assert validity.verdict == "suspect"
    assert said in validity.reasons[0]


def test_repeated_bytes_are_suspect_and_dithered_ones_are_not() -> None:
    records = [record(0, clip="a"), record(1, clip="a"), record(2, clip="b")]
    assert judge(records, run_info()).verdict == "valid"
    validity = judge(records, run_info(unique="none"))
    assert validity.verdict == "suspect"
    assert "1 requests repeated" in validity.reasons[0]
