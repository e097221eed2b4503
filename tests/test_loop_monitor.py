"""The watch over the client: what it says of a loop that was held up, and of one that was not."""

from __future__ import annotations

import time

import gevent
import numpy as np
import pytest

from asr_load.load.loop_monitor import TICK_S, LoopMonitor

HELD_S = 0.5


def hold(seconds: float) -> None:
    """Keep everything else of this process from running."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_a_loop_that_is_held_up_once_is_late_at_every_tick_that_it_swallowed() -> None:
    monitor = LoopMonitor()
    monitor.start()
    gevent.sleep(5 * TICK_S)
    hold(HELD_S)
    gevent.sleep(5 * TICK_S)
    monitor.stop()
    health = monitor.health()
    assert health.loop_lag_max == pytest.approx(HELD_S, abs=0.1)
    # The ticks of the stall are late by all there is from nothing to its length; the ten others by next to nothing.
    late = np.sort(np.r_[np.zeros(10), np.arange(HELD_S, 0, -TICK_S)])
    assert health.loop_lag_samples == pytest.approx(len(late), abs=6)
    assert health.loop_lag_p50 == pytest.approx(np.percentile(late, 50), abs=0.06)


def test_what_is_told_of_the_last_seconds_has_the_lag_of_now() -> None:
    monitor = LoopMonitor()
    monitor.start()
    hold(0.2)
    gevent.sleep(2 * TICK_S)
    assert monitor.health().loop_lag_max > 0.1
    monitor.stop()


def test_a_thread_that_reads_has_lags_of_its_own() -> None:
    told = [[9.0], [0.25, 0.5], [0.1]]  # the first is from before the watch
    monitor = LoopMonitor(lambda: told.pop(0))
    monitor.start()
    assert monitor.health().stamp_lag_max == 0.5
    monitor.stop()
    health = monitor.health()
    assert health.stamp_lag_max == 0.5
    assert health.stamp_lag_p99 == pytest.approx(0.5, rel=0.003)
    assert health.loop_lag_max < 0.25
    assert not told
