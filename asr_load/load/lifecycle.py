"""The harness as a Locust plugin: its options, and a Run for each test between Locust's start and stop."""

from __future__ import annotations

import inspect
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.lock import Semaphore
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.rpc import Message
from locust.runners import MasterRunner, WorkerRunner

from asr_load import locust_internals, signals
from asr_load.errors import InputError
from asr_load.load import fleet, fleet_socket, interruption, stats
from asr_load.load.fleet import Master, Worker
from asr_load.load.plugin import Plugin, keep_plugin
from asr_load.options.commandline import judge_command_line
from asr_load.options.parser import add_options
from asr_load.results import accuracy
from asr_load.results.figures import figures
from asr_load.shipped import locust_command
from asr_load.text import visible
from asr_load.web import webui

logger = logging.getLogger(__name__)

WAITING_WORD_S = 10.0
"""How often it is said which workers are waited for."""

CUT_S, CUT_EVERY_S = 1.0, 0.05
"""For how long at least, and how often, a worker whose streams are cut off ends users that begin."""

SPAWN_RATE = 100
"""Users per second that begin in an open loop, where no other number is asked for. Beyond it Locust warns."""


def _prepare_for_the_end() -> None:
    """Import what a summary needs before any test: when that ends, the process may have no descriptors left."""
    import asr_load.results.capacity_report
    import asr_load.results.summary_report  # noqa: F401

    accuracy.prepare()
    figures([0.0, 1.0])  # numpy imports more of itself as it is used


def _install() -> None:
    """Put what must be there before any environment into Locust. Raises InputError where this Locust is not known."""
    locust_internals.check()
    locust_internals.remember_defaults()
    locust_internals.wait_longer_for_heartbeats()
    fleet_socket.install()


@events.init_command_line_parser.add_listener
def _on_parser(parser: LocustArgumentParser) -> None:
    try:
        _install()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if signals.caught():  # not in a program that uses Locust as a library
        locust_internals.own_signals(signals.fork_child, interruption.after_fork)
    add_options(parser)
    judge_command_line(parser, fleet_socket.use_token)


@events.init.add_listener
def _on_init(environment: Environment, **_: Any) -> None:
    """Bad input ends the process here, with one line and exit code 2."""
    try:
        plugin = attach(environment)
    except InputError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)  # it may be in the server's words
        sys.exit(2)
    interruption.answer_signals(plugin)
    # Locust looks at its stack as it stops a test. The first look reads sources and holds the loop for 80 ms, in which
    # streams still come; others know them.
    inspect.stack()
    # Timers count from the loop's own time, which has stood still over the imports: -t would end by so much early.
    gevent.get_hub().loop.update_now()


def attach(environment: Environment) -> Plugin:
    """Let the harness serve an environment whose options are parsed and whose runner is there. Raises InputError."""
    _install()
    locust_internals.check_environment(environment)
    plugin = Plugin(environment)
    # A worker has its host and its options from the master, with the first test.
    if not isinstance(environment.runner, WorkerRunner):
        _check_first_test(plugin)
        _prepare_for_the_end()
    keep_plugin(plugin)
    _stop_once(plugin)
    stats.set_up(environment)
    webui.set_up(environment, lambda: plugin.last_store, plugin.take_form)
    _listen(plugin)
    _register_messages(environment, plugin)
    if isinstance(environment.runner, MasterRunner) and environment.web_ui is None:
        logging.getLogger().addFilter(_told_every_second)
        gevent.spawn(_tell_what_is_waited_for, environment.runner, plugin)
    if isinstance(environment.runner, WorkerRunner) and hasattr(environment.parsed_options, fleet.OPTION):
        # A worker listens to its master from its first moment on: a test may have begun before this line.
        plugin.start()
    plugin.ready.set()
    return plugin


def _check_first_test(plugin: Plugin) -> None:
    """Check what the command line asks for, and fill in what it leaves open. Raises InputError."""
    environment, given = plugin.environment, plugin.environment.parsed_options
    settings = plugin.check()[0]
    assert given is not None
    if given.headless and given.num_users is None:
        raise InputError("--headless needs -u: how many streams are sent at once")
    plugin.ask_server()
    if plugin.searching:
        # Streams that are in flight at the end of a step are let finish.
        given.stop_timeout = environment.stop_timeout = max(environment.stop_timeout, settings.timeouts.total)
    if given.autostart and not given.headless:
        # Locust's own timer would end whatever test is running by then.
        plugin.first_limit, given.run_time = given.run_time, None
    if given.spawn_rate is None and given.num_users and settings.loop.open:
        given.spawn_rate = min(given.num_users, SPAWN_RATE)  # arrivals wait for nobody


def _stop_once(plugin: Plugin) -> None:
    """Let one call at a time end a test: whoever comes second, as a time limit while STOP drains, waits for the first.
    Locust would tell its workers twice, and the second word would take them out of the next test."""

    def once(stop: Callable[..., None]) -> Callable[..., None]:
        def stop_once(*args: Any, **kwargs: Any) -> None:
            while plugin.starting:  # a time limit may be shorter than what a busy machine takes to start a test
                gevent.sleep(0.01)
            if not plugin.at_rest.is_set():
                plugin.at_rest.wait()
                return
            plugin.at_rest.clear()
            if plugin.role is not None and plugin.role.run is not None:
                plugin.role.run.stopping()  # Locust first looks at its own stack, and what is due meanwhile has no user
            try:
                stop(*args, **kwargs)
            finally:
                plugin.at_rest.set()

        return stop_once

    locust_internals.replace(plugin.environment.runner, "stop", once)


