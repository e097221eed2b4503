"""The roles of a process in a test: alone, or as the master or a worker of a fleet.

Locust loses data at the end of a distributed test. These messages, over Locust's connection, prevent that:

    master                                          worker
    Locust's spawn message, with the   ──────────▶  starts the test with its share
    test and the shares of all workers
                                       ◀──────────  with each of Locust's reports: records, and its health
                                       ◀──────────  asr_share_done, if the number of requests is limited
                                       ◀──────────  asr_clock; the answer has the master's time and the assignment
    asr_assignment, in an open loop    ──────────▶  sends its own arrivals from now on, at this rate
    asr_stop                           ──────────▶  stops its users, and drains
                                       ◀──────────  last report, then asr_done
    waits for all of that before Locust's own stop, which would not wait
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import msgspec
from gevent.event import Event
from locust.env import Environment
from locust.runners import STATE_MISSING, MasterRunner, WorkerRunner

from asr_load.errors import InputError
from asr_load.http.self_check import Reader
from asr_load.load import locust_internals
from asr_load.load.fleet_socket import drop
from asr_load.load.run import Run
from asr_load.load.run_store import RunStore
from asr_load.load.stats import other_failures
from asr_load.load.target import Targets
from asr_load.results.runfile import MAX_WORD, Invocation, WorkerInfo, absurd, read_run
from asr_load.results.summary import Summary
from asr_load.schedule.arrivals import Stage
from asr_load.schedule.assignment import ArrivalAssignment
from asr_load.schedule.work import SOLE, Share, Turn
from asr_load.settings.settings import RESULTS, Settings
from asr_load.stream.record import WORKER_RECORDS, RecordFile
from asr_load.text import count_of, visible

logger = logging.getLogger(__name__)

KEY = "asr_load"
"""The key of this package's data in Locust's reports."""

OPTION = "asr_fleet"
"""The internal option that carries a test and its shares to workers."""

FINAL_REPORT_S = 10.0
"""Seconds after the stop timeout for a worker's final report."""

FIRST_USERS_S, BEGIN_S = 0.5, 2.0
"""Seconds until arrivals begin, alone and in a fleet: users exist by then, and workers have compared their clocks."""

NOTICE_S, JOIN_S = 1.0, 3.0
"""Seconds between the announcement of a change and its first arrival; longer if a worker joins, which needs time."""

CLOCK_ROUNDS, CLOCK_FIRST_S, CLOCK_EVERY_S = 8, 0.1, 2.0
"""A worker asks for the master's time CLOCK_ROUNDS times every CLOCK_FIRST_S, and then every CLOCK_EVERY_S."""


class Solo:
    """A process that sends load and collects its records itself."""

    def __init__(
        self,
        environment: Environment,
        settings: Settings,
        targets: Targets,
        *,
        reader: Reader,
        folder: Path,
        invocation: Invocation,
        on_done: Callable[[], None],
    ) -> None:
        id = secrets.token_hex(6)
        self.store: RunStore | None = RunStore(
            id, settings, targets, folder=folder, invocation=invocation, users=lambda: _user_count(environment)
        )
        store = self.store
        store.on_trouble = on_done
        store.other_failures = partial(other_failures, environment, targets)
        self.run: Run | None = Run(
            environment,
            settings,
            targets,
            reader=reader,
            id=id,
            worker=SOLE.worker,
            of=SOLE.of,
            turn=SOLE.next,
            file=store.file,
            show=lambda records, _: store.show(records),
            on_done=on_done,
        )
        run = self.run
        run.start()
        run.clock.add(0, 0, 0)  # all records use this process's clock
        if settings.loop.open:
            run.begin(time.perf_counter_ns() + round(FIRST_USERS_S * 1e9))

        def refresh() -> None:
            store.update_worker(run.report())
            locust_internals.forget_old_seconds(environment)

        store.refresh = refresh
        self._drains = bool(environment.stop_timeout)

    @property
    def elapsed(self) -> float:
        """Seconds since an open loop's arrivals began; negative before."""
        assert self.run is not None
        return self.run.elapsed

    def schedule(self, stages: Sequence[Stage]) -> None:
        """Set the rate of an open loop, as stages from the beginning on."""
        assert self.run is not None
        self.run.reschedule(stages)

    def stopping(self) -> None:
        """Prepare for the end of the test."""
        if self.run is not None:
            self.run.stopping()
            if not self._drains:
                self.run.end_watch()

    def stop(self) -> Summary | None:
        """End the test in this process. Returns the summary."""
        assert self.run is not None
        assert self.store is not None
        self.store.update_worker(self.run.close())
        return self.store.close()


