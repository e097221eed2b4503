"""The master of a fleet: distributes the work, collects the records, and waits for all workers' final reports."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gevent
import msgspec
from gevent.event import Event
from locust.runners import STATE_MISSING, MasterRunner

from asr_load.errors import InputError
from asr_load.load import locust_internals, messages
from asr_load.load.fleet_socket import drop
from asr_load.load.messages import ArrivalPlan, Cut, FleetTest, Report, Stop, TimeAnswer, TimeQuestion, send_to_workers
from asr_load.load.solo import new_store
from asr_load.load.target import Targets
from asr_load.results.runfile import MAX_WORD, Invocation, WorkerInfo, absurd
from asr_load.results.summary import Summary
from asr_load.schedule.arrivals import arrivals_of
from asr_load.schedule.loop import Stage
from asr_load.schedule.work import ArrivalAssignment
from asr_load.settings.settings import Settings
from asr_load.text import count_of, visible

logger = logging.getLogger(__name__)

FINAL_REPORT_S = 10.0
"""Seconds after the stop timeout for a worker's final report."""

BEGIN_S = 2.0
"""Seconds until arrivals begin: by then, workers have users and have compared their clocks."""

NOTICE_S, JOIN_S = 1.0, 3.0
"""Seconds between the announcement of a change and its first arrival; longer if a worker joins, which needs time."""


