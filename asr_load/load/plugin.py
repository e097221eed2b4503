"""The state of asr-load in one of Locust's environments: checks, starts and ends tests, and reports their results."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.runners import MasterRunner, Runner, WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC

from asr_load import git_state, signals
from asr_load.errors import InputError
from asr_load.http import descriptors
from asr_load.http.self_check import choose
from asr_load.load import locust_internals, stats
from asr_load.load.checks import Checks, check_new
from asr_load.load.ending import exit_code, write_locust_report
from asr_load.load.fleet import Master, Solo, Worker
from asr_load.load.preflight import ask_before_test
from asr_load.load.run import Run
from asr_load.load.run_store import RunStore
from asr_load.load.search import Stepper, for_search, resumed
from asr_load.load.target import Targets, host_of_classes
from asr_load.options.form import LOCUSTS, Form, changed, read_form
from asr_load.report.page import write_report
from asr_load.results.capacity import Capacity
from asr_load.results.runfile import Invocation
from asr_load.results.summary import Summary
from asr_load.settings.commandline import given_options, shown_command
from asr_load.settings.credentials import Credentials
from asr_load.settings.settings import (
    RESULTS,
    Settings,
    check_host,
    split_host,
)
from asr_load.shipped import command, locust_command
from asr_load.stream.record import RECORDS, read_records

logger = logging.getLogger(__name__)

WORKERS_S, ENDING_S = 5.0, 2.0
"""Seconds that a start from the web UI waits for workers, and for the previous test to end."""


class Plugin:
    """The state of asr-load for one of Locust's environments, from its `init` event on."""

    def __init__(self, environment: Environment, options: Namespace, runner: Runner) -> None:
        self.environment, self.options, self.runner = environment, options, runner
        given = given_options() or options
        if not environment.host:
            environment.host = given.host = options.host = self._host_of_classes()
        self._credentials, self._results = Credentials(given), given.results
        self._checks = Checks(environment, self._credentials)
        # Remove secrets, because Locust shows its options in pages and sends them to workers.
        vars(options).update(api_key="", header=[], proxy=self._credentials.proxy)
        self.role: Solo | Master | Worker | None = None
        """This process's role in the running test; None without one."""
        self.last_store: RunStore | None = None
        """The records of the running test, else of the last one."""
        self.summary: Summary | None = None
        """The summary that is still to be printed."""
        self.last_summary: Summary | None = None
        self.stage: str | None = None
        self.stepper: Stepper | None = None
        """Controls the load while a search for capacity runs."""
        self.capacity: Capacity | None = None
        """The result of the last search."""
        self.folders: list[Path] = []
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
        self.first_limit: float | None = None
        """The run time of a test that starts automatically in a process with a web UI."""
        self._said: dict[str, Any] = {}
        """What the server reported about itself before the next test."""
        self._shape = environment.shape_class
        self.searching = bool(getattr(self._shape, "searches_capacity", False))
        """Whether tests are searches for capacity."""
        self.ready = Event()
        """Set when users can get the running test."""
        self._limit: gevent.Greenlet[..., Any] | None = None
        """Ends a test of the web UI after its run time."""
        self._coming_back: tuple[set[str], float] = set(), 0.0
        """The last test's workers, which disconnect for a moment, and until when to wait for them."""

    def _host_of_classes(self) -> str | None:
        """The host of the user classes, for a test without --host. Raises InputError if they name several, except in a
        worker, whose master may have a --host."""
        try:
            return host_of_classes(self.environment.user_classes)
        except InputError:
            if isinstance(self.runner, WorkerRunner):
                return None
            raise

    def _choose_shape(self, options: Namespace) -> None:
        """Let Locust use the locustfile's shape only if the options choose one. By default, it uses any it finds."""
        if option := getattr(self._shape, "option", ""):
            self.environment.shape_class = None if getattr(options, option) == NO_SHAPE else self._shape

    def check(self) -> tuple[Settings, Targets]:
        """Check the options. Returns the test's settings and targets. Raises InputError before anything is sent."""
        options = self.options
        settings, targets = self._checks.check(options, self.environment.host)
        # Use the checked host, which has no trailing slash and no password.
        self.environment.host = options.host = settings.host
        self._choose_shape(options)
        if settings.results is not None and not self.folders:
            check_new(settings.results)
        return settings, targets

    def take_form(self, form: Form) -> Form:
        """Apply the web form's values to the options, and return Locust's fields. Raises InputError, and changes no
        option, if the test could not start as requested."""
        options = self.options
        if not self.at_rest.wait(ENDING_S):
            raise InputError("the previous test is still finishing; try again in a moment")
        wanted = read_form(form, options)
        if self.role is None:
            key, wanted.api_key = wanted.api_key, ""  # the options are visible in pages and to workers
            host = form.get("host") or self.environment.host
            check = partial(self._checks.check, wanted, host, key, form.getlist("user_classes"))
            settings = check()[0]
            if key and isinstance(self.runner, MasterRunner):
                raise InputError(
                    "a fleet's workers need the API key themselves: start them with OPENAI_API_KEY and --host"
                )
            self._said = ask_before_test(
                check,
                self._checks.models,
                self._checks.dialects,
                ready_s=0,
                trial=not wanted.no_preflight,
                flush=wanted.flush_cache,
            )
            if key:
                self._credentials.keep(settings.host, key)
            self._wait_for_workers()
            wanted.host = settings.host
            form = Form([*form.items(multi=True)])
            form["host"] = settings.host
        else:
            self._check_edit(wanted, form)
        vars(options).update(vars(wanted))
        if self.role is None:
            self._choose_shape(options)
        if form.get("run_time") or self.role is None:
            self.limit(wanted.run_time)
        return Form((name, word) for name, word in form.items(multi=True) if name in LOCUSTS)

    def _check_edit(self, wanted: Namespace, form: Form) -> None:
        options, host = self.options, self.environment.host
        if self.environment.shape_class is not None:
            raise InputError("a shape controls the load of the running test: stop the test first")
        if others := changed(wanted, options):
            raise InputError(f"{others[0].replace('_', ' ')} cannot change during a test: stop the test first")
        if form.get("host") and check_host(split_host(form["host"])[0]) != host:
            raise InputError("the host cannot change during a test: stop the test first")

    def _wait_for_workers(self) -> None:
        """Wait until the last test's workers are ready again or, before the first test, until all expected workers are.
        Raises InputError if there are no workers: Locust would report a started test but send nothing."""
        runner, options = self.runner, self.options
        if not isinstance(runner, MasterRunner):
            return
        members, until = self._coming_back
        if not members:
            until = time.monotonic() + WORKERS_S
        while time.monotonic() < until:
            ready = {worker.id for worker in runner.clients.ready}
            if members <= ready if members else len(ready) >= options.expect_workers:
                break
            gevent.sleep(0.02)
        if not runner.clients.ready:
            worker = f"{locust_command(options.locustfile)} --worker --master-host ADDRESS"
            raise InputError(f"no worker is connected: start one with {worker}")

    def limit(self, seconds: float | None) -> None:
        """End the running or starting test `seconds` from now; None: never."""
        if self._limit is not None:
            self._limit.kill(block=False)
        self._limit = None if seconds is None else gevent.spawn_later(seconds, self._end_in_time)

    def _end_in_time(self) -> None:
        self._limit = None  # otherwise the end of the test would kill this greenlet
        logger.info("the run time is over: stopping the test")
        self._end_test()

    def ask_server(self) -> None:
        """Check that the server can serve the test of the command line. Raises InputError if it cannot."""
        options = self.options
        at_once = options.headless or options.autostart
        self._said = ask_before_test(
            self.check,
            self._checks.models,
            self._checks.dialects,
            ready_s=options.ready_timeout if at_once else 0,
            trial=at_once and not options.no_preflight,
            flush=at_once and options.flush_cache,
        )

    def start(self) -> None:
        if self.stopped_by:
            return  # a signal arrived first
        self.starting = True
        try:
            if isinstance(self.runner, WorkerRunner):
                self._start_worker(self.runner)
            else:
                self._start()
            self.took_part = self.took_part or self.role is not None
        except (InputError, OSError) as error:
            # The form was checked before, but the disk may be full, for example. Users find no test and stop.
            logger.error("the test cannot start: %s", error)
            self.environment.process_exit_code = 2
            gevent.spawn(self._end_test)
        finally:
            self.starting = False

    def _start(self) -> None:
        settings, targets = self.check()
        if self.searching:
            settings = for_search(settings)
        role: Callable[..., Solo | Master] = Master
        if not isinstance(self.runner, MasterRunner):
            self._allow_descriptors(1)
            role = partial(Solo, reader=choose(settings.reader))
        folder = self._new_folder(settings.results)
        self.folders.append(folder)
        self.role = role(
            self.environment,
            settings,
            targets,
            folder=folder,
            invocation=self._invocation(settings),
            on_done=self._end_test,
        )
        self._said = {}
        self.last_store = self.role.store
        if self.stepper is not None:
            self.stepper.attach(self.role)
        if self.stage is not None:
            self.enter_stage(self.stage)
        if self.first_limit is not None:
            self.limit(self.first_limit)
            self.first_limit = None

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
            server=self._said,
        )

    def _shape_name(self) -> str:
        shape, options = self.environment.shape_class, self.options
        if shape is None:
            return "none"
        option = getattr(shape, "option", "")
        return str(getattr(options, option)) if option else type(shape).__name__

    def _start_worker(self, runner: WorkerRunner) -> None:
        options = self.options
        try:
            # Use this worker's --results instead of the master's.
            options.results = self._results
            settings, targets = self._checks.check(options, self.environment.host)
            if self.searching:
                settings = for_search(settings)
            self.role = Worker(self.environment, settings, targets, choose(settings.reader))
            self._allow_descriptors(self.role.fleet)
        except (InputError, OSError) as error:
            # Users find no test and stop; the master ends the test.
            logger.error("%s", error)
            runner.send_message("asr_refuse", {"reason": str(error)})

    def _allow_descriptors(self, workers: int) -> None:
        options = self.options
        descriptors.allow(-(-(options.num_users or 1) // workers))

    def stop(self) -> None:
        self.stage = None
        self.limit(None)
        if isinstance(self.runner, WorkerRunner):
            # All streams have finished. Locust would let a worker sleep for the stop timeout before it is ready for the
            # next test, which sets it again. Asleep, the worker receives no heartbeat and would exit after a minute.
            self.environment.stop_timeout = 0.0
        if self.role is None:
            return
        if isinstance(self.role, Master):
            self._coming_back = self.role.members, time.monotonic() + WORKERS_S
            if not self.role.members and self.environment.web_ui is None:
                gevent.spawn(self._end_test)  # after the last worker is gone, Locust ends the test but not the process
        try:
            self.summary = self.role.stop()
        except (OSError, InputError) as error:
            logger.error("the run cannot be written to %s: %s", self.folders[-1], error)
            self.environment.process_exit_code = 2
            if self.role.store is not None and self.role.store.finished is not None:
                self.summary = self.role.store.finished.summary  # it can still be printed
        self.role = None
        if self.stepper is not None:
            self.capacity, self.stepper = self.stepper.capacity, None
        if self.summary is not None:
            self.last_summary = self.summary
            self._write_page()
            logger.info("records, run.json, summary.json and report.html are in %s", self.folders[-1])
            if self.environment.web_ui is not None:
                self.print_summary()

    def _write_page(self) -> None:
        """Write report.html. An error here is logged; the other files are already complete."""
        assert self.last_store is not None
        finished, self.last_store.finished = self.last_store.finished, None
        try:
            if finished is not None:
                write_report(self.folders[-1], finished)
        except OSError as error:
            logger.error("report.html was not written: %s", error)
            self.environment.process_exit_code = 2
        except Exception:
            logger.exception("report.html was not written; to try again: %s %s", command("report"), self.folders[-1])
            self.environment.process_exit_code = 2

    def print_summary(self) -> None:
        from asr_load.report.capacity import print_search
        from asr_load.report.summary import print_summary

        if self.summary is not None:
            options = self.options
            # With --json, standard output must contain only Locust's JSON.
            file, folder = sys.stderr if options.json else sys.stdout, self.folders[-1]
            if self.capacity is not None:
                print_search(folder, self.capacity, file, self.summary.verdict)
            else:
                print_summary(folder, self.summary, read_records(folder), file)
            self.summary = None

    def complete_files(self) -> None:
        """End the test before Locust writes its final reports, so that they include requests that were cut off."""
        runner, options = self.runner, self.options
        runner.quit()
        self.stop()
        if self.stopped_by and not self.took_part and self.environment.process_exit_code is None:
            self.environment.process_exit_code = signals.exit_code(self.stopped_by)
        if isinstance(runner, WorkerRunner):
            return
        if self.last_summary is not None and self.environment.process_exit_code is None:
            self.environment.process_exit_code = exit_code(self.last_summary, runner, self.stopped_by)
        stats.keep_entries_when_serialised(self.environment)
        if options.csv_prefix:
            # Locust writes its CSV files once a second, but not after the last request: wait for that.
            gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.1)
        if options.html_file:
            write_locust_report(self.environment, options, self.last_store, self.summary)

    def _new_folder(self, named: Path | None) -> Path:
        """Create a folder for a test: the named one, then NAME-2, NAME-3, for further tests of the web UI and for tests
        that begin in the same second."""
        base = named or RESULTS / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        others = (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))
        for folder in itertools.chain([base], others):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                (folder / RECORDS).touch(exist_ok=False)
            except FileExistsError:
                continue
            return folder
        raise AssertionError

    def _end_test(self) -> None:
        runner = self.runner
        options, web_ui = self.options, self.environment.web_ui
        if web_ui is None:
            runner.quit()
            return
        locust_internals.stop_starting(web_ui)
        runner.stop()
        if options.autostart and options.autoquit != -1:
            gevent.sleep(options.autoquit)
            web_ui.stop()

    def enter_stage(self, name: str) -> None:
        """Note that a shape enters a stage. The first stage precedes the start of the test."""
        self.stage = name
        if self.role is not None and self.role.store is not None:
            self.role.store.enter_stage(name)

    def search_tick(self, users: int) -> tuple[int, float] | None:
        """The return value of a shape's tick during a search, for the current number of users."""
        if self.stepper is None:
            self.stepper = self._new_search()
        return self.stepper.tick(users)

    def _new_search(self) -> Stepper:
        """Make the search of the options; the next test belongs to it. Raises InputError."""
        settings, targets = self.check()
        options = self.options
        steps = resumed(Path(options.resume), settings, targets.data_sha256) if options.resume else []
        return Stepper(settings, options.num_users or 1, options.step_time, steps)

    @property
    def run(self) -> Run:
        """The running test. Raises GreenletExit without one: it could not start, and the error was logged."""
        run = None if self.role is None else self.role.run
        if run is None:
            raise gevent.GreenletExit  # ends a user; Locust would log a StopUser here as an error
        return run


NO_SHAPE = "none"
"""Value of a shape's option for no shape."""

_plugins: WeakKeyDictionary[Environment, Plugin] = WeakKeyDictionary()


def keep_plugin(plugin: Plugin) -> None:
    """Register a plugin for `plugin_of`."""
    _plugins[plugin.environment] = plugin


def plugin_of(environment: Environment) -> Plugin:
    """The plugin of an environment. Raises KeyError before the environment is initialised."""
    return _plugins[environment]


def started_run(environment: Environment) -> Run | None:
    """The running test in this process; None without one, or before the environment is initialised."""
    plugin = _plugins.get(environment)
    return None if plugin is None or plugin.role is None else plugin.role.run


def current_run(environment: Environment) -> Run:
    """The running test. Raises GreenletExit without one. Waits until the environment is initialised, because a worker's
    users may start before that."""
    while (plugin := _plugins.get(environment)) is None:
        gevent.sleep(0.01)
    plugin.ready.wait()
    return plugin.run
