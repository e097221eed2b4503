"""A worker of a fleet: sends its share, keeps its own file of records, and reports to the master."""

from __future__ import annotations

import itertools
import re
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import msgspec
from locust.runners import WorkerRunner

from asr_load.errors import InputError
from asr_load.http.self_check import Reader
from asr_load.load import locust_internals, messages
from asr_load.load.messages import (
    ArrivalPlan,
    Done,
    FleetTest,
    Report,
    ShareDone,
    TimeAnswer,
    TimeQuestion,
    send_to_master,
)
from asr_load.load.run import Run
from asr_load.load.target import Targets
from asr_load.results.folders import RESULTS
from asr_load.results.record_file import WORKER_RECORDS, RecordFile
from asr_load.results.runfile import WorkerInfo, read_run
from asr_load.schedule.work import ArrivalAssignment, Share, Turn
from asr_load.settings.settings import Settings
from asr_load.text import visible

CLOCK_ROUNDS, CLOCK_FIRST_S, CLOCK_EVERY_S = 8, 0.1, 2.0
"""A worker asks for the master's time CLOCK_ROUNDS times every CLOCK_FIRST_S, and then every CLOCK_EVERY_S."""

ROUNDS_KEPT = 32
"""Number of rounds to keep: one minute at a round every two seconds, in which no clock drifts by a millisecond."""


class Offset(NamedTuple):
    """Seconds to add to a worker's times to get the master's, and their maximum error."""

    seconds: float
    error: float


class ClockOffset:
    """Estimates the offset of a worker's clock from its master's. Times are in nanoseconds.

    As in NTP (RFC 5905, section 8): if a question leaves at t1 and returns at t4 with the master's time t2, the offset
    is t2 - (t1 + t4) / 2, with an error of at most half the round trip. Messages wait in busy event loops, so the
    estimate is that of the fastest of many rounds.
    """

    def __init__(self) -> None:
        self._rounds: deque[Offset] = deque(maxlen=ROUNDS_KEPT)

    def add(self, sent: int, answered: int, received: int) -> None:
        """Add a round: when the question left and its answer arrived by the worker's clock, and the master's time."""
        if received < sent:  # the clock was set back in between
            return
        self._rounds.append(Offset((answered - (sent + received) / 2) / 1e9, (received - sent) / 2e9))

    @property
    def best(self) -> Offset | None:
        """The estimate of the fastest round; None before the first."""
        return min(self._rounds, key=lambda offset: offset.error, default=None)


