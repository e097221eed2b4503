"""The verdict: whether a run's metrics can be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asr_load.report.words import clock
from asr_load.results.runfile import Late, WorkerInfo
from asr_load.results.summary import summarise
from asr_load.results.verdict import judge_clients
from asr_load.stream.record import Record
from asr_load.text import count_of
from harness.records import failure, health, record, run_info, worker_info


@pytest.mark.parametrize(
    ("client", "verdict"),
    [
        ({}, "valid"),
        ({"loop_lag_p99": 0.010}, "valid"),
        ({"loop_lag_p99": 0.011}, "suspect"),
        ({"loop_lag_p99": 0.051}, "client-bound"),
        ({"cpu_mean": 0.81}, "suspect"),
        ({"cpu_mean": 0.96}, "client-bound"),
        ({"loop_lag_max": 0.5, "cpu_max": 1.0}, "valid"),
    ],
)
def test_health_of_the_client_determines_the_verdict(client: dict[str, float], verdict: str) -> None:
    validity = summarise([record()], run_info(workers=[worker_info(health=health(**client))])).validity
    assert validity.verdict == verdict
    assert bool(validity.reasons) == (verdict != "valid")


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "no request was sent"),
        ([failure(0, "connect")], "no request succeeded: 1× http://127.0.0.1:1: why: is the server running there?"),
        ([record(output_tokens_source="chunks")], "1 response came without usage"),
        ([record(streamed=False)], "1 response came without streaming"),
    ],
)
def test_records_without_usage_or_streaming_are_suspect(records: list[Record], said: str) -> None:
    validity = summarise(records, run_info()).validity
    assert validity.verdict == "suspect"
    assert said in validity.reasons[0]


def test_repeated_bytes_are_suspect_unless_dithered() -> None:
    records = [record(0, clip="a"), record(1, clip="a"), record(2, clip="b")]
    assert summarise(records, run_info()).validity.verdict == "valid"
    validity = summarise(records, run_info(unique="none")).validity
    assert validity.verdict == "suspect"
    assert "1 request repeated" in validity.reasons[0]


def test_fleet_with_different_readers_is_suspect() -> None:
    mixed = [worker_info(worker=n, reader=reader) for n, reader in enumerate(("compiled", "python", "compiled"))]
    validity = summarise([record()], run_info(workers=mixed)).validity
    assert validity.verdict == "suspect"
    assert validity.reasons == [
        "workers read responses with different readers (compiled: worker 0, 2; python: worker 1):"
        " start all with the same --reader"
    ]
    # A worker that took no part has not read anything.
    unknown = worker_info(worker=1, reader="unknown", health=None)
    assert not summarise([record()], run_info(workers=[worker_info(), unknown])).validity.reasons


def fleet(*cpu: float, cores: int = 8) -> list[WorkerInfo]:
    return [worker_info(worker=n, cores=cores, health=health(cpu_mean=each)) for n, each in enumerate(cpu)]


@pytest.mark.parametrize(
    ("cpu", "more"),
    [
        ((0.9,), 0),  # suspect only
        ((0.97,), 1),
        ((0.99, 0.99), 1),
        ((0.96,) * 8, 2),
        ((0.97, 0.1), 1),  # uneven sharing is not visible here: one more is a lower bound
    ],
)
def test_client_bound_fleet_reports_how_many_workers_to_add(cpu: tuple[float, ...], more: int) -> None:
    validity = judge_clients(fleet(*cpu))
    assert validity.more_workers == more
    wanted = f"add at least {count_of(more, 'more worker')}, {len(cpu) + more} in all, to keep each below 80% of a core"
    assert any(reason.startswith(wanted) for reason in validity.reasons) == bool(more)
    assert [client.cpu_mean for client in validity.clients] == list(cpu)


def test_more_workers_than_cores_need_another_machine() -> None:
    assert "on another machine" not in judge_clients(fleet(0.99, cores=2)).reasons[-1]
    full = judge_clients(fleet(0.99, 0.99, cores=2)).reasons[-1]
    assert "they now run on 2 cores, so start them on another machine" in full


def test_more_workers_are_not_advised_if_other_processes_take_the_cpu() -> None:
    validity = judge_clients([worker_info(health=health(loop_lag_p99=0.2, cpu_mean=0.05))])
    assert (validity.verdict, validity.more_workers) == ("client-bound", 0)
    assert "more workers would not help: another program is probably using that machine's CPU" in validity.reasons[-1]


def test_clock_offset_of_a_worker_is_shown_with_its_error() -> None:
    behind, unknown = fleet(0.1, 0.1)
    behind.master_offset_s, behind.master_offset_error_s = 3.7, 0.0004
    unknown.master_offset_error_s = None
    assert [clock(client) for client in judge_clients([behind, unknown]).clients] == ["-3700.0 ± 0.4", "unknown"]


def many(count: int, **changes: Any) -> list[Record]:
    """Consecutive requests that take about one second each."""
    return [record(n, started_at=1000.0 + n, e2el=0.9, stream_end=0.9, **changes) for n in range(count)]


def outage_of(found: list[Record], first: int, last: int, outcome: str) -> list[Record]:
    return [
        failure(one.seq, outcome, started_at=one.started_at, ended_at=one.started_at + 0.01)
        if first <= one.seq < last
        else one
        for one in found
    ]


@pytest.mark.parametrize(("first", "last"), [(0, 100), (100, 200), (50, 150), (80, 110)])
def test_outage_is_a_reason_and_interrupts_the_steady_state(first: int, last: int) -> None:
    records = outage_of(many(200), first, last, "connect")
    validity = summarise(records, run_info()).validity
    assert validity.verdict == "suspect"
    assert f"no request succeeded from {first} s to " in validity.reasons[0]
    assert f"({last - first} connect): an outage ({str((last - first) // 2)[0]}" in validity.reasons[0]
    assert summarise(records, run_info()).steadiness.verdict == "interrupted"


def test_few_failures_are_not_an_outage() -> None:
    records = outage_of(many(200), 50, 60, "cut")
    assert summarise(records, run_info()).validity.verdict == "valid"
    assert summarise(records, run_info()).steadiness.verdict == "steady"


def test_stall_of_the_server_is_an_outage_without_failures() -> None:
    records = many(200)
    records[100] = record(100, started_at=1100.0, e2el=60.0, stream_end=60.0)
    moved = [one.moved(60.0) if one.seq > 100 else one for one in records]
    assert "(responses stalled): an outage (2" in summarise(moved, run_info()).validity.reasons[0]


def test_steadiness_is_not_judged_if_the_load_changed() -> None:
    records = many(200)
    for users, verdict in (
        ([(1001.0, 4)], "steady"),
        ([(1001.0, 4), (1100.0, 8)], "not judged"),
        ([(1001.0, 4), (1300.0, 0)], "steady"),
    ):
        assert summarise(records, run_info(users=users)).steadiness.verdict == verdict
    rates = {"stages": "60s:1,60s:2"}
    assert summarise(records, run_info(loop=rates)).steadiness.verdict == "not judged"
    lost = run_info(workers=[worker_info(ended=False)])
    assert summarise(records, lost).steadiness.verdict == "not judged"


def test_steadiness_uses_the_masters_clock() -> None:
    records = [record(n, worker=n % 2, started_at=1000.0 + n + 3600 * (n % 2), e2el=1.0 + (n % 2)) for n in range(200)]
    workers = [worker_info(worker=0), worker_info(worker=1, master_offset_s=-3600.0)]
    summary = summarise(records, run_info(workers=workers, trim_start=50.0))
    assert summary.steadiness.verdict == "steady"
    assert summary.left_out.trim_start == 50


def test_responses_in_one_piece_are_reported_as_not_streamed() -> None:
    whole = {"chunks": 4, "itl": [0.0, 0.0001, 0.0]}
    validity = summarise([record(0, **whole), record(1, chunks=4, itl=[0.1] * 3), record(2)], run_info()).validity
    assert validity.verdict == "suspect"
    assert validity.reasons[0].startswith("1 of 2 responses arrived in one or a few pieces, not as a stream: ")
    assert validity.client == "healthy"


WHOLE = {"chunks": 40, "itl": [0.0] * 39, "audio_s": 12.0}
"""A response for 12 s of speech that comes in one piece."""


def held_back(records: list[Record], **changes: Any) -> bool:
    reasons = summarise(records, run_info(**changes)).validity.reasons
    return any("a proxy may buffer them" in reason for reason in reasons)


@pytest.mark.parametrize("lag", [{"stamp_lag_p99": 0.2}, {"stamp_lag_p99": 0.2, "loop_lag_p99": 0.2}])
def test_proxy_is_not_blamed_if_responses_were_read_late(lag: dict[str, float]) -> None:
    records = [record(n, **WHOLE) for n in range(20)]
    assert held_back(records)
    for reader in ("compiled", "python"):
        assert not held_back(records, workers=[worker_info(reader=reader, health=health(**lag))])
    # With two workers, the one that read on time decides.
    both = [worker_info(health=health(**lag)), worker_info(worker=1)]
    assert held_back([record(n, worker=n % 2, **WHOLE) for n in range(20)], workers=both)
    assert not held_back(records, workers=both)


def test_proxy_is_judged_by_seconds_with_timely_reads() -> None:
    starved = [record(n, **(WHOLE if n in (50, 51) else {"chunks": 4, "itl": [0.1] * 3})) for n in range(100)]
    late = [Late(1050.0, 1052.0, 0.4, 0.1)]
    noisy = [worker_info(health=health(stamp_lag_p99=0.2, loop_lag_p99=0.2, late=late))]
    assert not held_back(starved, workers=noisy)
    assert held_back([record(n, **WHOLE) for n in range(100)], workers=noisy)


def decoded_by_stretches(random: np.random.Generator, seconds: float) -> Record:
    """A transcription as SGLang streams Qwen3-ASR's: every two seconds are decoded again, and all certain words, which
    are all but the last five, are sent together."""
    words, sent, gaps = random.poisson(2.5 * seconds) + 1, 0, list[float]()
    for end in np.arange(2, seconds + 2, 2):
        heard = round(words * min(end, seconds) / seconds)
        certain = words if end >= seconds else max(heard - 5, 0)
        if certain > sent:
            gaps += [0.3, *[0.0001] * (certain - sent - 1)]
            sent = certain
    return record(0, audio_s=seconds, ttft=0.3, headers=None, itl=gaps[1:], chunks=words, e2el=0.3 + sum(gaps[1:]))


@pytest.mark.parametrize("mean", [0.5, 1.0, 1.8, 2.7])
def test_engine_that_decodes_in_stretches_is_not_a_proxy(mean: float) -> None:
    """This holds for any clip length (`mean` is that of the logarithm). No chat is streamed this way."""
    random = np.random.default_rng(0)
    records = [decoded_by_stretches(random, seconds) for seconds in random.lognormal(mean, 0.5, 300).clip(0.5, 40)]
    for number, one in enumerate(records):
        one.seq, one.started_at, one.clip, one.stream_end = number, 1000.0 + number, f"clip{number}", one.e2el
    assert not held_back(records, api="transcriptions")
    assert held_back(records, api="chat")


def test_proxy_before_a_transcription_api_is_detected() -> None:
    random = np.random.default_rng(0)
    lengths = random.lognormal(2.3, 0.5, 200).clip(1, 35).tolist()
    whole = [record(n, audio_s=s, chunks=int(4 * s) + 4, itl=[0.0] * (int(4 * s) + 3)) for n, s in enumerate(lengths)]
    assert held_back(whole, api="transcriptions")
    # Pieces of 4 kB are sixteen chunks, at three tokens per second of audio.
    buffered = [
        record(n, audio_s=s, chunks=int(3 * s) + 4, itl=[0.4 if at % 16 == 15 else 0.0 for at in range(int(3 * s) + 3)])
        for n, s in enumerate(sorted(lengths)[100:])
    ]
    assert held_back(buffered, api="transcriptions")


@pytest.mark.parametrize(("first", "reported"), [(32.0, True), (1.9, False), (0.5, False)])
def test_slow_first_request_is_reported_with_a_cure(first: float, reported: bool) -> None:
    records = [record(n, started_at=1000.0 + n, ttft=first if n == 3 else 0.2, itl=[]) for n in range(3, 33)]
    validity = summarise(records, run_info()).validity
    line = (
        "the first request took 32.0 s to its first token, 160 times the median: exclude it with --warmup-requests 10"
    )
    assert (line in validity.reasons) is reported
    late = [record(n, started_at=1000.0 + n, ttft=first if n == 9 else 0.2, itl=[]) for n in range(3, 33)]
    assert line not in summarise(late, run_info()).validity.reasons  # not the first request


@pytest.mark.parametrize(
    ("cached", "said"),
    [
        ([(5, 79)] * 6, ""),
        ([(60, 79)] * 6, ""),  # a long prompt before the audio
        ([(5, 79)] * 5 + [(78, 79)], "103 of 474 prompt tokens came from the server's cache"),
        ([(78, 79)] * 6, "468 of 474 prompt tokens came from the server's cache"),
        ([(0, 79), (None, None)], ""),
    ],
)
def test_prompts_from_the_servers_cache_are_suspect(cached: list[tuple[int | None, int | None]], said: str) -> None:
    records = [record(n, cached_tokens=one, prompt_tokens=all_) for n, (one, all_) in enumerate(cached)]
    assert summarise(records, run_info()).validity.reasons == ([said] if said else [])


@pytest.mark.parametrize(
    ("outcome", "error", "said"),
    [
        (
            "connect",
            "Connection refused",
            "2× connection refused by http://127.0.0.1:1: is the server running there? (--ready-timeout waits for it)",
        ),
        ("http_401", "no key.", "2× 401: no key: set OPENAI_API_KEY or --api-key"),
        ("cut", "the body ended early", "2× cut: the body ended early: check the server's log"),
    ],
)
def test_cause_and_cure_come_first_if_nothing_succeeded(outcome: str, error: str, said: str) -> None:
    records = [failure(n, outcome, error=error) for n in range(2)]
    validity = summarise(records, run_info(workers=[worker_info(health=health(loop_lag_p99=0.2))])).validity
    assert validity.reasons == [f"no request succeeded: {said}"]
    assert (validity.verdict, validity.client) == ("suspect", "not judged")


def test_lack_of_descriptors_is_client_bound() -> None:
    want = "too many open files: raise ulimit -n, or lower -u"
    validity = summarise([record(0), failure(1, "client", error=want)], run_info()).validity
    assert (validity.verdict, validity.client, validity.reasons) == ("client-bound", "too slow", [f"1× {want}"])


def test_records_of_an_earlier_run_are_reported() -> None:
    mixed = [record(n) for n in range(5)] + [record(n, started_at=100.0 + n) for n in range(3)]
    found = summarise(mixed, run_info()).validity
    assert "3 records began before the run: records of another run are mixed in" in found.reasons
    assert summarise([record(n) for n in range(5)], run_info()).validity.reasons == []
