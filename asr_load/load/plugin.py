"""The state of asr-load in one of Locust's environments: it starts and ends the tests."""

from __future__ import annotations

import logging
import sys
import time
from argparse import Namespace
from datetime import datetime
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.runners import MasterRunner, Runner, WorkerRunner

from asr_load import git_state
from asr_load.errors import InputError
from asr_load.http import descriptors
from asr_load.http.self_check import choose
from asr_load.load import locust_internals
from asr_load.load.checks import Checks, check_new
from asr_load.load.master import Master
from asr_load.load.messages import Refusal, fleet_test, send_to_master
from asr_load.load.reports import Reports
from asr_load.load.run import Run
from asr_load.load.run_store import RunStore
from asr_load.load.search import Stepper, for_search, resumed
from asr_load.load.solo import Solo
from asr_load.load.target import Targets
from asr_load.load.worker import Worker
from asr_load.results.folders import RESULTS, folder_name, load_name, new_folder
from asr_load.results.runfile import Invocation
from asr_load.settings.commandline import shown_command
from asr_load.settings.settings import Settings

logger = logging.getLogger(__name__)

WORKERS_S = 5.0
"""Seconds that a start from the web UI waits for workers."""

NO_SHAPE = "none"
"""Value of a shape's option for no shape."""


class Plugin:
    """The state of asr-load for one of Locust's environments, from its `init` event on."""

    def __init__(
        self,
        environment: Environment,
        options: Namespace,
        runner: Runner,
        checks: Checks,
        server_info: dict[str, Any],
    ) -> None:
        self.environment, self.options, self.runner, self.checks = environment, options, runner, checks
        self._results = options.results
        self.role: Solo | Master | Worker | None = None
        """This process's part of the running test; None without one."""
        self.store: RunStore | None = None
        """The records of the running test, else of the last one."""
        self.folder: Path | None = None
        """The results folder of the last test that was to start."""
        self.reports = Reports(environment, options, runner)
        self.stepper: Stepper | None = None
        """Controls the load while a search for capacity runs."""
        self.server_info = server_info
        """What the server reported about itself before the next test."""
        self.stopped_by = 0
        """The number of the signal that ended this process's tests; 0 before that."""
        self.took_part = False
        """Whether a test has begun in this process."""
        self.starting = False
        """Whether a test is starting."""
        self.quitting = False
        """Whether Locust is shutting this process down."""
        self.at_rest = Event()
        """Set unless a test is ending."""
        self.at_rest.set()
        self.ready = Event()
        """Set when users can get the running test."""
        self.first_limit: float | None = None
        """The run time of a test that starts automatically in a process with a web UI."""
        self.coming_back: tuple[set[str], float] = set(), 0.0
        """The last test's workers, which disconnect for a moment, and until when to wait for them (time.monotonic)."""
        self._limit: gevent.Greenlet[..., Any] | None = None
        """Ends a test of the web UI after its run time."""
        self._shape, self._stage = environment.shape_class, ""
        self.choose_shape()
        if options.autostart and not options.headless:
            # Locust's timer would end any test that is running by then.
            self.first_limit, options.run_time = options.run_time, None

    def choose_shape(self) -> None:
        """Let Locust use the locustfile's shape only if the options choose one. By default, it uses any it finds."""
        if option := getattr(self._shape, "option", ""):
            self.environment.shape_class = None if getattr(self.options, option) == NO_SHAPE else self._shape

    def check(self) -> tuple[Settings, Targets]:
        """Check the options. Returns the test's settings and targets. Raises InputError before anything is sent."""
        settings, targets = self.checks.check(self.options, self.environment.host)
        # Use the checked host, which has no trailing slash and no password.
        self.environment.host = self.options.host = settings.host
        self.choose_shape()
        if settings.results is not None and self.folder is None:
            check_new(settings.results)
        return settings, targets

    def limit(self, seconds: float | None) -> None:
        """End the running or starting test `seconds` from now; None: never."""
        if self._limit is not None:
            self._limit.kill(block=False)
        self._limit = None if seconds is None else gevent.spawn_later(seconds, self._end_in_time)

    def _end_in_time(self) -> None:
        self._limit = None  # otherwise the end of the test would kill this greenlet
        logger.info("the run time is over: stopping the test")
        self._end_test()

    def start(self) -> None:
        """Start this process's part of a test. Without one, users find no test and stop."""
        if self.stopped_by:
            return  # a signal arrived first
        self.starting = True
        try:
            if isinstance(self.runner, WorkerRunner):
                self.role = self._new_worker(self.runner)
            else:
                self._start()
            self.took_part = True
        except (InputError, OSError) as error:
            if isinstance(self.runner, WorkerRunner):  # the master ends the test
                logger.error("%s", error)
                send_to_master(self.runner, Refusal(str(error)))
            else:  # the form was checked before, but the disk may be full, for example
                logger.error("the test cannot start: %s", error)
                self.environment.process_exit_code = 2
                gevent.spawn(self._end_test)
        finally:
            self.starting = False

    def _start(self) -> None:
        settings, targets = self.check()
        if self.checks.searching:
            settings = for_search(settings)
        role = self.role = self._new_role(settings, targets)
        self.server_info = {}
        self.store = role.store
        if self.stepper is not None:
            self.stepper.attach(role)
        if self._stage:
            self.store.enter_stage(self._stage)
        if self.first_limit is not None:
            self.limit(self.first_limit)
            self.first_limit = None

    def _new_role(self, settings: Settings, targets: Targets) -> Solo | Master:
        words: dict[str, Any] = {"invocation": self._invocation(settings), "on_done": self._end_test}
        users = self.options.num_users or 1
        if isinstance(self.runner, MasterRunner):
            self.folder = words["folder"] = self._new_folder(settings, targets)
            return Master(self.runner, settings, targets, users=users, **words)
        descriptors.allow(users)
        reader = choose(settings.reader)
        self.folder = words["folder"] = self._new_folder(settings, targets)
        return Solo(self.runner, settings, targets, reader=reader, **words)

    def _new_folder(self, settings: Settings, targets: Targets) -> Path:
        """Create the results folder of a test, named --results or by the model and the load."""
        if settings.results is not None:
            return new_folder(settings.results)
        loop, shape = settings.loop, self._shape_name()
        if self.checks.searching or shape != NO_SHAPE:
            load = "search" if self.checks.searching else shape
        elif loop.stages or loop.trace:
            load = "stages" if loop.stages else "trace"
        else:
            load = load_name(self.options.num_users or 1, loop.rate, realtime=settings.realtime is not None)
        return new_folder(RESULTS / folder_name(targets.first.settings.request.fields.model, load))

    def _new_worker(self, runner: WorkerRunner) -> Worker:
        # Use this worker's --results instead of the master's.
        self.options.results = self._results
        settings, targets = self.checks.check(self.options, self.environment.host)
        if self.checks.searching:
            settings = for_search(settings)
        test = fleet_test(self.options)
        if test is None:
            raise InputError("the master's test lacks asr-load's options: use the same locustfile on both")
        descriptors.allow(-(-(self.options.num_users or 1) // test.workers))
        return Worker(runner, settings, targets, test=test, reader=choose(settings.reader))

    def _invocation(self, settings: Settings) -> Invocation:
        options = self.options
        return Invocation(
            command=shown_command(sys.argv, settings.secrets),
            num_users=options.num_users,
            spawn_rate=options.spawn_rate,
            run_time=self.first_limit or options.run_time,
            exit_code_on_error=options.exit_code_on_error,
            shape=self._shape_name(),
            time_zone=datetime.now().astimezone().isoformat()[-len("+00:00") :],
            git=git_state(),
            server=self.server_info,
        )

    def _shape_name(self) -> str:
        shape = self.environment.shape_class
        if shape is None:
            return NO_SHAPE
        option = getattr(shape, "option", "")
        return str(getattr(self.options, option)) if option else type(shape).__name__

    def stop(self) -> None:
        """End this process's part of the running test, if there is one."""
        self._stage = ""
        self.limit(None)
        if isinstance(self.runner, WorkerRunner):
            # All streams have finished. Locust would let a worker sleep for the stop timeout before it is ready for the
            # next test, which sets it again. Asleep, the worker receives no heartbeat and would exit after a minute.
            self.environment.stop_timeout = 0.0
        try:
            if isinstance(self.role, Worker):
                self.role.stop()
            elif self.role is not None:
                self._stop(self.role)
        finally:
            self.role = None

    def _stop(self, role: Solo | Master) -> None:
        if isinstance(role, Master):
            self.coming_back = role.members, time.monotonic() + WORKERS_S
            if not role.members and self.environment.web_ui is None:
                gevent.spawn(self._end_test)  # after the last worker is gone, Locust ends the test but not the process
        if self.stepper is not None:
            self.reports.capacity = self.stepper.capacity
        self.reports.end_test(role)
        self.stepper = None

    def _end_test(self) -> None:
        options, web_ui = self.options, self.environment.web_ui
        if web_ui is None:
            self.runner.quit()
            return
        locust_internals.stop_starting(web_ui)
        self.runner.stop()
        if options.autostart and options.autoquit != -1:
            gevent.sleep(options.autoquit)
            web_ui.stop()

    def quit(self) -> None:
        """End the test before Locust writes its final reports, so that they include requests that were cut off."""
        self.runner.quit()
        self.stop()
        self.reports.complete(self.stopped_by, took_part=self.took_part)

    def enter_stage(self, name: str) -> None:
        """Note that a shape enters a stage. The first stage precedes the start of the test."""
        self._stage = name
        if isinstance(self.role, Solo | Master):
            self.role.store.enter_stage(name)

    def search_tick(self, users: int) -> tuple[int, float] | None:
        """The return value of a shape's tick during a search, for the current number of users. Raises InputError."""
        if self.stepper is None:  # the next test belongs to a new search
            settings, targets = self.check()
            resume = self.options.resume
            steps = resumed(Path(resume), settings, targets.data_sha256) if resume else []
            self.stepper = Stepper(settings, self.options.num_users or 1, self.options.step_time, steps)
        return self.stepper.tick(users)

    @property
    def run(self) -> Run | None:
        """The running test in this process; None without one, and in a master."""
        return self.role.run if isinstance(self.role, Solo | Worker) else None
