"""The harness as a Locust plugin: its options, and a Run for each test between Locust's start and stop."""

from __future__ import annotations

import inspect
import logging
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import Semaphore
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.html import get_html_report, process_html_filename
from locust.rpc import Message
from locust.runners import MasterRunner, WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC

from asr_load.audio.payload import make_builder
from asr_load.audio.shard import Shards
from asr_load.errors import InputError
from asr_load.load import descriptors, fleet, stats, webui
from asr_load.load.book import Book
from asr_load.load.fleet import LAST_WORDS_S, Master, Solo, Worker
from asr_load.load.form import LOCUSTS, Form, changed, read_form
from asr_load.load.options import Settings, add_options, check_host, check_writable, read_settings
from asr_load.load.run import Run
from asr_load.load.search import Stepper, check_search, for_search, resumed
from asr_load.results import accuracy
from asr_load.results.capacity import Capacity
from asr_load.results.page import add_streaming_section
from asr_load.results.summary import Summary, figures
from asr_load.stream.record import RECORDS

logger = logging.getLogger(__name__)

WORKERS_S, ENDING_S = 5.0, 2.0
"""How long a test that is started from the web UI waits for its workers, and for the last one to end."""

SPAWN_RATE = 100
"""Users per second that begin in an open loop, where no other number is asked for. Beyond it Locust warns."""


