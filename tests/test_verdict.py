"""When a run's figures can be trusted."""

from __future__ import annotations

import pytest

from asr_load.results.runfile import WorkerInfo
from asr_load.results.verdict import clock, judge, judge_clients
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


def fleet(*cpu: float, cores: int = 8) -> list[WorkerInfo]:
    return [worker_info(worker=n, cores=cores, health=health(cpu_mean=each)) for n, each in enumerate(cpu)]


@pytest.mark.parametrize(
    ("cpu", "more"),
    [
        ((0.9,), 0),  # suspect
        ((0.97,), 1),
        ((0.99, 0.99), 1),
        ((0.96,) * 8, 2),
        ((0.97, 0.1), 1),  # work that is shared unevenly is not seen here: one more is the least that can be said
    ],
)
def test_a_client_bound_fleet_says_how_many_more_workers_it_takes(cpu: tuple[float, ...], more: int) -> None:
    validity = judge_clients(fleet(*cpu))
    assert validity.more_workers == more
    wanted = f"it takes at least {more} more worker(s), {len(cpu) + more} in all, to keep each below 80%"
    assert any(reason.startswith(wanted) for reason in validity.reasons) == bool(more)
    assert [client.cpu_mean for client in validity.clients] == list(cpu)


def test_more_workers_than_cores_belong_on_another_machine() -> None:
    assert "on another machine" not in judge_clients(fleet(0.99, cores=2)).reasons[-1]
    assert (
        "there are 2 core(s) where they run now, so on another machine"
        in judge_clients(fleet(0.99, 0.99, cores=2)).reasons[-1]
    )


def test_more_workers_do_not_help_where_something_else_takes_the_processor() -> None:
    validity = judge_clients([worker_info(health=health(lag_p99=0.2, cpu_mean=0.05))])
    assert (validity.verdict, validity.more_workers) == ("client-bound", 0)
    assert "more workers would not help; something else takes the processor" in validity.reasons[-1]


def test_what_is_said_of_a_clock() -> None:
    behind, unknown = fleet(0.1, 0.1)
    behind.master_offset_s, behind.master_offset_error_s = 3.7, 0.0004
    unknown.master_offset_error_s = None
    assert [clock(client) for client in judge_clients([behind, unknown]).clients] == ["-3700.0 ± 0.4", "unknown"]
