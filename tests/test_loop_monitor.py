"""The loop monitor: what it reports of an event loop that was blocked, and of one that was not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import gevent
import numpy as np
import pytest

from asr_load.load.loop_monitor import TICK_S, LateSeconds, LoopMonitor
from asr_load.results.runfile import MOST_LATE, Late
from harness.serving import wait_until

HELD_S = 0.51


class Clock:
    """A clock that advances only when a test says so, with the event loop's timer."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ring: Callable[[], None] | None = None
        self.due = math.inf

    def timer(self, *_: float) -> Clock:
        return self

    def again(self, ring: Callable[[], None]) -> None:
        self.ring, self.due = ring, self.now + TICK_S

    def stop(self) -> None:
        self.ring = None

    def close(self) -> None:
        assert self.ring is None

    def hold(self, seconds: float) -> None:
        """Block the loop."""
        self.now += seconds

    def run(self, ticks: int) -> None:
        """Run the loop until its timer has fired this many times."""
        for _ in range(ticks):
            assert self.ring is not None
            self.now = max(self.now, self.due)
            self.due += TICK_S  # as libev repeats a timer, unless `again` resets it
            self.ring()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr("time.perf_counter", lambda: made.now)
    monkeypatch.setattr("gevent.get_hub", lambda: SimpleNamespace(loop=made))
    monkeypatch.setattr(LoopMonitor, "_watch", lambda _: None)
    yield made


def test_blocked_loop_is_late_at_every_tick_it_missed(clock: Clock) -> None:
    monitor = LoopMonitor()
    monitor.start()
    clock.run(5)
    clock.hold(HELD_S)
    clock.run(5)
    monitor.stop()
    health = monitor.health()
    # The first tick after the stall was due TICK_S after the stall began.
    assert health.loop_lag_max == pytest.approx(HELD_S - TICK_S)
    # The ticks of the stall are late by 0 up to its length; the other nine are on time.
    late = np.sort(np.r_[np.zeros(9), np.arange(HELD_S - TICK_S, 0, -TICK_S)])
    assert health.loop_lag_samples == len(late)
    assert health.loop_lag_p50 == pytest.approx(np.percentile(late, 50), abs=TICK_S)


def test_loop_blocked_until_the_end_is_late(clock: Clock) -> None:
    monitor = LoopMonitor()
    monitor.start()
    clock.run(5)
    clock.hold(HELD_S)
    monitor.stop()
    health = monitor.health()
    assert health.loop_lag_max == pytest.approx(HELD_S - TICK_S)
    assert health.loop_lag_samples == 5 + HELD_S // TICK_S
    assert health.late is not None
    assert [late.lag for late in health.late] == [pytest.approx(HELD_S - TICK_S)]


def test_recent_health_includes_the_current_lag(clock: Clock) -> None:
    monitor = LoopMonitor()
    monitor.start()
    clock.hold(0.2)
    clock.run(2)
    assert monitor.health().loop_lag_max == pytest.approx(0.2 - TICK_S)
    monitor.stop()


def test_timer_of_the_real_loop_fires() -> None:
    monitor = LoopMonitor()
    monitor.start()
    wait_until(lambda: monitor.health().loop_lag_samples >= 5, "five ticks", pause=lambda _: gevent.sleep(TICK_S))
    monitor.stop()


def test_reading_thread_has_separate_lags(clock: Clock) -> None:
    told = [[9.0], [0.25, 0.5], [0.1]]  # the first one is from before the start
    monitor = LoopMonitor(lambda: told.pop(0))
    monitor.start()
    clock.run(3)
    assert monitor.health().stamp_lag_max == 0.5
    monitor.stop()
    health = monitor.health()
    assert health.stamp_lag_max == 0.5
    assert health.stamp_lag_p99 == pytest.approx(0.5, rel=0.003)
    assert (health.loop_lag_samples, health.loop_lag_max) == (3, 0)
    assert not told


def test_only_the_seconds_of_a_stall_are_late(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    # The loop's own work blocks it: its thread uses the CPU all the time.
    monkeypatch.setattr("time.thread_time", lambda: clock.now)
    monitor = LoopMonitor(epoch_s=1e6)
    monitor.start()
    clock.run(5)
    clock.hold(2.5)
    clock.run(1)
    ended = clock.now + 1e6
    clock.run(5)
    monitor.stop()
    health = monitor.health()
    assert health.late is not None
    (held,) = health.late
    assert (held.begin, held.end) == (1e6 + 100, math.floor(ended) + 1)
    assert held.lag == pytest.approx(health.loop_lag_max) == pytest.approx(2.5 - TICK_S)
    assert held.cpu == pytest.approx(1)


def test_late_reading_thread_makes_seconds_late() -> None:
    told = [[], [0.0, 0.0, 0.2], [0.0]]
    monitor = LoopMonitor(lambda: told.pop(0) if told else [])
    monitor.start()
    monitor.health()
    monitor.stop()
    health = monitor.health()
    assert health.late is not None
    assert [each.lag for each in health.late if each.lag == 0.2]
    assert health.sound_stamp_lag_p99 == 0.0 or health.sound_stamp_lag_p99 < 0.05


def test_adjacent_late_seconds_are_merged() -> None:
    found = LateSeconds()
    found.add(10.2, 10.4, 0.2, 0.1)
    found.add(11.9, 12.1, 0.3, 0.5)
    found.add(20.0, 20.1, 0.1, 0.2)
    assert found.stretches == [Late(10, 13, 0.3, 0.5), Late(20, 21, 0.1, 0.2)]


def test_late_seconds_of_days_are_bounded_and_complete() -> None:
    random = np.random.default_rng(0)
    found, at = LateSeconds(), 0.0
    moments = []
    for gap in random.exponential(20, 5000):
        at += 2 + gap
        moments.append(at)
        found.add(at, at + 0.1, 0.1, 0.2)
    assert len(found.stretches) <= MOST_LATE
    begins = np.array([each.begin for each in found.stretches])
    ends = np.array([each.end for each in found.stretches])
    place = np.searchsorted(begins, moments, "right") - 1
    assert (np.array(moments) < ends[place]).all()
    assert (begins[1:] > ends[:-1]).all()
