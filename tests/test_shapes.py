"""Load shapes: the number of users at a time, without a clock."""

from __future__ import annotations

import pytest

from asr_load.load.shapes import plan, stage_at


def users(shape: str, peak: int, stages: int, stage_time: float, times: list[float]) -> list[int | None]:
    planned = plan(shape, peak, stages, stage_time)
    return [None if (found := stage_at(planned, time)) is None else found[1] for time in times]


def test_ramp_grows_linearly_and_stays_at_its_peak() -> None:
    assert users("ramp", 41, 4, 10, [0, 10, 20, 39.9, 40, 49.9, 50]) == [1, 11, 21, 41, 41, 41, None]


def test_steps_are_equal_and_end_at_the_peak() -> None:
    assert users("steps", 40, 4, 10, [0, 9.9, 10, 25, 39.9, 40]) == [10, 10, 20, 30, 40, None]


def test_spike_has_a_tenth_before_and_after() -> None:
    assert users("spike", 100, 9, 5, [0, 4.9, 5, 9.9, 10, 14.9, 15]) == [10, 10, 100, 100, 10, 10, None]


@pytest.mark.parametrize("shape", ["ramp", "steps", "spike"])
def test_shape_has_at_least_one_user_and_never_more_than_the_peak(shape: str) -> None:
    for peak in (1, 2, 3, 7):
        found = users(shape, peak, 5, 2, [time / 10 for time in range(120)])
        known = [number for number in found if number is not None]
        assert min(known) >= 1
        assert max(known) == peak
