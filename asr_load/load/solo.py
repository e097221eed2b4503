"""A process that sends load and collects its records itself."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
from locust.runners import Runner

from asr_load.http.self_check import Reader
from asr_load.load import locust_internals
from asr_load.load.run import Run
from asr_load.load.run_store import RunStore
from asr_load.load.stats import other_failures
from asr_load.load.target import Targets
from asr_load.results.runfile import Invocation, WorkerInfo
from asr_load.results.summary import Summary
from asr_load.schedule.loop import Stage
from asr_load.schedule.work import SOLE
from asr_load.settings.settings import Settings

FIRST_USERS_S = 0.5
"""Seconds until an open loop's arrivals begin: users exist by then."""


class Solo:
    """A test in one process. `on_done` is called when all requests have records, or records cannot be written."""

    def __init__(
        self,
        runner: Runner,
        settings: Settings,
        targets: Targets,
        *,
        reader: Reader,
        folder: Path,
        invocation: Invocation,
        on_done: Callable[[], None],
    ) -> None:
        self._environment = runner.environment
        self.store = new_store(runner, settings, targets, folder=folder, invocation=invocation, on_trouble=on_done)
        self.store.refresh = self._refresh
        self.run = Run(
            runner,
            settings,
            targets,
            share=SOLE,
            turn=SOLE.next,
            reader=reader,
            id=self.store.id,
            file=self.store.file,
            show=lambda records, _: self.store.show(records),
            on_done=on_done,
        )
        self.run.start()
        if settings.loop.open:
            self.run.queue.begin(time.perf_counter_ns() + round(FIRST_USERS_S * 1e9))

    @property
    def elapsed(self) -> float:
        """Seconds since an open loop's arrivals began; negative before."""
        return self.run.queue.elapsed

    def schedule(self, stages: Sequence[Stage]) -> None:
        """Set the rate of an open loop, as stages from the beginning on."""
        self.run.reschedule(stages)

    def stop(self) -> Summary:
        """End the test. Returns the summary."""
        self.store.update_worker(_on_own_clock(self.run.close()))
        return self.store.close()

    def _refresh(self) -> None:
        self.store.update_worker(_on_own_clock(self.run.report()))
        locust_internals.forget_old_seconds(self._environment)


def _on_own_clock(info: WorkerInfo) -> WorkerInfo:
    """The report of a process whose clock is the test's."""
    return msgspec.structs.replace(info, master_offset_error_s=0.0)


def new_store(
    runner: Runner,
    settings: Settings,
    targets: Targets,
    *,
    folder: Path,
    invocation: Invocation,
    on_trouble: Callable[[], None],
) -> RunStore:
    """The store of a new test in a folder. `on_trouble` is called if records cannot be written."""
    store = RunStore(
        secrets.token_hex(6),
        settings,
        targets,
        folder=folder,
        invocation=invocation,
        users=lambda: runner.user_count,
    )
    store.on_trouble = on_trouble
    store.other_failures = partial(other_failures, runner, targets)
    return store
