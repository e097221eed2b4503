"""Register asr-load's event listeners and messages in Locust, which start and end a Run for each test."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
import msgspec
from gevent.event import Event
from gevent.lock import RLock, Semaphore
from locust.env import Environment
from locust.rpc import Message
from locust.runners import MasterRunner, Runner, WorkerRunner

from asr_load import git_state
from asr_load.load import fleet_socket, interruption, locust_internals, stats
from asr_load.load.checks import Checks
from asr_load.load.master import Master
from asr_load.load.messages import (
    REPORT,
    ArrivalPlan,
    Cut,
    Done,
    FleetMessage,
    Refusal,
    ShareDone,
    Stop,
    TimeAnswer,
    TimeQuestion,
    decode,
    id_of_test,
    send_to_master,
)
from asr_load.load.plugin import Plugin
from asr_load.load.registry import keep_plugin
from asr_load.load.web_form import WebForm
from asr_load.load.worker import Worker
from asr_load.results import accuracy
from asr_load.results.metrics import figures
from asr_load.shipped import locust_command
from asr_load.web import exporter, webui

logger = logging.getLogger(__name__)

REMINDER_S = 10.0
"""Seconds between messages about missing workers."""

CUT_S, CUT_EVERY_S = 1.0, 0.05
"""Minimum duration and interval, in seconds, at which a worker kills starting users after its streams were cut off."""

Kind = TypeVar("Kind", bound=FleetMessage)


@functools.cache
def prepare() -> None:
    """Do what each test needs once: import and open everything for its summary, because the test may use up all file
    descriptors, and fill caches that would delay its streams."""
    import asr_load.report.capacity
    import asr_load.report.summary  # noqa: F401

    accuracy.prepare()
    figures([0.0, 1.0])  # numpy imports parts of itself on first use
    git_state()
    _inspect_stack()


@functools.cache
def _inspect_stack() -> None:
    """Let Locust inspect its stack quickly when it stops a test. The first inspection reads source files, which would
    block the loop for 80 ms while streams still arrive; later ones use a cache."""
    inspect.stack()


def set_up(
    environment: Environment, options: Namespace, runner: Runner, checks: Checks, server_info: dict[str, Any]
) -> Plugin:
    """Make the plugin of an environment whose first test is checked, and register everything. `server_info`: what the
    server reported about itself. Raises InputError if Locust's version is not supported."""
    locust_internals.check_counts()
    plugin = Plugin(environment, options, runner, checks, server_info)
    if isinstance(runner, WorkerRunner):
        _inspect_stack()
    else:
        prepare()
    keep_plugin(plugin)
    _stop_once(plugin)
    _quit_once(runner)
    stats.set_up(environment)
    webui.set_up(environment, lambda: plugin.store, WebForm(plugin))
    if options.metrics_port and not isinstance(runner, WorkerRunner):
        exporter.serve(options.metrics_port, options.web_host, exporter.metrics_app(runner, lambda: plugin.store))
    on = environment.events
    on.test_start.add_listener(lambda **_: plugin.start())
    on.test_stop.add_listener(lambda **_: plugin.stop())
    on.quitting.add_listener(lambda **_: plugin.quit())
    # After Locust's tables, so that the summary comes last.
    on.quit.add_listener(lambda **_: plugin.reports.print())
    on.quit.add_listener(lambda **_: interruption.ignore_signals())
    if isinstance(runner, MasterRunner):
        _listen_to_workers(plugin, runner)
        if environment.web_ui is None:
            logging.getLogger().addFilter(_is_not_repeated)
            gevent.spawn(_print_missing_workers, runner, plugin)
    elif isinstance(runner, WorkerRunner):
        _listen_to_master(plugin, runner)
        # A worker listens to its master from the beginning, so a test may already have begun.
        if id_of_test(vars(options)):
            plugin.start()
    plugin.ready.set()
    return plugin


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
            if plugin.run is not None:
                plugin.run.stopping()  # now, because Locust first inspects its stack, which takes time
            try:
                stop(*args, **kwargs)
            finally:
                plugin.at_rest.set()

        return stop_once

    locust_internals.replace(plugin.runner, "stop", once)


def _quit_once(runner: Runner) -> None:
    """Let only the first call shut the runner down; others wait for it. Locust calls it three times at the end of a
    test, and a master sleeps half a second each time, for reports that have already arrived."""
    one_at_a_time, has_quit = RLock(), Event()

    def once(quit: Callable[[], None]) -> Callable[[], None]:
        def quit_once() -> None:
            with one_at_a_time:
                if not has_quit.is_set():
                    quit()
                    has_quit.set()

        return quit_once

    locust_internals.replace(runner, "quit", once)