class Master:
    """The master of a fleet: distributes the work, collects the records, and waits for all workers' final reports.

    Raises InputError if there are fewer users than workers, and each worker needs one to send its share.
    """

    run: Run | None = None

    def __init__(
        self,
        environment: Environment,
        settings: Settings,
        targets: Targets,
        *,
        folder: Path,
        invocation: Invocation,
        on_done: Callable[[], None],
    ) -> None:
        assert isinstance(environment.runner, MasterRunner)
        self._environment, self._runner, self._on_done = environment, environment.runner, on_done
        workers = self._alive()
        users = environment.parsed_options.num_users if environment.parsed_options else None
        if (settings.requests or settings.loop.open) and (users or 1) < len(workers):
            # A worker without a user would never send its share, and the test would never end.
            which = "--requests" if settings.requests else "an open loop"
            there = f"{count_of(len(workers), 'worker')} and {count_of(users or 1, 'user')}"
            raise InputError(f"{which} needs at least one user per worker, but there are {there}: raise -u")
        id = secrets.token_hex(6)
        self.store: RunStore | None = RunStore(
            id, settings, targets, folder=folder, invocation=invocation, users=lambda: _user_count(environment)
        )
        self.store.refresh = self._refresh
        self.store.on_trouble = on_done
        self.store.other_failures = partial(other_failures, environment, targets)
        self._limited, self._loop = bool(settings.requests), settings.loop
        self._numbers: dict[str, int] = {}
        # Locust sends all options when it asks a worker for users, so a worker has its share before its users.
        self._arrivals, self._assignment = settings.loop.make(), ArrivalAssignment([(0, [])])
        self._begins = time.time_ns() + round(BEGIN_S * 1e9)
        self._test = {
            "id": id,
            "folder": str(folder),
            "manifests": targets.manifests,
            "trace": settings.loop.trace_sha256,
            "of": max(len(workers), 1),
            "numbers": self._numbers,
            "begins": self._begins,
            "assignment": self._assignment.plan,
            "stages": [],
            "headers": sorted(settings.headers),
            "model": settings.server_model,
            "dialect": settings.server_dialect,
        }
        vars(environment.parsed_options)[OPTION] = self._test
        self._ending = False
        self._shared_out: set[str] = set()
        self._silent: set[str] = set()
        self._refusals: set[str] = set()
        self._all_said = Event()
        self._wait_until = math.inf
        for worker in sorted(workers):
            self.add_worker(worker)

    def add_worker(self, worker: str) -> None:
        """Give a worker a number, and in an open loop its share of the arrivals."""
        assert self.store is not None
        if (
            worker not in self._numbers and not self._ending
        ):  # a worker announces itself again if a response takes too long
            self._numbers[worker] = len(self._numbers)
            self.store.update_worker(expected(self._numbers[worker], worker.rpartition("_")[0]))  # HOST_ID
            self._share_arrivals(worker)

    def hear(self, worker: str, data: dict[str, Any]) -> None:
        """Process a worker's report. Drops a worker with a malformed or implausible report."""
        assert self.store is not None
        try:
            info = msgspec.convert(data["worker"], WorkerInfo)
            lines = msgspec.convert(data["records"], list[bytes])
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            drop(self._runner, worker, f"its report is malformed ({error})")
            return
        if info.worker != self._numbers.get(worker):
            drop(self._runner, worker, f"it reports as worker {info.worker}")
        elif why := absurd(info):
            drop(self._runner, worker, f"its report is implausible: {why}")
        else:
            # First update its clock offset, which applies to the records' times.
            self.store.update_worker(info)
            self.store.add_records(lines, info)

    def share_done(self, worker: str) -> None:
        """Note that a worker has records of all requests of its share."""
        self._shared_out.add(worker)
        self._end_if_done()

    def done(self, worker: str) -> None:
        """Note a worker's final report. Forgets a worker that never had a part in the test."""
        assert self.store is not None
        if worker in self._silent:
            self.store.drop_worker(self._numbers[worker])
        self._silent.discard(worker)
        if not self._silent:
            self._all_said.set()

    def answer_time(self, worker: str, data: dict[str, int]) -> None:
        """Answer a worker's question for the time immediately."""
        answer = {"sent": data["sent"], "answered": time.time_ns(), **self._announcement}
        self._runner.send_message("asr_clock", answer, client_id=worker)

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
        return (time.time_ns() - self._begins) / 1e9

    def schedule(self, stages: Sequence[Stage]) -> None:
        """Announce the rate of an open loop, as stages from the beginning on."""
        self._arrivals = self._loop.make(stages)
        self._test["stages"] = [list(stage) for stage in stages]
        self._announce()

    @property
    def members(self) -> set[str]:
        """Locust's ids of the connected workers that take part."""
        return self._alive() & set(self._numbers)

    def stopping(self) -> None:
        """Let the workers drain and report, before Locust stops them without waiting."""
        locust_internals.take_no_workers(self._runner)
        self._ending = True
        # Include workers in the state "ready", which may still be starting the test.
        self._silent = self.members
        if not self._silent:
            return
        self._all_said.clear()  # a worker that ended before the others may have set it
        for worker in self._silent:
            self._runner.send_message("asr_stop", None, client_id=worker)
        self._wait_until = time.monotonic() + self._environment.stop_timeout + FINAL_REPORT_S
        while not self._all_said.wait(0.5):
            # Do not wait for missing workers.
            self._silent &= self._alive()
            self.done("")
            if time.monotonic() > self._wait_until:
                silent = count_of(len(self._silent), "worker")
                logger.error("no final report from %s: see the summary", silent)
                break

    def cut(self) -> None:
        """Let the workers cut off requests in flight, and wait only for their final reports."""
        self._runner.send_message("asr_cut")
        self._wait_until = min(self._wait_until, time.monotonic() + FINAL_REPORT_S)

    def stop(self) -> Summary | None:
        """End the test. Returns the summary."""
        assert self.store is not None
        self._miss_who_is_gone()
        return self.store.close()

    def _miss_who_is_gone(self) -> None:
        assert self.store is not None
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
        self._test["assignment"] = self._assignment.plan
        self._announce()

    @property
    def _announcement(self) -> dict[str, Any]:
        return {"assignment": self._assignment.plan, "stages": self._test["stages"]}

    def _announce(self) -> None:
        self._runner.send_message("asr_assignment", self._announcement)

    def _refresh(self) -> None:
        locust_internals.forget_old_seconds(self._environment)
        self._miss_who_is_gone()
        self._share_arrivals()
        self._end_if_done()

    def _end_if_done(self) -> None:
        members = self.members
        if self._limited and members and members <= self._shared_out:
            self._limited = False
            gevent.spawn(self._on_done)

    def _alive(self) -> set[str]:
        return {client.id for client in self._runner.clients.values() if client.state != STATE_MISSING}


