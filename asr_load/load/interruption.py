"""What SIGINT (Ctrl-C) and SIGTERM do to a process of Locust. docs/files.md has the table.

Until its environment is initialised, `signals.leave` ends the process: nothing has been measured. From then on a signal
is answered in a greenlet, so nothing is interrupted halfway, and Locust's main greenlet is told to end, once. Locust's
own handlers are not used: the one for SIGTERM comes after the start of a test, or after the end of a search, and takes
the process down a second time beside SIGINT.
"""

from __future__ import annotations

import logging
import os
import signal
import time

import gevent
from locust.runners import MasterRunner, WorkerRunner

from asr_load import locust_internals, signals
from asr_load.load import BEFORE_TEST
from asr_load.load.fleet import FINAL_REPORT_S, Master
from asr_load.load.fleet_socket import SILENT_S
from asr_load.load.plugin import Plugin
from asr_load.options.commandline import given_options

logger = logging.getLogger(__name__)

LOOK_S = 0.02
"""How often a test that is just beginning is looked at."""

GOODBYE_S = 5.0
"""How long a master without a test tries to tell its workers that it leaves."""

LOOK_FOR_MASTER_S = 1.0
"""How often a worker looks whether its master is still there, or the process that forked it."""

DRAIN_S, END_S = 10.0, 15.0
"""Seconds in which requests in flight may finish in a worker whose master is gone, and after which its process ends,
whatever it does: a minute after the master's last word."""


def after_fork(*, in_child: bool) -> None:
    """Answer signals for the workers of --processes, and in them. Called after each fork, on both sides."""
    gevent.spawn(_follow_parent if in_child else _take_back)


def _follow_parent() -> None:
    while not signals.is_orphan():
        gevent.sleep(LOOK_FOR_MASTER_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_with_master(plugin: Plugin) -> None:
    """End this worker's process when its master is gone: its test in order, if that does not take long."""
    environment, runner, silent = plugin.environment, plugin.environment.runner, 0
    assert runner is not None

    def heard(**_: object) -> None:
        nonlocal silent
        silent = 0

    environment.events.heartbeat_received.add_listener(heard)
    # Time itself says less: a worker that was stopped, or was busy, has not listened.
    while silent < SILENT_S / LOOK_FOR_MASTER_S and not signals.is_orphan():
        gevent.sleep(LOOK_FOR_MASTER_S)
        silent += not plugin.starting  # a worker that starts a test does not listen
    logger.error("the master is gone: this worker ends; requests in flight may finish within %g s", DRAIN_S)
    environment.process_exit_code = 1
    environment.stop_timeout = min(environment.stop_timeout, DRAIN_S)
    began = time.monotonic()
    while (passed := time.monotonic() - began) < END_S:
        if passed > DRAIN_S:
            locust_internals.cut_streams(runner)
        if not plugin.stopped_by and not plugin.starting and plugin.at_rest.is_set():
            _end_process(plugin, signal.SIGTERM)
        gevent.sleep(LOOK_FOR_MASTER_S)
    signals.leave(signal.SIGTERM)


def _take_back() -> None:
    if signals.is_child():  # a later child has the greenlets that its parent had spawned
        return
    # Of a process whose workers are all in others: Locust lets it ignore one SIGINT, and kills them with the next.
    signals.catch()
    given = given_options()
    if given is not None and given.worker:
        signals.on_signal(signals.pass_on)


def answer_signals(plugin: Plugin) -> None:
    """Answer signals for a process of Locust that is initialised."""

    def hear(number: int) -> None:
        gevent.get_hub().loop.run_callback_threadsafe(gevent.spawn, _answer, plugin, number)

    def quitting(**_: object) -> None:
        plugin.quitting = True

    # The last listener is the first to be called.
    plugin.environment.events.quitting.add_listener(quitting)
    signals.catch()
    signals.on_signal(hear)
    if isinstance(plugin.environment.runner, WorkerRunner):
        gevent.spawn(_leave_with_master, plugin)


def ignore_signals() -> None:
    """Let a process of Locust whose results are printed end as it would."""
    if signals.caught():
        signals.ignore()


def _answer(plugin: Plugin, number: int) -> None:
    runner, environment = plugin.environment.runner, plugin.environment
    assert runner is not None
    if signals.is_child() and number == signal.SIGINT and not plugin.stopped_by:
        # The terminal gives Ctrl-C to the parent too, which ends the test in order and then this process.
        gevent.sleep(environment.stop_timeout + 2 * FINAL_REPORT_S)
    while plugin.starting:
        gevent.sleep(LOOK_S)
    name, draining = signal.Signals(number).name, not plugin.at_rest.is_set()
    if plugin.stopped_by or plugin.quitting or (draining and environment.web_ui is None):
        if number == signal.SIGINT and draining:
            _cut(plugin)
        return
    if plugin.took_part or isinstance(runner, WorkerRunner):
        if plugin.role is not None:
            patience = environment.stop_timeout
            how = f"may finish within {patience:g} s (Ctrl-C cuts them off)" if patience else "are cut off"
            signals.say(f"{name}: the test ends; requests in flight {how}")
        _end_process(plugin, number)
        return
    plugin.stopped_by = number
    signals.say(f"stopped{BEFORE_TEST} ({name})")
    gevent.with_timeout(GOODBYE_S, runner.quit, timeout_value=None)
    code = signals.exit_code(number)
    # Locust waits for its workers where nothing catches KeyboardInterrupt.
    gevent.get_hub().handle_system_error(SystemExit, SystemExit(code))


def _end_process(plugin: Plugin, number: int) -> None:
    """Have Locust's main greenlet end the test, and then this process."""
    plugin.stopped_by = number
    gevent.get_hub().handle_system_error(KeyboardInterrupt, KeyboardInterrupt())


def _cut(plugin: Plugin) -> None:
    runner = plugin.environment.runner
    assert runner is not None
    signals.say("Ctrl-C: requests in flight are cut off")
    locust_internals.cut_streams(runner)
    if isinstance(plugin.role, Master):
        plugin.role.cut()
    elif isinstance(runner, MasterRunner):
        runner.send_message("asr_cut")
