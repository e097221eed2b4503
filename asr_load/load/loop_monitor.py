"""Monitor this process during a test: the event loop's lag, CPU and garbage collection.

A late loop sends late and, without Linux's stamps, also stamps late, which adds to the server's latencies. So the lag
is measured and kept small: CPython's full collections would block a busy process for tens of ms, so they run at chosen
times.
"""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
import numpy as np

from asr_load.results.live import Histogram
from asr_load.results.runfile import MOST_LATE, ClientHealth, Late
from asr_load.results.sound import LATE_S

TICK_S = 0.02
RECENT = int(10 / TICK_S)
"""Number of samples in ten seconds."""
COLLECT_EVERY_S = 30.0
IO_PATIENCE_S = 0.005


def yield_to_io() -> None:
    """Wait until no socket has data, but at most 5 ms."""
    try:
        with gevent.Timeout(IO_PATIENCE_S) as patience:
            gevent.idle()
    except gevent.Timeout as error:
        if error is not patience:
            raise


class Lags:
    """Statistics of lag samples, in constant memory."""

    def __init__(self) -> None:
        self.all, self.sound = Histogram(), Histogram()
        self.recent: deque[float] = deque(maxlen=RECENT)

    def add(self, lags: list[float]) -> None:
        """Add the samples of about a second, which is sound if none of them is late."""
        values = np.array(lags)
        self.all.add(values)
        if values.max(initial=0.0) <= LATE_S:
            self.sound.add(values)
        self.recent.extend(lags)

    @property
    def sound_p99(self) -> float:
        """The p99 of the sound seconds."""
        return self.sound.percentiles([99])[0] or 0.0

    def figures(self, recent: bool) -> tuple[float, float, float, int]:
        """p50, p99, maximum and number of samples: exact for the last ten seconds, else of all within 0.25 %."""
        if recent and self.recent:
            p50, p99 = np.percentile(list(self.recent), [50, 99]).tolist()  # numpy converts a deque slowly
            return p50, p99, max(self.recent), len(self.recent)
        p50, p99 = (value or 0.0 for value in self.all.percentiles([50, 99]))
        return p50, p99, self.all.max, self.all.n


class _Stall(NamedTuple):
    """A stall of the loop or the reading thread, in seconds of time.perf_counter; `lag` is the delay at its end."""

    begin: float
    end: float
    lag: float


class LateSeconds:
    """The seconds in which a process was late, merged into stretches of consecutive seconds. If there are more than
    MOST_LATE stretches, near ones are merged, including the seconds between them."""

    def __init__(self) -> None:
        self.stretches: list[Late] = []
        self._apart = 0.0
        """Minimum distance of two stretches, in seconds."""

    def add(self, begin: float, end: float, lag: float, cpu: float) -> None:
        """Add a stall, with times since the epoch. Every second that it touches is late."""
        self._put(Late(float(math.floor(begin)), math.floor(end) + 1.0, lag, cpu))
        while len(self.stretches) > MOST_LATE:
            self._apart += 1
            kept, self.stretches = self.stretches, []
            for stretch in kept:
                self._put(stretch)

    def _put(self, new: Late) -> None:
        last = self.stretches[-1] if self.stretches else None
        if last is None or new.begin > last.end + self._apart:
            self.stretches.append(new)
            return
        ends = max(last.end, new.end), max(last.lag, new.lag), max(last.cpu, new.cpu)
        self.stretches[-1] = Late(min(last.begin, new.begin), *ends)


