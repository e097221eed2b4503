"""Latencies computed from stamps."""

from __future__ import annotations

from asr_load.stream.timing import latencies, seconds, tpot


def test_latencies_from_stamps() -> None:
    timing = latencies(1_000_000_000, [1_250_000_000, 1_270_000_001, 1_290_000_000])
    assert (timing.ttft, timing.itl, timing.e2el) == (0.25, [0.020000001, 0.019999999], 0.29)


def test_ttft_and_gaps_add_up_to_e2e() -> None:
    stamps = [7 * 10**15 + step * 20_000_003 for step in range(1, 500)]
    timing = latencies(7 * 10**15, stamps)
    assert timing.ttft is not None
    assert timing.e2el is not None
    assert abs(timing.ttft + sum(timing.itl) - timing.e2el) < 1e-9


def test_latencies_of_no_chunk_and_one_chunk() -> None:
    nothing, one = latencies(5, []), latencies(5, [10])
    assert (nothing.ttft, nothing.itl, nothing.e2el) == (None, [], None)
    assert (one.ttft, one.itl, one.e2el) == (5e-9, [], 5e-9)


def test_time_per_output_token() -> None:
    assert tpot(0.2, 1.2, 11) == 0.1
    assert tpot(0.2, 0.2, 1) is None
    assert tpot(0.2, 0.2, None) is None
    assert tpot(None, None, 5) is None


def test_seconds_between_stamps() -> None:
    assert seconds(1_000_000_000, 1_500_000_000) == 0.5
    assert seconds(1, None) is None