def _register_messages(environment: Environment, plugin: Plugin) -> None:
    """What the master and the workers of a fleet say to each other: see fleet.py."""
    runner = environment.runner
    if isinstance(runner, MasterRunner):

        def to_master(answer: Callable[[Master, Message], None]) -> Callable[..., None]:
            def hear(msg: Message, **_: Any) -> None:
                if isinstance(plugin.role, Master):
                    answer(plugin.role, msg)

            return hear

        runner.register_message("asr_share_done", to_master(lambda role, msg: role.share_done(msg.node_id)))
        runner.register_message("asr_done", to_master(lambda role, msg: role.done(msg.node_id)))
        runner.register_message("asr_clock", to_master(lambda role, msg: role.answer_time(msg.node_id, msg.data)))
        runner.register_message("asr_refuse", to_master(lambda role, msg: role.refuse(str(msg.data["reason"]))))
    elif isinstance(runner, WorkerRunner):
        one_at_a_time, over = Semaphore(), set[str]()

        def but_late_spawns(handle_message: Callable[[Message], None]) -> Callable[[Message], None]:
            def handle(msg: Message) -> None:
                # A master that ramps up, or spreads its users anew, may ask for some after it has ended the test.
                test = msg.data["parsed_options"].get(fleet.OPTION) if msg.type == "spawn" else None
                if test is None or test["id"] not in over:
                    handle_message(msg)

            return handle

        def stop(**_: Any) -> None:
            if test := getattr(environment.parsed_options, fleet.OPTION, None):
                over.add(test["id"])
            with one_at_a_time:
                runner.stop()
                if plugin.role is None:  # it has said its final report before, or never had one to say
                    runner.send_message("asr_done", None)
                plugin.stop()

        def test_id() -> str | None:
            test = getattr(environment.parsed_options, fleet.OPTION, None)
            return None if test is None else str(test["id"])

        def cut(**_: Any) -> None:
            # Users that were asked for before may begin a moment after this word.
            test, until = test_id(), time.monotonic() + CUT_S
            while test_id() == test and (plugin.starting or plugin.role is not None or time.monotonic() < until):
                locust_internals.cut_streams(runner)
                gevent.sleep(CUT_EVERY_S)

        def clock(msg: Message, **_: Any) -> None:
            if isinstance(plugin.role, Worker):
                plugin.role.tell_time(msg.data)

        def assignment(msg: Message, **_: Any) -> None:
            if isinstance(plugin.role, Worker):
                plugin.role.share_arrivals(msg.data)

        locust_internals.replace(runner, "handle_message", but_late_spawns)
        runner.register_message("asr_stop", stop, concurrent=True)
        runner.register_message("asr_assignment", assignment)
        # Locust's runner takes its leave of the master when this event fires, and nobody hears a worker after that. The
        # last listener is the first to be called: a worker that is told to end, alone or with its master, drains first.
        environment.events.quitting.add_listener(stop)
        runner.register_message("asr_clock", clock)
        runner.register_message("asr_cut", cut, concurrent=True)


def _told_every_second(line: logging.LogRecord) -> bool:
    """Whether to let a line of Locust's log through: not what _tell_what_is_waited_for says."""
    return not str(line.msg).startswith("Waiting for workers to be ready")


def _tell_what_is_waited_for(runner: MasterRunner, plugin: Plugin) -> None:
    options = plugin.environment.parsed_options
    assert options is not None
    worker = f"{locust_command(options.locustfile)} --worker --master-host ADDRESS"
    while not plugin.folders and (ready := len(runner.clients.ready)) < options.expect_workers:
        how = f"{worker} --master-port {options.master_bind_port}"
        print(f"waiting for workers: {ready} of {options.expect_workers} are here ({how})", file=sys.stderr, flush=True)
        gevent.sleep(WAITING_WORD_S)


def _listen(plugin: Plugin) -> None:
    """What the plugin does at Locust's events of its environment."""

    def worker_connect(client_id: str, **_: Any) -> None:
        if isinstance(plugin.role, Master):
            plugin.role.add_worker(client_id)

    def report_to_master(data: dict[str, Any], **_: Any) -> None:
        if isinstance(plugin.role, Worker):
            plugin.role.report(data)

    def worker_report(client_id: str, data: dict[str, Any], **_: Any) -> None:
        if isinstance(plugin.role, Master) and fleet.KEY in data:
            plugin.role.hear(client_id, data[fleet.KEY])

    def test_stopping(**_: Any) -> None:
        if plugin.role is not None:
            plugin.role.stopping()

    on = plugin.environment.events
    on.test_start.add_listener(lambda **_: plugin.start())
    on.worker_connect.add_listener(worker_connect)
    on.report_to_master.add_listener(report_to_master)
    on.worker_report.add_listener(worker_report)
    on.test_stopping.add_listener(test_stopping)
    on.test_stop.add_listener(lambda **_: plugin.stop())
    on.quitting.add_listener(lambda **_: plugin.complete_files())
    # After Locust's own tables, so that the summary is what a person reads last.
    on.quit.add_listener(lambda **_: plugin.print_summary())
    on.quit.add_listener(lambda **_: interruption.ignore_signals())
