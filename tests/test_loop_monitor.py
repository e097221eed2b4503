"""The watch over the client: what it says of a loop that was held up, and of one that was not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import gevent
import numpy as np
import pytest

from asr_load.load.loop_monitor import TICK_S, LoopMonitor
from harness.serving import wait_until

HELD_S = 0.51


class Clock:
    """Time that passes only where a test says so, and the event loop's timer on it."""

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
        """Keep the loop from running."""
        self.now += seconds

    def run(self, ticks: int) -> None:
        """Run the loop until its timer has rung so many times."""
        for _ in range(ticks):
            assert self.ring is not None
            self.now = max(self.now, self.due)
            self.due += TICK_S  # as libev repeats a timer, unless `again` sets it anew
            self.ring()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr("time.perf_counter", lambda: made.now)
    monkeypatch.setattr("gevent.get_hub", lambda: SimpleNamespace(loop=made))
    monkeypatch.setattr(LoopMonitor, "_watch", lambda _: None)
    yield made


def test_a_loop_that_is_held_up_once_is_late_at_every_tick_that_it_swallowed(clock: Clock) -> None:
    monitor = LoopMonitor()
    monitor.start()
    clock.run(5)
    clock.hold(HELD_S)
    clock.run(5)
    monitor.stop()
    health = monitor.health()
    # The first tick behind the stall is the one that was due TICK_S after it began.
    assert health.loop_lag_max == pytest.approx(HELD_S - TICK_S)
    # The ticks of the stall are late by all there is from nothing to its length; the nine others are on time.
    late = np.sort(np.r_[np.zeros(9), np.arange(HELD_S - TICK_S, 0, -TICK_S)])
    assert health.loop_lag_samples == len(late)
    assert health.loop_lag_p50 == pytest.approx(np.percentile(late, 50), abs=TICK_S)


def test_what_is_told_of_the_last_seconds_has_the_lag_of_now(clock: Clock) -> None:
    monitor = LoopMonitor()
    monitor.start()
    clock.hold(0.2)
    clock.run(2)
    assert monitor.health().loop_lag_max == pytest.approx(0.2 - TICK_S)
    monitor.stop()


def test_the_loops_own_timer_rings() -> None:
    monitor = LoopMonitor()
    monitor.start()
    wait_until(lambda: monitor.health().loop_lag_samples >= 5, "five ticks", pause=lambda _: gevent.sleep(TICK_S))
    monitor.stop()


def test_a_thread_that_reads_has_lags_of_its_own(clock: Clock) -> None:
    told = [[9.0], [0.25, 0.5], [0.1]]  # the first is from before the watch
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