class Worker:
    """A worker's part of a test. Raises InputError if this worker differs from the master in its data, trace or
    headers."""

    def __init__(
        self,
        runner: WorkerRunner,
        settings: Settings,
        targets: Targets,
        *,
        test: FleetTest,
        reader: Reader,
    ) -> None:
        self._runner = runner
        self.test = test
        number = test.numbers[runner.client_id]
        _check_alike(number, test, settings, targets)
        self._begins_ns: int | None = test.begins_ns if settings.loop.open else None
        self._plan, self._assignment = test.plan, ArrivalAssignment(test.plan.assignment)
        share = Share(number, test.workers)
        turn: Turn = share.next
        if settings.loop.open:
            turn = lambda after: self._assignment.next(number, after)  # noqa: E731
        elif share.late and settings.requests:
            turn = lambda _: None  # noqa: E731 (only the workers of the start share a limited number of requests)
        folder = own_folder(test.folder, settings.results or RESULTS, test.id)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = RecordFile(folder / WORKER_RECORDS.format(number))
        self._unsent: list[bytes] = []
        """Lines of records for the next report."""
        self._clock, self._rounds = ClockOffset(), 0
        self._final_report: WorkerInfo | None = None
        self.run = Run(
            runner,
            settings,
            targets,
            share=share,
            turn=turn,
            reader=reader,
            id=test.id,
            file=self._file,
            show=lambda _, lines: self._unsent.extend(lines),
            on_done=lambda: send_to_master(runner, ShareDone()),
        )
        self.run.start()
        if test.plan.stages:
            self.run.reschedule(test.plan.stages)
        self._asking = gevent.spawn(self._ask_for_the_time)

    def _ask_for_the_time(self) -> None:
        for number in itertools.count():
            gevent.sleep(CLOCK_FIRST_S if number < CLOCK_ROUNDS else CLOCK_EVERY_S)
            send_to_master(self._runner, TimeQuestion(self.run.now_ns()))

    def take_time(self, answer: TimeAnswer) -> None:
        """Process the master's answer to a question for its time."""
        self._clock.add(answer.sent, answer.answered, self.run.now_ns())
        self.take_plan(answer.plan)
        self._rounds += 1
        best = self._clock.best
        if self._begins_ns is not None and best is not None and self._rounds >= CLOCK_ROUNDS:
            # Convert the master's start time to this process's clock.
            until_then = self._begins_ns - round(best.seconds * 1e9) - self.run.now_ns()
            self.run.queue.begin(time.perf_counter_ns() + until_then)
            self._begins_ns = None

    def take_plan(self, plan: ArrivalPlan) -> None:
        """Process a change of the assignment of arrivals, or of their rate."""
        if plan == self._plan:
            return
        before, self._plan = self._plan, plan
        self._assignment = ArrivalAssignment(plan.assignment)
        if plan.stages != before.stages:
            self.run.reschedule(plan.stages)
        self.run.reconsider()

    def report(self, data: dict[str, Any]) -> None:
        """Add new records and this worker's health to a report of Locust to the master."""
        records, self._unsent = self._unsent, []
        info = self._final_report or self._with_offset(self.run.report())
        data[messages.REPORT] = messages.encode(Report(info, records))

    def _with_offset(self, info: WorkerInfo) -> WorkerInfo:
        best = self._clock.best
        if best is None:
            return info
        return msgspec.structs.replace(info, master_offset_s=best.seconds, master_offset_error_s=best.error)

    def stop(self) -> None:
        """End the test in this process, and send the final report."""
        self._asking.kill()
        self._final_report = self._with_offset(self.run.close())
        self._file.close()
        locust_internals.send_last_report(self._runner)
        send_to_master(self._runner, Done())


def _check_alike(number: int, test: FleetTest, settings: Settings, targets: Targets) -> None:
    """Raise InputError if this worker differs from the master in its data, trace or headers."""
    for user_class, manifest in test.manifests.items():
        if targets.manifests[user_class] != manifest:
            folder = targets[user_class].shards.folder
            raise InputError(f"worker {number} has other data in {folder} than the master: prepare it again there")
    if settings.loop.trace_sha256 != test.trace_sha256:
        raise InputError(
            f"worker {number} has a different {settings.loop.trace} than the master: copy the master's file there"
        )
    if lacking := sorted(set(test.headers) - set(settings.headers)):
        # The master does not send its secrets. A worker without them would measure responses with status 401.
        raise InputError(
            f"worker {number} lacks the header {lacking[0]} of the master's requests: start it with the same"
            " OPENAI_API_KEY or --api-key, --header and --host"
        )


def own_folder(requested: str, results: Path, id: str) -> Path:
    """The folder for a worker's own records, given the master's folder and the worker's --results. Raises InputError.

    That is the master's folder if it is below the worker's --results, or already holds the test, as on the same
    machine; else a folder of the same name below the worker's --results.
    """
    folder = Path(requested)
    place, home = folder.resolve(), results.resolve()
    further = re.fullmatch(re.escape(home.name) + r"-\d+", place.name)  # NAME-2, the folder of a second test
    if place == home or home in place.parents or (further and place.parent == home.parent):
        return folder
    try:
        if read_run(folder).id == id:
            return folder
    except InputError:
        pass
    if not re.fullmatch(r"[\w][\w .+=@-]{0,200}", place.name):
        raise InputError(f"the master sent an invalid results folder: {visible(requested)[:200]!r}")
    return results / place.name