class Worker:
    """A worker of a fleet: sends its share, keeps its own file of records, and reports to the master."""

    store: RunStore | None = None

    def __init__(self, environment: Environment, settings: Settings, targets: Targets, reader: Reader) -> None:
        """Start with the share that the master sent. Raises InputError if this worker differs from the master in its
        data, trace or headers."""
        assert isinstance(environment.runner, WorkerRunner)
        self._runner = environment.runner
        test = getattr(environment.parsed_options, OPTION)
        number = test["numbers"][self._runner.client_id]
        for user_class, manifest in test["manifests"].items():
            if targets.manifests[user_class] != manifest:
                folder = targets[user_class].shards.folder
                raise InputError(f"worker {number} has other data in {folder} than the master: prepare it again there")
        if settings.loop.trace_sha256 != test["trace"]:
            raise InputError(
                f"worker {number} has a different {settings.loop.trace} than the master: copy the master's file there"
            )
        if lacking := sorted(set(test["headers"]) - set(settings.headers)):
            # The master does not send its secrets. A worker without them would measure responses with status 401.
            raise InputError(
                f"worker {number} lacks the header {lacking[0]} of the master's requests: start it with the same"
                " OPENAI_API_KEY or --api-key, --header and --host"
            )
        self.fleet: int = test["of"]
        """Number of workers at the start."""
        self._drains = bool(environment.stop_timeout)
        self._begins: int | None = test["begins"] if settings.loop.open else None
        self._assignment = ArrivalAssignment(test["assignment"])
        self._heard = test["assignment"], test["stages"]
        share = Share(number, test["of"])
        # A limited number of requests is shared only by the workers that were there from the start.
        closed: Turn = (lambda _: None) if share.late and settings.requests else share.next
        folder = own_folder(test["folder"], settings.results or RESULTS, test["id"])
        folder.mkdir(parents=True, exist_ok=True)
        self._file = RecordFile(folder / WORKER_RECORDS.format(int(number)))
        self._unsent: list[bytes] = []
        self._rounds = 0
        self._final_report: WorkerInfo | None = None
        self.run: Run | None = Run(
            environment,
            settings,
            targets,
            reader=reader,
            id=test["id"],
            worker=number,
            of=test["of"],
            turn=(lambda after: self._assignment.next(number, after)) if settings.loop.open else closed,
            file=self._file,
            show=lambda _, lines: self._unsent.extend(lines),
            on_done=lambda: self._runner.send_message("asr_share_done", None),
        )
        self.run.start()
        if test["stages"]:
            self._announced(test["stages"])
        self._clock = gevent.spawn(self._ask_for_the_time)

    def _ask_for_the_time(self) -> None:
        for number in itertools.count():
            gevent.sleep(CLOCK_FIRST_S if number < CLOCK_ROUNDS else CLOCK_EVERY_S)
            assert self.run is not None
            self._runner.send_message("asr_clock", {"sent": self.run.now_ns()})

    def tell_time(self, data: dict[str, Any]) -> None:
        """Process the master's answer to a question for its time."""
        assert self.run is not None
        self.run.clock.add(data["sent"], data["answered"], self.run.now_ns())
        # The answer repeats the assignment, because this process may have missed an announcement while it started.
        self.share_arrivals(data)
        self._rounds += 1
        best = self.run.clock.best
        if self._begins is not None and best is not None and self._rounds >= CLOCK_ROUNDS:
            # Convert the master's start time to this process's clock.
            until_then = self._begins - round(best.seconds * 1e9) - self.run.now_ns()
            self.run.begin(time.perf_counter_ns() + until_then)
            self._begins = None

    def share_arrivals(self, data: dict[str, Any]) -> None:
        """Process a change of the assignment of arrivals, or of their rate."""
        assert self.run is not None
        said = data["assignment"], data["stages"]
        if said != self._heard:
            if data["stages"] != self._heard[1]:
                self._announced(data["stages"])
            self._heard, self._assignment = said, ArrivalAssignment(data["assignment"])
            self.run.reconsider()

    def _announced(self, stages: list[list[float]]) -> None:
        assert self.run is not None
        self.run.reschedule([Stage(*stage) for stage in stages])

    def report(self, data: dict[str, Any]) -> None:
        """Add new records and this worker's health to a report to the master."""
        assert self.run is not None
        records, self._unsent = self._unsent, []
        data[KEY] = {"records": records, "worker": msgspec.to_builtins(self._final_report or self.run.report())}

    def stopping(self) -> None:
        """Prepare for the end of the test."""
        if self.run is not None:
            self.run.stopping()
            if not self._drains:
                self.run.end_watch()

    def stop(self) -> Summary | None:
        """End the test in this process, and send the final report."""
        assert self.run is not None
        self._clock.kill()
        self._final_report = self.run.close()
        self._file.close()
        locust_internals.send_last_report(self._runner)
        self._runner.send_message("asr_done", None)
        return None


def own_folder(asked: str, own: Path, id: str) -> Path:
    """The folder for a worker's own records, given the folder that its master named. Raises InputError.

    That is the master's folder if it is below the worker's --results, or already holds the test, as on the same
    machine; else a folder of the same name below the worker's --results.
    """
    folder = Path(asked)
    place, home = folder.resolve(), own.resolve()
    further = re.fullmatch(re.escape(home.name) + r"-\d+", place.name)  # NAME-2, the folder of a second test
    if place == home or home in place.parents or (further and place.parent == home.parent):
        return folder
    try:
        if read_run(folder).id == id:
            return folder
    except InputError:
        pass
    if not re.fullmatch(r"[\w][\w .+=@-]{0,200}", place.name):
        raise InputError(f"the master sent an invalid results folder: {visible(asked)[:200]!r}")
    return own / place.name


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


def _user_count(environment: Environment) -> int:
    return 0 if environment.runner is None else environment.runner.user_count
