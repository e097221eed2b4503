"""Is this process fit to measure? The event loop's lag, CPU and garbage collection, watched all the time of a test.

A late loop stamps reads late, and what it adds ends up in the server's figures. So it is measured, and kept small:
CPython's full collections hold a busy process for tens of ms, so they are not left to chance.
"""

from __future__ import annotations

import array
import gc
import time
from collections.abc import Callable
from typing import Any

import gevent
import numpy as np

from asr_load.results.runfile import ClientHealth

TICK_S = 0.01
COLLECT_EVERY_S = 30.0


class LoopMonitor:
    """Watches from `start` to `stop`. `stamp_lags` tells how late stamps were since it was last asked, where something
    else than the loop makes them."""

    def __init__(self, stamp_lags: Callable[[], list[float]] | None = None) -> None:
        self._stamp_lags_since = stamp_lags

    def start(self) -> None:
        self._lags = array.array("d")
        self._stamp_lags = self._lags if self._stamp_lags_since is None else array.array("d")
        if self._stamp_lags_since is not None:
            self._stamp_lags_since()
        self._cpu: list[float] = []
        self._pauses: list[float] = []
        self._pause_began = 0
        gc.collect()
        gc.freeze()
        # Young objects are still collected, which is quick; the full collections are `_collect`'s.
        self._thresholds = gc.get_threshold()
        gc.set_threshold(20_000, 20, 1_000_000)
        gc.callbacks.append(self._on_gc)
        self._began = time.perf_counter(), time.thread_time(), time.process_time()
        self._greenlets = [gevent.spawn(self._watch_lag), gevent.spawn(self._watch_cpu)]

    def stop(self) -> ClientHealth:
        """End, and return the health over the whole test."""
        gevent.killall(self._greenlets)
        self._ask_for_stamp_lags()
        wall, cpu, _ = self._spent()
        health = self._health(self._lags, self._stamp_lags, cpu_mean=cpu / wall, cpu=self._cpu)
        gc.callbacks.remove(self._on_gc)
        gc.set_threshold(*self._thresholds)
        gc.unfreeze()
        return health

    def recent(self) -> ClientHealth:
        """The health of the last ten seconds, for a page that asks while the test runs."""
        cpu = self._cpu[-10:]
        last = -int(10 / TICK_S)
        mean = sum(cpu) / max(len(cpu), 1)
        return self._health(self._lags[last:], self._stamp_lags[last:], cpu_mean=mean, cpu=cpu)

    def _spent(self) -> tuple[float, ...]:
        now = time.perf_counter(), time.thread_time(), time.process_time()
        return tuple(ended - began for ended, began in zip(now, self._began, strict=True))

    def _health(
        self, lags: array.array[float], stamp_lags: array.array[float], *, cpu_mean: float, cpu: list[float]
    ) -> ClientHealth:
        wall, _, cpu_process = self._spent()
        known = np.array(lags if lags else [0.0])
        p50, p99 = np.percentile(known, [50, 99])
        return ClientHealth(
            lag_p50=float(p50),
            lag_p99=float(p99),
            lag_max=float(known.max()),
            lag_samples=len(lags),
            stamp_lag_p99=float(np.percentile(stamp_lags, 99)) if stamp_lags else 0.0,
            stamp_lag_max=max(stamp_lags, default=0.0),
            cpu_mean=cpu_mean,
            cpu_max=max(cpu, default=cpu_mean),
            cpu_process=cpu_process / wall,
            watched_s=wall,
            gc_pause_max=max(self._pauses, default=0.0),
            gc_pause_total=sum(self._pauses),
        )

    def _watch_lag(self) -> None:
        due = time.perf_counter() + TICK_S
        while True:
            gevent.sleep(max(0.0, due - time.perf_counter()))
            lag = max(0.0, time.perf_counter() - due)
            # A stall of 100 ms hides the ticks it swallowed: each counts, with the wait it would have had.
            missed = lag
            while missed >= 0:
                self._lags.append(missed)
                missed -= TICK_S
            due = time.perf_counter() + TICK_S

    def _ask_for_stamp_lags(self) -> None:
        if self._stamp_lags_since is not None:
            self._stamp_lags.extend(self._stamp_lags_since())

    def _watch_cpu(self) -> None:
        collected = time.perf_counter()
        while True:
            wall, cpu = time.perf_counter(), time.thread_time()
            gevent.sleep(1.0)
            now = time.perf_counter()
            self._ask_for_stamp_lags()
            self._cpu.append((time.thread_time() - cpu) / (now - wall))
            if now - collected > COLLECT_EVERY_S:
                # Only what was made since the start is looked at (the rest is frozen): a few ms, counted as lag.
                gc.collect()
                collected = time.perf_counter()

    def _on_gc(self, phase: str, _info: dict[str, Any]) -> None:
        if phase == "start":
            self._pause_began = time.perf_counter_ns()
        else:
            self._pauses.append((time.perf_counter_ns() - self._pause_began) / 1e9)