def _listen_to_workers(plugin: Plugin, runner: MasterRunner) -> None:
    """Register the messages of workers, and drop a worker that sends a malformed one."""

    def register(kind: type[Kind], act: Callable[[Master, str, Kind], None]) -> None:
        def listen(msg: Message, **_: Any) -> None:
            try:
                content = decode(msg.data, kind)
            except msgspec.ValidationError as error:
                fleet_socket.drop(runner, msg.node_id, f"its {msg.type!r} message is invalid ({error})")
                return
            if isinstance(plugin.role, Master):
                act(plugin.role, msg.node_id, content)

        runner.register_message(kind.type, listen)

    register(ShareDone, lambda role, worker, _: role.share_done(worker))
    register(Done, lambda role, worker, _: role.done(worker))
    register(TimeQuestion, lambda role, worker, question: role.answer_time(worker, question))
    register(Refusal, lambda role, _, refusal: role.refuse(refusal.reason))

    def worker_connect(client_id: str, **_: Any) -> None:
        if isinstance(plugin.role, Master):
            plugin.role.add_worker(client_id)

    def worker_report(client_id: str, data: dict[str, Any], **_: Any) -> None:
        if isinstance(plugin.role, Master) and REPORT in data:
            plugin.role.take_report(client_id, data[REPORT])

    def test_stopping(**_: Any) -> None:
        if isinstance(plugin.role, Master):
            plugin.role.drain()

    plugin.environment.events.worker_connect.add_listener(worker_connect)
    plugin.environment.events.worker_report.add_listener(worker_report)
    plugin.environment.events.test_stopping.add_listener(test_stopping)


def _listen_to_master(plugin: Plugin, runner: WorkerRunner) -> None:
    """Register the messages of the master."""
    options, one_at_a_time, ended = vars(plugin.options), Semaphore(), set[str]()

    def but_late_spawns(handle_message: Callable[[Message], None]) -> Callable[[Message], None]:
        def handle(msg: Message) -> None:
            # A master that ramps up or rebalances users may ask for some after it has ended the test.
            if msg.type != "spawn" or id_of_test(msg.data["parsed_options"]) not in ended:
                handle_message(msg)

        return handle

    def stop(**_: Any) -> None:
        if test := id_of_test(options):
            ended.add(test)
        with one_at_a_time:
            runner.stop()
            if plugin.role is None:  # it has already sent its final report, or never had one
                send_to_master(runner, Done())
            plugin.stop()

    def cut(**_: Any) -> None:
        # Users requested earlier may still start a moment after this message.
        test, until = id_of_test(options), time.monotonic() + CUT_S
        while id_of_test(options) == test and (plugin.starting or plugin.role is not None or time.monotonic() < until):
            locust_internals.cut_streams(runner)
            gevent.sleep(CUT_EVERY_S)

    def take_time(msg: Message, **_: Any) -> None:
        if isinstance(plugin.role, Worker):
            plugin.role.take_time(decode(msg.data, TimeAnswer))

    def take_plan(msg: Message, **_: Any) -> None:
        if isinstance(plugin.role, Worker):
            plugin.role.take_plan(decode(msg.data, ArrivalPlan))

    def report_to_master(data: dict[str, Any], **_: Any) -> None:
        if isinstance(plugin.role, Worker):
            plugin.role.report(data)

    locust_internals.replace(runner, "handle_message", but_late_spawns)
    runner.register_message(Stop.type, stop, concurrent=True)
    runner.register_message(Cut.type, cut, concurrent=True)
    runner.register_message(TimeAnswer.type, take_time)
    runner.register_message(ArrivalPlan.type, take_plan)
    plugin.environment.events.report_to_master.add_listener(report_to_master)
    # Locust's runner disconnects from the master on this event. Locust calls the last listener first, so this one
    # lets a worker drain before it disconnects.
    plugin.environment.events.quitting.add_listener(stop)


def _is_not_repeated(line: logging.LogRecord) -> bool:
    """Whether to log a line of Locust: not the ones that _print_missing_workers replaces."""
    return not str(line.msg).startswith("Waiting for workers to be ready")


def _print_missing_workers(runner: MasterRunner, plugin: Plugin) -> None:
    options = plugin.options
    worker = f"{locust_command(options.locustfile)} --worker --master-host ADDRESS"
    while plugin.folder is None and (ready := len(runner.clients.ready)) < options.expect_workers:
        how = f"{worker} --master-port {options.master_bind_port}"
        print(f"waiting for workers: {ready} of {options.expect_workers} joined ({how})", file=sys.stderr, flush=True)
        gevent.sleep(REMINDER_S)