class Master:
    """The master's part of a test. Raises InputError if there are fewer users than workers, and each worker needs one
    to send its share."""

    def __init__(
        self,
        runner: MasterRunner,
        settings: Settings,
        targets: Targets,
        *,
        users: int,
        folder: Path,
        invocation: Invocation,
        on_done: Callable[[], None],
    ) -> None:
        self._environment, self._runner, self._on_done = runner.environment, runner, on_done
        workers = self._alive()
        if (settings.requests or settings.loop.open) and users < len(workers):
            # A worker without a user would never send its share, and the test would never end.
            which = "--requests" if settings.requests else "an open loop"
            there = f"{count_of(len(workers), 'worker')} and {count_of(users, 'user')}"
            raise InputError(f"{which} needs at least one user per worker, but there are {there}: raise -u")
        self.store = new_store(runner, settings, targets, folder=folder, invocation=invocation, on_trouble=on_done)
        self.store.refresh = self._refresh
        self._limited, self._loop = bool(settings.requests), settings.loop
        self._arrivals, self._assignment = arrivals_of(settings.loop), ArrivalAssignment([(0, [])])
        self._test = FleetTest(
            id=self.store.id,
            folder=str(folder),
            manifests=targets.manifests,
            trace_sha256=settings.loop.trace_sha256,
            workers=max(len(workers), 1),
            numbers={},
            begins_ns=time.time_ns() + round(BEGIN_S * 1e9),
            plan=ArrivalPlan(self._assignment.plan, []),
            headers=sorted(settings.headers),
            model=settings.server_model,
            dialect=settings.server_dialect,
        )
        self._numbers = self._test.numbers
        self._ending = False
        self._share_done: set[str] = set()
        """Workers that have records of all requests of their shares."""
        self._unreported: set[str] = set()
        """Workers whose final report is missing."""
        self._refusals: set[str] = set()
        self._all_reported = Event()
        self._wait_until = math.inf
        for worker in sorted(workers):
            self.add_worker(worker)
        self._publish_test()

    def _publish_test(self) -> None:
        """Put the test into the options. Locust sends all of them when it asks a worker for users, so a worker has its
        share before its users."""
        vars(self._environment.parsed_options)[messages.TEST] = messages.encode(self._test)

    def add_worker(self, worker: str) -> None:
        """Give a worker a number, and in an open loop its share of the arrivals."""
        # A worker announces itself again if a response takes too long.
        if worker in self._numbers or self._ending:
            return
        self._numbers[worker] = len(self._numbers)
        self._publish_test()
        self.store.update_worker(expected(self._numbers[worker], worker.rpartition("_")[0]))  # HOST_ID
        self._share_arrivals(worker)

    def take_report(self, worker: str, data: object) -> None:
        """Process a worker's report. Drops a worker with a malformed or implausible report."""
        try:
            report = messages.decode(data, Report)
        except msgspec.ValidationError as error:
            drop(self._runner, worker, f"its report is malformed ({error})")
            return
        info = report.worker
        if info.worker != self._numbers.get(worker):
            drop(self._runner, worker, f"it reports as worker {info.worker}")
        elif why := absurd(info):
            drop(self._runner, worker, f"its report is implausible: {why}")
        else:
            # First update its clock offset, which applies to the records' times.
            self.store.update_worker(info)
            self.store.add_records(report.records, info)

    def share_done(self, worker: str) -> None:
        """Note that a worker has records of all requests of its share."""
        self._share_done.add(worker)
        self._end_if_done()

    def done(self, worker: str) -> None:
        """Note a worker's final report. Forgets a worker that never had a part in the test."""
        if worker in self._unreported:
            self.store.drop_worker(self._numbers[worker])
        self._unreported.discard(worker)
        if not self._unreported:
            self._all_reported.set()

    def answer_time(self, worker: str, question: TimeQuestion) -> None:
        """Answer a worker's question for the time immediately."""
        send_to_workers(self._runner, TimeAnswer(question.sent, time.time_ns(), self._test.plan), worker)

    def refuse(self, reason: str) -> None:
        """End the test because a worker cannot take part in it."""
        line = visible(reason[:500])
        if line not in self._refusals:  # many workers may have the same reason
            self._refusals.add(line)
            logger.error("%s", line)
        self._environment.process_exit_code = 2
        gevent.spawn(self._on_done)

    @property
    def elapsed(self) -> float:
        """Seconds since an open loop's arrivals began; negative before."""
        return (time.time_ns() - self._test.begins_ns) / 1e9

    def schedule(self, stages: Sequence[Stage]) -> None:
        """Announce the rate of an open loop, as stages from the beginning on."""
        self._arrivals = arrivals_of(self._loop, stages)
        self._announce(list(stages))

    @property
    def members(self) -> set[str]:
        """Locust's ids of the connected workers that take part."""
        return self._alive() & set(self._numbers)

    def drain(self) -> None:
        """Let the workers drain and report, before Locust stops them without waiting."""
        locust_internals.take_no_workers(self._runner)
        self._ending = True
        # Include workers in the state "ready", which may still be starting the test.
        self._unreported = self.members
        if not self._unreported:
            return
        self._all_reported.clear()  # a worker that ended before the others may have set it
        for worker in self._unreported:
            send_to_workers(self._runner, Stop(), worker)
        self._wait_until = time.monotonic() + self._environment.stop_timeout + FINAL_REPORT_S
        while not self._all_reported.wait(0.5):
            # Do not wait for missing workers.
            self._unreported &= self._alive()
            self.done("")
            if time.monotonic() > self._wait_until:
                missing = count_of(len(self._unreported), "worker")
                logger.error("no final report from %s: see the summary", missing)
                break

    def cut(self) -> None:
        """Let the workers cut off requests in flight, and wait only for their final reports."""
        send_to_workers(self._runner, Cut())
        self._wait_until = min(self._wait_until, time.monotonic() + FINAL_REPORT_S)

    def stop(self) -> Summary:
        """End the test. Returns the summary."""
        self._mark_lost_workers()
        return self.store.close()

    def _mark_lost_workers(self) -> None:
        alive = self._alive()
        for worker, number in self._numbers.items():
            if worker not in alive:
                self.store.mark_lost(number)

    def _share_arrivals(self, joining: str | None = None) -> None:
        """Assign future arrivals to the connected workers: once a second, and when one joins. Locust announces a
        joining worker before it lists it, and asks it for users immediately after."""
        alive, notice = self._alive(), NOTICE_S
        if joining is not None and joining not in alive:
            alive, notice = alive | {joining}, JOIN_S
        members = sorted(number for worker, number in self._numbers.items() if worker in alive)
        if self._arrivals is None or not members or members == self._assignment.plan[-1][1]:
            return
        ahead = self.elapsed + notice
        first = self._arrivals.number_at(ahead) if ahead > 0 else 0
        self._assignment = self._assignment.changed(first, members)
        self._announce(self._test.plan.stages)

    def _announce(self, stages: list[Stage]) -> None:
        self._test.plan = ArrivalPlan(self._assignment.plan, stages)
        self._publish_test()
        send_to_workers(self._runner, self._test.plan)

    def _refresh(self) -> None:
        locust_internals.forget_old_seconds(self._environment)
        self._mark_lost_workers()
        self._share_arrivals()
        self._end_if_done()

    def _end_if_done(self) -> None:
        members = self.members
        if self._limited and members and members <= self._share_done:
            self._limited = False
            gevent.spawn(self._on_done)

    def _alive(self) -> set[str]:
        return {client.id for client in self._runner.clients.values() if client.state != STATE_MISSING}


def expected(worker: int, host: str) -> WorkerInfo:
    """The info of a worker that has not reported yet. If it never does, it counts as lost."""
    return WorkerInfo(
        worker=worker,
        host=visible(host)[:MAX_WORD],
        reader="unknown",
        cores=0,
        users=0,
        connections=0,
        connecting_s=0.0,
        connecting_max_s=0.0,
        started=0,
        recorded=0,
        ended_at=None,
        clock_offset_s=0.0,
        master_offset_s=0.0,
        master_offset_error_s=None,
        ended=False,
        health=None,
    )
