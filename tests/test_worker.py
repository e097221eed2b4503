"""A worker of a fleet: the offset of its clock, from round trips of messages."""

from __future__ import annotations

import numpy as np
import pytest

from asr_load.load.worker import ROUNDS_KEPT, ClockOffset

MS = 1_000_000


def test_clock_offset_is_unknown_before_the_first_round_trip() -> None:
    assert ClockOffset().best is None


def test_clock_offset_of_the_quickest_round_trip_is_within_its_error() -> None:
    rng = np.random.default_rng(1)
    clock = ClockOffset()
    truth = -3_700 * MS
    now = 10**18
    for _ in range(20):
        there, back = (int(value) for value in rng.exponential(5 * MS, 2) + 0.1 * MS)
        clock.add(now, now + there + truth, now + there + back)
        now += 50 * MS
    assert clock.best is not None
    offset, error = clock.best
    assert abs(offset - truth / 1e9) <= error
    assert error < 0.003  # the mean would be off by 5 ms


def test_asymmetric_delay_is_within_the_error() -> None:
    clock = ClockOffset()
    clock.add(0, 80 * MS, 80 * MS)  # the whole delay was on the way there
    assert clock.best == pytest.approx((0.04, 0.04))


def test_clock_offset_follows_drift() -> None:
    clock = ClockOffset()
    clock.add(0, 1 * MS, 1 * MS)
    for number in range(ROUNDS_KEPT):
        clock.add(number, number + 1005 * MS, number + 10 * MS)
    assert clock.best == pytest.approx((1.0, 0.005))


def test_round_trip_over_a_clock_set_back_is_ignored() -> None:
    clock = ClockOffset()
    clock.add(100 * MS, 50 * MS, 10 * MS)
    assert clock.best is None
