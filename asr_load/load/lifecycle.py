"""Attach asr-load to Locust: its options, event listeners and messages, and a Run for each test."""

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

from asr_load import signals
from asr_load.errors import InputError
from asr_load.load import fleet, fleet_socket, interruption, locust_internals, stats
from asr_load.load.fleet import Master, Worker
from asr_load.load.plugin import Plugin, keep_plugin
from asr_load.options.parser import add_options
from asr_load.results import accuracy
from asr_load.results.figures import figures
from asr_load.settings.commandline import judge_command_line
from asr_load.shipped import locust_command
from asr_load.text import visible
from asr_load.web import webui

logger = logging.getLogger(__name__)

WAITING_WORD_S = 10.0
"""Seconds between messages about missing workers."""

CUT_S, CUT_EVERY_S = 1.0, 0.05
"""Minimum duration and interval, in seconds, at which a worker kills starting users after its streams were cut off."""

SPAWN_RATE = 100
"""Default number of users to start per second in an open loop. Locust warns about higher rates."""


def _prepare_for_the_end() -> None:
    """Import everything that a summary needs before the test, which may use up all file descriptors."""
    import asr_load.report.capacity
    import asr_load.report.summary  # noqa: F401

    accuracy.prepare()
    figures([0.0, 1.0])  # numpy imports parts of itself on first use


def _install() -> None:
    """Change Locust as necessary before any environment exists. Raises InputError if its version is not supported."""
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
    """Attach to an environment. On bad input, ends the process with one line and exit code 2."""
    try:
        plugin = attach(environment)
    except InputError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)  # the message may quote the server
        sys.exit(2)
    interruption.answer_signals(plugin)
    # Locust inspects its stack when it stops a test. The first inspection reads source files, which would block the
    # loop for 80 ms while streams still arrive; later ones use a cache.
    inspect.stack()
    # Timers start from the loop's time, which did not advance during the imports: -t would end too early.
    gevent.get_hub().loop.update_now()


def attach(environment: Environment) -> Plugin:
    """Make a Plugin for an environment that has its options and runner. Raises InputError."""
    _install()
    runner, options = environment.runner, environment.parsed_options
    if runner is None or options is None:
        raise InputError("the environment needs a runner and parsed_options before asr-load is attached")
    locust_internals.check_environment(environment)
    plugin = Plugin(environment, options, runner)
    # A worker gets its host and options from the master with the first test.
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
        # A worker listens to its master from the beginning, so a test may already have begun.
        plugin.start()
    plugin.ready.set()
    return plugin


def _check_first_test(plugin: Plugin) -> None:
    """Check the test of the command line, and fill in defaults. Raises InputError."""
    environment, given = plugin.environment, plugin.options
    settings = plugin.check()[0]
    if given.headless and given.num_users is None:
        raise InputError("--headless needs -u, the number of concurrent streams")
    plugin.ask_server()
    if plugin.searching:
        # Let streams that are in flight at the end of a step finish.
        given.stop_timeout = environment.stop_timeout = max(environment.stop_timeout, settings.timeouts.total)
    if given.autostart and not given.headless:
        # Locust's timer would end any test that is running by then.
        plugin.first_limit, given.run_time = given.run_time, None
    if given.spawn_rate is None and given.num_users and settings.loop.open:
        given.spawn_rate = min(given.num_users, SPAWN_RATE)  # arrivals do not wait for users


def _stop_once(plugin: Plugin) -> None:
    """Let one call at a time end a test. A second one, such as a time limit while STOP drains, waits for the first.
    Otherwise Locust would stop its workers twice, and the second message would end their next test."""

    def once(stop: Callable[..., None]) -> Callable[..., None]:
        def stop_once(*args: Any, **kwargs: Any) -> None:
            while plugin.starting:  # a time limit may be shorter than a slow start
                gevent.sleep(0.01)
            if not plugin.at_rest.is_set():
                plugin.at_rest.wait()
                return
            plugin.at_rest.clear()
            if plugin.role is not None and plugin.role.run is not None:
                plugin.role.run.stopping()  # now, because Locust first inspects its stack, which takes time
            try:
                stop(*args, **kwargs)
            finally:
                plugin.at_rest.set()

        return stop_once

    locust_internals.replace(plugin.runner, "stop", once)


def _register_messages(environment: Environment, plugin: Plugin) -> None:
    """Register the messages between master and workers, which fleet.py describes."""
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
                # A master that ramps up or rebalances users may ask for some after it has ended the test.
                test = msg.data["parsed_options"].get(fleet.OPTION) if msg.type == "spawn" else None
                if test is None or test["id"] not in over:
                    handle_message(msg)

            return handle

        def stop(**_: Any) -> None:
            if test := getattr(environment.parsed_options, fleet.OPTION, None):
                over.add(test["id"])
            with one_at_a_time:
                runner.stop()
                if plugin.role is None:  # it has already sent its final report, or never had one
                    runner.send_message("asr_done", None)
                plugin.stop()

        def test_id() -> str | None:
            test = getattr(environment.parsed_options, fleet.OPTION, None)
            return None if test is None else str(test["id"])

        def cut(**_: Any) -> None:
            # Users requested earlier may still start a moment after this message.
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
        # Locust's runner disconnects from the master on this event. Locust calls the last listener first, so this one
        # lets a worker drain before it disconnects.
        environment.events.quitting.add_listener(stop)
        runner.register_message("asr_clock", clock)
        runner.register_message("asr_cut", cut, concurrent=True)


def _told_every_second(line: logging.LogRecord) -> bool:
    """Whether to log a line of Locust: not the ones that _tell_what_is_waited_for replaces."""
    return not str(line.msg).startswith("Waiting for workers to be ready")


def _tell_what_is_waited_for(runner: MasterRunner, plugin: Plugin) -> None:
    options = plugin.options
    worker = f"{locust_command(options.locustfile)} --worker --master-host ADDRESS"
    while not plugin.folders and (ready := len(runner.clients.ready)) < options.expect_workers:
        how = f"{worker} --master-port {options.master_bind_port}"
        print(f"waiting for workers: {ready} of {options.expect_workers} joined ({how})", file=sys.stderr, flush=True)
        gevent.sleep(WAITING_WORD_S)


def _listen(plugin: Plugin) -> None:
    """Add the plugin's listeners to Locust's events."""

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
    # After Locust's tables, so that the summary comes last.
    on.quit.add_listener(lambda **_: plugin.print_summary())
    on.quit.add_listener(lambda **_: interruption.ignore_signals())