class LoopMonitor:
    """Monitors from `start` to `stop`. `stamp_lags` returns the lags of the reading thread since its last call; None if
    the loop reads. `epoch_s` plus time.perf_counter is the time since the epoch."""

    def __init__(self, stamp_lags: Callable[[], list[float]] | None = None, epoch_s: float = 0.0) -> None:
        self._stamp_lags_since, self._epoch_s = stamp_lags, epoch_s
        self._final: ClientHealth | None = None
        self._stopping = False

    def start(self) -> None:
        self._lags = Lags()
        self._stamp_lags = self._lags if self._stamp_lags_since is None else Lags()
        if self._stamp_lags_since is not None:
            self._stamp_lags_since()
        self._cpu: deque[float] = deque(maxlen=10)
        self._cpu_max = 0.0
        self._late = LateSeconds()
        self._stalls: list[_Stall] = []
        """Stalls of the current second."""
        self._longest_pause = self._paused = 0.0
        self._pause_began = 0
        gc.freeze()  # including garbage, because a collection now would delay the first request
        # Collections of young objects, which are fast, continue; `_watch` runs the full ones.
        self._thresholds = gc.get_threshold()
        gc.set_threshold(20_000, 20, 1_000_000)
        gc.callbacks.append(self._on_gc)
        self._began = time.perf_counter(), time.thread_time(), time.process_time()
        self._noted = self._began[0]
        self._second_began = self._began[:2]
        self._watcher = gevent.spawn(self._watch)
        # Use a timer of the loop: waking a greenlet fifty times a second would slow all streams.
        self._timer = gevent.get_hub().loop.timer(TICK_S, TICK_S)
        self._ticks: list[float] = []
        self._due = time.perf_counter() + TICK_S
        self._timer.again(self._tick)

    def stop(self) -> None:
        """Stop monitoring. May be called more than once."""
        if self._stopping:
            return
        self._stopping = True  # before other greenlets run
        self._watcher.kill()
        if time.perf_counter() > self._due:
            self._tick()  # the loop stood still until now
        self._timer.stop()
        self._timer.close()
        self._note_second()
        wall, cpu, _ = self._spent()
        self._final = self._health(cpu / wall, self._cpu_max if self._cpu else cpu / wall, recent=False)
        gc.callbacks.remove(self._on_gc)
        gc.set_threshold(*self._thresholds)
        gc.unfreeze()
        gc.collect()

    def health(self) -> ClientHealth:
        """The health over the last ten seconds while monitoring, for the web page; after that, over the whole test."""
        if self._final is not None:
            return self._final
        self._note_lags()
        return self._health(sum(self._cpu) / max(len(self._cpu), 1), max(self._cpu, default=0.0), recent=True)

    def _spent(self) -> tuple[float, ...]:
        now = time.perf_counter(), time.thread_time(), time.process_time()
        return tuple(ended - began for ended, began in zip(now, self._began, strict=True))

    def _health(self, cpu_mean: float, cpu_max: float, recent: bool) -> ClientHealth:
        wall, _, cpu_process = self._spent()
        p50, p99, longest, samples = self._lags.figures(recent)
        _, stamp_p99, stamp_longest, _ = self._stamp_lags.figures(recent)
        return ClientHealth(
            loop_lag_p50=p50,
            loop_lag_p99=p99,
            loop_lag_max=longest,
            loop_lag_samples=samples,
            stamp_lag_p99=stamp_p99,
            stamp_lag_max=stamp_longest,
            cpu_mean=cpu_mean,
            cpu_max=cpu_max,
            cpu_process=cpu_process / wall,
            watched_s=wall,
            gc_pause_max=self._longest_pause,
            gc_pause_total=self._paused,
            late=list(self._late.stretches),
            sound_loop_lag_p99=self._lags.sound_p99,
            sound_stamp_lag_p99=self._stamp_lags.sound_p99,
        )

    def _tick(self) -> None:
        now = time.perf_counter()
        lag = now - self._due
        self._ticks.append(max(0.0, lag))
        if lag > LATE_S:
            self._stalls.append(_Stall(self._due, now, lag))
        self._due += TICK_S
        if lag >= TICK_S:
            # A stall swallows ticks: count each of them with the delay that it would have had.
            self._ticks += np.arange(lag - TICK_S, 0.0, -TICK_S).tolist()
            self._due = now + TICK_S
            self._timer.again(self._tick)

    def _note_lags(self) -> None:
        self._lags.add(self._ticks)
        self._ticks = []
        since, self._noted = self._noted, time.perf_counter()
        if self._stamp_lags_since is not None:
            lags = self._stamp_lags_since()
            self._stamp_lags.add(lags)
            # There is one lag for each tick since then.
            late = ((since + number * TICK_S, lag) for number, lag in enumerate(lags) if lag > LATE_S)
            self._stalls += [_Stall(due, min(due + lag, self._noted), lag) for due, lag in late]

    def _note_second(self) -> float:
        """Evaluate the second that ends now. Returns the loop's share of a core in it."""
        self._note_lags()
        (wall, cpu), self._second_began = self._second_began, (time.perf_counter(), time.thread_time())
        share = (self._second_began[1] - cpu) / max(self._second_began[0] - wall, 1e-9)
        for stall in sorted(self._stalls):
            self._late.add(stall.begin + self._epoch_s, stall.end + self._epoch_s, stall.lag, share)
        self._stalls = []
        return share

    def _watch(self) -> None:
        collected = time.perf_counter()
        while True:
            gevent.sleep(1.0)
            self._cpu.append(self._note_second())
            self._cpu_max = max(self._cpu_max, self._cpu[-1])
            now = time.perf_counter()
            if now - collected > COLLECT_EVERY_S:
                # Objects from before the start are frozen, so this takes only a few ms, which count as lag.
                yield_to_io()
                gc.collect()
                collected = time.perf_counter()

    def _on_gc(self, phase: str, _info: dict[str, Any]) -> None:
        if phase == "start":
            self._pause_began = time.perf_counter_ns()
        else:
            pause = (time.perf_counter_ns() - self._pause_began) / 1e9
            self._paused += pause
            self._longest_pause = max(self._longest_pause, pause)
