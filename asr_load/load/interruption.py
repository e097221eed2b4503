"""Handle SIGINT (Ctrl-C) and SIGTERM in a process of Locust. docs/files.md has the table.

Until the environment is initialised, `signals.leave` ends the process, because nothing has been measured. From then on
a greenlet handles signals, so that nothing is interrupted halfway, and tells Locust's main greenlet to end, once.
Locust's handlers are not used: the one for SIGTERM is set after the start of a test, or after the end of a search, and
shuts the process down a second time after SIGINT.
"""

from __future__ import annotations

import logging
import signal
import time

import gevent
from locust.runners import MasterRunner, WorkerRunner

from asr_load import signals
from asr_load.load import locust_internals
from asr_load.load.fleet_socket import SILENT_S
from asr_load.load.forks import LOOK_FOR_MASTER_S
from asr_load.load.master import FINAL_REPORT_S, Master
from asr_load.load.messages import Cut, send_to_workers
from asr_load.load.plugin import Plugin

logger = logging.getLogger(__name__)

LOOK_S = 0.02
"""Seconds between checks whether a test has started."""

GOODBYE_S = 5.0
"""Seconds for a master without a test to tell its workers to quit."""

DRAIN_S, END_S = 10.0, 15.0
"""Seconds for requests in flight to finish in a worker without a master, and until its process exits in any case: one
minute after the master's last message."""


def _leave_with_master(plugin: Plugin) -> None:
    """End this worker when its master is gone, after a short time for its test to finish."""
    environment, runner, silent = plugin.environment, plugin.runner, 0

    def heartbeat_received(**_: object) -> None:
        nonlocal silent
        silent = 0

    environment.events.heartbeat_received.add_listener(heartbeat_received)
    # Count checks instead of time: a worker that was stopped or busy did not listen.
    while silent < SILENT_S / LOOK_FOR_MASTER_S and not signals.is_orphan():
        gevent.sleep(LOOK_FOR_MASTER_S)
        silent += not plugin.starting  # a worker that starts a test does not listen
    logger.error("the master is gone: stopping this worker; requests in flight may finish within %g s", DRAIN_S)
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


def answer_signals(plugin: Plugin) -> None:
    """Handle signals in an initialised process of Locust."""

    def on_signal(number: int) -> None:
        gevent.get_hub().loop.run_callback_threadsafe(gevent.spawn, _answer, plugin, number)

    def quitting(**_: object) -> None:
        plugin.quitting = True

    # Locust calls the last listener first.
    plugin.environment.events.quitting.add_listener(quitting)
    signals.catch()
    signals.on_signal(on_signal)
    if isinstance(plugin.runner, WorkerRunner):
        gevent.spawn(_leave_with_master, plugin)


def ignore_signals() -> None:
    """Ignore signals in a process of Locust that has printed its results and is about to end."""
    if signals.caught():
        signals.ignore()


def _answer(plugin: Plugin, number: int) -> None:
    runner, environment = plugin.runner, plugin.environment
    if signals.is_child() and number == signal.SIGINT and not plugin.stopped_by:
        # A terminal sends Ctrl-C to the parent too, which ends the test in order and then this process.
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
            signals.say(f"{name}: stopping the test; requests in flight {how}")
        _end_process(plugin, number)
        return
    plugin.stopped_by = number
    signals.say(f"stopped{signals.BEFORE_TEST} ({name})")
    gevent.with_timeout(GOODBYE_S, runner.quit, timeout_value=None)
    code = signals.exit_code(number)
    # While Locust waits for its workers, nothing catches KeyboardInterrupt.
    gevent.get_hub().handle_system_error(SystemExit, SystemExit(code))


def _end_process(plugin: Plugin, number: int) -> None:
    """Let Locust's main greenlet end the test and then this process."""
    plugin.stopped_by = number
    gevent.get_hub().handle_system_error(KeyboardInterrupt, KeyboardInterrupt())


def _cut(plugin: Plugin) -> None:
    runner = plugin.runner
    signals.say("Ctrl-C: cutting off requests in flight")
    locust_internals.cut_streams(runner)
    if isinstance(plugin.role, Master):
        plugin.role.cut()
    elif isinstance(runner, MasterRunner):
        send_to_workers(runner, Cut())