class _Plugin:
    """What the harness keeps for Locust's one environment of a process."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        # The form comes without the command line's key, which no page may hold: an empty field means this one.
        self._key: str = environment.parsed_options.api_key if environment.parsed_options else ""
        self.part: Solo | Master | Worker | None = None
        """This process's part of the test that is running."""
        self.last_book: Book | None = None
        """The book of the test that is running or, when none is, of the one that ran last."""
        self.summary: Summary | None = None
        """What is still to be printed."""
        self.last_summary: Summary | None = None
        self.stage: str | None = None
        self.stepper: Stepper | None = None
        """Where a search for capacity says how much load there shall be, while its test runs."""
        self.found: Capacity | None = None
        """What the search found that ran last."""
        self.folders: list[Path] = []
        self.interrupted = False
        self.at_rest = Event()
        """Set while no test is about to end."""
        self.at_rest.set()
        self.first_limit: float | None = None
        """The run time of a test that the web UI's process starts by itself."""
        self._limit: gevent.Greenlet[..., Any] | None = None
        """What ends a test of the web UI after its run time."""
        self._coming_back: tuple[set[str], float] = set(), 0.0
        """The workers of the last test, which leave the master for a moment, and until when they are waited for."""

    def check(self) -> tuple[Settings, Shards]:
        """The test that the options ask for. Raises InputError before anything is sent."""
        options = self.environment.parsed_options
        assert options is not None
        settings, shards = self._check(options, self.environment.host)
        # As checked: without the trailing slash that would double the one of the API's path.
        self.environment.host = settings.host
        if settings.results is not None and not self.folders and (settings.results / RECORDS).exists():
            raise InputError(f"--results {settings.results} already holds a run: name another folder, or remove it")
        return settings, shards

    def take_form(self, form: Form) -> Form:
        """Take the web form's values as options, and return the fields that Locust is to see. Raises InputError in the
        place of a test that would not start, or not be the one that was asked for; no option has changed then."""
        options = self.environment.parsed_options
        assert options is not None
        if not self.at_rest.wait(ENDING_S):
            raise InputError("the last test is still ending: start this one when its streams are in")
        wanted = read_form(form, options)
        if self.part is None:
            self._check(wanted, form.get("host") or self.environment.host)
            self._wait_for_workers()
        else:
            self._check_edit(wanted, form)
        vars(options).update(vars(wanted))
        if form.get("run_time") or self.part is None:
            self.limit(wanted.run_time)
        return Form((name, word) for name, word in form.items(multi=True) if name in LOCUSTS)

    def _check_edit(self, wanted: Namespace, form: Form) -> None:
        options, host = self.environment.parsed_options, self.environment.host
        assert options is not None
        if self.environment.shape_class is not None:
            raise InputError("a shape decides the load of the test that is running: stop it first")
        if others := changed(wanted, options):
            raise InputError(f"{others[0].replace('_', ' ')} cannot change while a test is running: stop it first")
        if form.get("host") and check_host(form["host"]) != host:
            raise InputError("the host cannot change while a test is running: stop it first")

    def _wait_for_workers(self) -> None:
        """Wait until those of the last test are ready again, and in a fleet that has just begun for all that are
        expected. Raises InputError where there are none: Locust would say that a test has started, and send nothing."""
        runner, options = self.environment.runner, self.environment.parsed_options
        if not isinstance(runner, MasterRunner):
            return
        assert options is not None
        members, until = self._coming_back
        if not members:
            until = time.monotonic() + WORKERS_S
        while time.monotonic() < until:
            ready = {worker.id for worker in runner.clients.ready}
            if members <= ready if members else len(ready) >= options.expect_workers:
                break
            gevent.sleep(0.02)
        if not runner.clients.ready:
            raise InputError("no worker is connected: start one with locust --worker --master-host ADDRESS")

    def limit(self, seconds: float | None) -> None:
        """End the test that runs, or starts now, after so many seconds from now; None: not by itself."""
        if self._limit is not None:
            self._limit.kill(block=False)
        self._limit = None if seconds is None else gevent.spawn_later(seconds, self._end_in_time)

    def _end_in_time(self) -> None:
        self._limit = None  # before the end of the test kills it
        logger.info("the run time is over")
        self._end_test()

    def _check(self, options: Namespace, host: str | None) -> tuple[Settings, Shards]:
        settings = read_settings(options, host, self._key)
        if settings.loop.open and options.headless and options.num_users is None:
            raise InputError("an open loop needs -u: the most requests that may be in flight")
        if not isinstance(self.environment.runner, WorkerRunner):
            check_writable(settings.results or Path("results"))
        for refusal in _refusals:
            if line := refusal(options):
                raise InputError(line)
        if _searching and not isinstance(self.environment.runner, WorkerRunner):
            check_search(settings, options.num_users, headless=options.headless)
            if options.resume:
                resumed(Path(options.resume), settings, Shards(settings.data).manifest_sha256)
        make_builder(settings.api, settings.model, settings.prompt, settings.max_tokens, settings.extra_body)
        return settings, Shards(settings.data)

    def start(self) -> None:
        try:
            if isinstance(self.environment.runner, WorkerRunner):
                self._start_worker(self.environment.runner)
            else:
                self._start()
        except (InputError, OSError) as error:
            # The form's values are checked before; a disk may still be full. Users find no test and stop at once.
            logger.error("the test cannot start: %s", error)
            self.environment.process_exit_code = 2
            gevent.spawn(self._end_test)

    def _start(self) -> None:
        settings, shards = self.check()
        if _searching:
            settings = for_search(settings)
        folder = self._new_folder(settings.results)
        self.folders.append(folder)
        if not isinstance(self.environment.runner, MasterRunner):
            self._allow_descriptors(1)
        role = Master if isinstance(self.environment.runner, MasterRunner) else Solo
        self.part = role(self.environment, settings, shards, folder, self._end_test)
        self.last_book = self.part.book
        if self.stepper is not None:
            self.stepper.attach(self.part)
        if self.stage is not None:
            enter_stage(self.stage)
        if self.first_limit is not None:
            self.limit(self.first_limit)
            self.first_limit = None

    def _start_worker(self, runner: WorkerRunner) -> None:
        options = self.environment.parsed_options
        assert options is not None
        try:
            settings, shards = self._check(options, self.environment.host)
            if _searching:
                settings = for_search(settings)
            self.part = Worker(self.environment, settings, shards)
            self._allow_descriptors(self.part.fleet)
        except (InputError, OSError) as error:
            # Its users find no test and stop at once; the master ends the test.
            logger.error("%s", error)
            runner.send_message("asr_refuse", {"reason": str(error)})

    def _allow_descriptors(self, workers: int) -> None:
        options = self.environment.parsed_options
        descriptors.allow(-(-((options and options.num_users) or 1) // workers))

    def stop(self) -> None:
        self.stage = None
        self.limit(None)
        if isinstance(self.environment.runner, WorkerRunner):
            # All streams are in. Locust would let a worker sleep for this long before it is ready for the next test,
            # which brings it again; it hears no heartbeat meanwhile, and after a minute it would end itself.
            self.environment.stop_timeout = 0.0
        if self.part is None:
            return
        if isinstance(self.part, Master):
            self._coming_back = self.part.members, time.monotonic() + WORKERS_S
            if not self.part.members and self.environment.web_ui is None:
                gevent.spawn(self._end_test)  # with its last worker gone, Locust ends the test and not the process
        self.summary = self.part.stop()
        self.part = None
        if self.stepper is not None:
            self.found, self.stepper = self.stepper.found, None
        if self.summary is not None:
            self.last_summary = self.summary
            logger.info("records, run.json and summary.json are in %s", self.folders[-1])
            if self.environment.web_ui is not None:
                self.print_summary()

    def print_summary(self) -> None:
        from asr_load.results.capacity_report import print_search
        from asr_load.results.report import print_summary

        if self.summary is not None:
            options = self.environment.parsed_options
            # With --json, standard output is Locust's JSON and nothing else.
            file = sys.stderr if options and options.json else sys.stdout
            if self.found is not None:
                print_search(self.folders[-1], self.found, file)
            else:
                print_summary(self.folders[-1], self.summary, file)
            self.summary = None

    def complete_files(self) -> None:
        """Before Locust writes its last words: end the test, so that they hold what was cut off too."""
        runner, options = self.environment.runner, self.environment.parsed_options
        assert runner is not None
        assert options is not None
        runner.quit()
        self.stop()
        if isinstance(runner, WorkerRunner):
            return
        self._set_exit_code()
        stats.keep_entries_when_serialised(self.environment)
        if options.csv_prefix:
            # Locust writes its CSV files once a second, and never after the last request.
            gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.1)
        if options.html_file:
            self._write_report(options)

    def _set_exit_code(self) -> None:
        """SLOs decide where there are any; where one of them is on errors, single failures break nothing else."""
        summary, environment = self.last_summary, self.environment
        if summary is None or environment.process_exit_code is not None:
            return
        options = environment.parsed_options
        if self.last_book is not None and self.last_book.file.trouble:
            environment.process_exit_code = 2
            return
        if summary.lost_workers and not (options and options.allow_lost_workers):
            environment.process_exit_code = 1
            return
        if self.found is not None:
            environment.process_exit_code = 2 if self.found.unknown else 0 if self.found.answer else 1
            return
        if summary.passed is False or not summary.requests.success:
            environment.process_exit_code = 1
        elif summary.passed and any(result.name.startswith("errors:") for result in summary.slo):
            environment.process_exit_code = 0

    def _write_report(self, options: Namespace) -> None:
        """Locust's HTML report with a section on streaming. Locust writes its own before a test has come to rest, and
        on SIGTERM not at all."""
        process_html_filename(options)
        report = get_html_report(self.environment, show_download_link=False)
        if self.last_book is not None and self.summary is not None:
            report = add_streaming_section(report, self.summary, self.last_book.live.points(), self.last_book.stages)
        path = Path(options.html_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report, encoding="utf-8")

    def _new_folder(self, named: Path | None) -> Path:
        """A new folder for a test: the one that was named, then NAME-2, NAME-3 for further tests of a web UI."""
        base = named or Path("results") / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        number, folder = 1, base
        while (folder / RECORDS).exists():
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _end_test(self) -> None:
        runner = self.environment.runner
        assert runner is not None
        options, web_ui = self.environment.parsed_options, self.environment.web_ui
        if web_ui is None:
            runner.quit()
            return
        runner.stop()
        if options and options.autostart and options.autoquit != -1:
            gevent.sleep(options.autoquit)
            web_ui.stop()


def _prepare_for_the_end() -> None:
    """Import what a summary needs before any test: when that ends, the process may have no descriptors left."""
    import asr_load.results.capacity_report
    import asr_load.results.report  # noqa: F401

    accuracy.prepare()
    figures([0.0, 1.0])  # numpy imports more of itself as it is used


_plugin: _Plugin | None = None
_searching = False
_initialised = Event()

Refusal = Callable[[Namespace], str | None]
_refusals: list[Refusal] = []


def refuse(refusal: Refusal) -> Refusal:
    """Register a check of options that another locustfile has added: it returns what is wrong in one line, or None."""
    _refusals.append(refusal)
    return refusal


def searches() -> None:
    """Note, when a locustfile is imported, that its tests are searches for capacity."""
    global _searching  # noqa: PLW0603 (as there is one environment, there is one kind of test)
    _searching = True


def search_tick(users: int) -> tuple[int, float] | None:
    """What a shape's tick returns where a search shapes the load, given how many users there are."""
    assert _plugin is not None
    if _plugin.stepper is None:
        _plugin.stepper = _new_search()
    return _plugin.stepper.tick(users)


def _new_search() -> Stepper:
    """The search that the options ask for; the test that starts next is its own. Raises InputError."""
    assert _plugin is not None
    settings, shards = _plugin.check()
    options = _plugin.environment.parsed_options
    assert options is not None
    known = resumed(Path(options.resume), settings, shards.manifest_sha256) if options.resume else []
    return Stepper(settings, options.num_users or 1, options.step_time, known)


def current_run() -> Run:
    """The test that is running. Raises GreenletExit where there is none: it could not start, which has been said."""
    _initialised.wait()
    run = None if _plugin is None or _plugin.part is None else _plugin.part.run
    if run is None:
        raise gevent.GreenletExit  # what Locust itself ends a user by; a StopUser here would be logged as an error
    return run


def enter_stage(name: str) -> None:
    """Note that a shape is in this stage from now on; its first one comes before the test that it starts."""
    if _plugin is not None:
        _plugin.stage = name
        if _plugin.part is not None and _plugin.part.book is not None:
            _plugin.part.book.enter_stage(name)


@events.init_command_line_parser.add_listener
def _on_parser(parser: LocustArgumentParser) -> None:
    add_options(parser)


@events.init.add_listener
def _on_init(environment: Environment, **_: Any) -> None:
    """Bad input ends the process here, with one line and exit code 2."""
    global _plugin  # noqa: PLW0603 (Locust's events are of the module, and so is what listens to them)
    try:
        _plugin = plugin = _Plugin(environment)
        # A worker has its host and its options from the master, with the first test.
        if not isinstance(environment.runner, WorkerRunner):
            settings = plugin.check()[0]
            given = environment.parsed_options
            if given is not None and _searching:
                # Streams that are in flight at the end of a step are let finish.
                patience = max(environment.stop_timeout, settings.limits.total)
                given.stop_timeout = environment.stop_timeout = patience
            if given is not None and given.autostart and not given.headless:
                # Locust's own timer would end whatever test is running by then.
                plugin.first_limit, given.run_time = given.run_time, None
            if given is not None and given.spawn_rate is None and given.num_users and settings.loop.open:
                given.spawn_rate = min(given.num_users, SPAWN_RATE)  # arrivals wait for nobody
            _prepare_for_the_end()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    _stop_once(plugin)
    stats.set_up(environment)
    webui.set_up(environment, lambda: plugin.last_book, plugin.take_form)
    _converse(environment, plugin)
    if isinstance(environment.runner, WorkerRunner) and hasattr(environment.parsed_options, fleet.OPTION):
        # A worker listens to its master from its first moment on: a test may have begun before this line.
        plugin.start()
    _initialised.set()
    # Python raises KeyboardInterrupt in whatever runs at that moment: in a user, it would cost a record or a row.
    gevent.signal_handler(signal.SIGINT, _interrupt)
    # Locust looks at its stack as it stops a test. The first look reads sources and holds the loop for 80 ms, in which
    # streams still come; others know them.
    inspect.stack()
    # Timers count from the loop's own time, which has stood still over the imports: -t would end by so much early.
    gevent.get_hub().loop.update_now()


def _stop_once(plugin: _Plugin) -> None:
    """Let one call at a time end a test: whoever comes second, as a time limit while STOP drains, waits for the first.
    Locust would tell its workers twice, and the second word would take them out of the next test."""
    runner: Any = plugin.environment.runner
    stop = runner.stop

    def stop_once(*args: Any, **kwargs: Any) -> None:
        if not plugin.at_rest.is_set():
            plugin.at_rest.wait()
            return
        plugin.at_rest.clear()
        if plugin.part is not None and plugin.part.run is not None:
            plugin.part.run.stopping()  # Locust first looks at its own stack, and what is due meanwhile has no user
        try:
            stop(*args, **kwargs)
        finally:
            plugin.at_rest.set()

    runner.stop = stop_once


def _converse(environment: Environment, plugin: _Plugin) -> None:
    """What the master and the workers of a fleet say to each other: see fleet.py."""
    runner = environment.runner
    if isinstance(runner, MasterRunner):

        def to_master(answer: Callable[[Master, Message], None]) -> Callable[..., None]:
            def hear(msg: Message, **_: Any) -> None:
                if isinstance(plugin.part, Master):
                    answer(plugin.part, msg)

            return hear

        runner.register_message("asr_share_done", to_master(lambda part, msg: part.share_done(msg.node_id)))
        runner.register_message("asr_done", to_master(lambda part, msg: part.done(msg.node_id)))
        runner.register_message("asr_clock", to_master(lambda part, msg: part.answer_time(msg.node_id, msg.data)))
        runner.register_message("asr_refuse", to_master(lambda part, msg: part.refuse(str(msg.data["reason"]))))
    elif isinstance(runner, WorkerRunner):
        one_at_a_time = Semaphore()

        def stop(**_: Any) -> None:
            with one_at_a_time:
                runner.stop()
                if plugin.part is None:  # it has said its last word before, or never had one to say
                    runner.send_message("asr_done", None)
                plugin.stop()

        def cut(**_: Any) -> None:
            runner.user_greenlets.kill(block=False)

        def clock(msg: Message, **_: Any) -> None:
            if isinstance(plugin.part, Worker):
                plugin.part.tell_time(msg.data)

        def rota(msg: Message, **_: Any) -> None:
            if isinstance(plugin.part, Worker):
                plugin.part.share_arrivals(msg.data)

        runner.register_message("asr_stop", stop, concurrent=True)
        runner.register_message("asr_rota", rota)
        # Locust's runner takes its leave of the master when this event fires, and nobody hears a worker after that. The
        # last listener is the first to be called: a worker that is told to end, alone or with its master, drains first.
        environment.events.quitting.add_listener(stop)
        runner.register_message("asr_clock", clock)
        runner.register_message("asr_cut", cut)


def _interrupt() -> None:
    """Ctrl-C, told to Locust's main greenlet alone, and once. While a test drains, it cuts off what is in flight."""
    assert _plugin is not None
    runner, options = _plugin.environment.runner, _plugin.environment.parsed_options
    if runner is not None and (_plugin.interrupted or not _plugin.at_rest.is_set()):
        runner.user_greenlets.kill(block=False)
        if isinstance(runner, MasterRunner):
            runner.send_message("asr_cut")
        return
    _plugin.interrupted = True
    if isinstance(runner, WorkerRunner) and options is not None and options.processes:
        # The terminal gives Ctrl-C to the master too, which ends the test in order and then this process.
        gevent.sleep(_plugin.environment.stop_timeout + 2 * LAST_WORDS_S)
    gevent.get_hub().handle_system_error(KeyboardInterrupt, KeyboardInterrupt())


@events.test_start.add_listener
def _on_start(**_: Any) -> None:
    if _plugin is not None:
        _plugin.start()


@events.worker_connect.add_listener
def _on_worker_connect(client_id: str, **_: Any) -> None:
    if _plugin is not None and isinstance(_plugin.part, Master):
        _plugin.part.welcome(client_id)


@events.report_to_master.add_listener
def _on_report_to_master(data: dict[str, Any], **_: Any) -> None:
    if _plugin is not None and isinstance(_plugin.part, Worker):
        _plugin.part.report(data)


@events.worker_report.add_listener
def _on_worker_report(data: dict[str, Any], **_: Any) -> None:
    if _plugin is not None and isinstance(_plugin.part, Master) and fleet.KEY in data:
        _plugin.part.hear(data[fleet.KEY])


@events.test_stopping.add_listener
def _on_stopping(**_: Any) -> None:
    if _plugin is not None and _plugin.part is not None:
        _plugin.part.stopping()


@events.test_stop.add_listener
def _on_stop(**_: Any) -> None:
    if _plugin is not None:
        _plugin.stop()


@events.quitting.add_listener
def _on_quitting(**_: Any) -> None:
    if _plugin is not None:
        _plugin.complete_files()


@events.quit.add_listener
def _on_quit(**_: Any) -> None:
    """After Locust's own tables, so that the summary is what a person reads last."""
    if _plugin is not None:
        _plugin.print_summary()
