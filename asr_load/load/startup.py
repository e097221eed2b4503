"""Attach asr-load to Locust: add its options, check those of the command line, and only then import the rest."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner

from asr_load import signals
from asr_load.errors import InputError
from asr_load.load import fleet_socket, forks, locust_internals
from asr_load.load.checks import Checks
from asr_load.load.own_options import host_of_classes
from asr_load.options.parser import add_options
from asr_load.settings.commandline import given_options, judge_command_line
from asr_load.settings.credentials import Credentials
from asr_load.text import visible

if TYPE_CHECKING:
    from asr_load.load.plugin import Plugin


def _install() -> None:
    """Change Locust as necessary before any environment exists. Raises InputError if its version is not supported."""
    locust_internals.check_functions()
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
        locust_internals.own_signals(_fork_worker, forks.after_fork)
    add_options(parser)
    judge_command_line(parser)


@events.init.add_listener
def _on_init(environment: Environment, **_: Any) -> None:
    """Attach to an environment. On bad input, ends the process with one line and exit code 2."""
    try:
        plugin = attach(environment)
    except InputError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)  # the message may quote the server
        sys.exit(2)
    from asr_load.load.interruption import answer_signals

    answer_signals(plugin)
    # Timers start from the loop's time, which did not advance during the imports: -t would end too early.
    gevent.get_hub().loop.update_now()


def attach(environment: Environment) -> Plugin:
    """Make a Plugin for an environment that has its options and runner. Raises InputError."""
    _install()
    runner, options = environment.runner, environment.parsed_options
    if runner is None or options is None:
        raise InputError("the environment needs a runner and parsed_options before asr-load is attached")
    locust_internals.check_environment(environment)
    credentials = _take_credentials(environment, options)
    checks = Checks(environment, credentials)
    # A worker gets its host and options from the master with the first test.
    is_worker = isinstance(runner, WorkerRunner)
    server_info = {} if is_worker else _check_first_test(environment, options, checks)
    from asr_load.load.lifecycle import set_up

    return set_up(environment, options, runner, checks, server_info)


def _take_credentials(environment: Environment, options: Namespace) -> Credentials:
    """Take the secrets out of the options, which Locust shows in pages and sends to workers. Sets the host of the user
    classes, for a test without --host. Raises InputError."""
    given = given_options() or options
    if not environment.host:
        environment.host = given.host = options.host = _host_of_classes(environment)
    credentials = Credentials(given)
    vars(options).update(api_key="", header=[], proxy=credentials.proxy)
    return credentials


def _host_of_classes(environment: Environment) -> str | None:
    """The host of the user classes. Raises InputError if they name several, except in a worker, whose master may have
    a --host."""
    try:
        return host_of_classes(environment.user_classes)
    except InputError:
        if isinstance(environment.runner, WorkerRunner):
            return None
        raise


def _check_first_test(environment: Environment, options: Namespace, checks: Checks) -> dict[str, Any]:
    """Check the test of the command line, fill in defaults, and ask the server. Returns what the server reports about
    itself. Raises InputError."""
    settings = checks.check_options(options, environment.host)
    # Use the checked host, which has no trailing slash and no password.
    environment.host = options.host = settings.host
    if checks.searching:
        # Let streams that are in flight at the end of a step finish.
        options.stop_timeout = environment.stop_timeout = max(environment.stop_timeout, settings.timeouts.total)
    if options.spawn_rate is None and options.num_users and settings.loop.open:
        options.spawn_rate = min(options.num_users, locust_internals.SPAWN_RATE)  # arrivals do not wait for users
    from asr_load.load.preflight import ask_before_test

    at_once = options.headless or options.autostart
    return ask_before_test(
        partial(checks.check, options, environment.host),
        checks.models,
        checks.dialects,
        ready_s=options.ready_timeout if at_once else 0,
        trial=at_once and not options.no_preflight,
        flush=at_once and options.flush_cache,
        meanwhile=_prepare,
    )


def _prepare() -> None:
    """Import and prepare what a test needs."""
    from asr_load.load.lifecycle import prepare

    prepare()


def _fork_worker(fork: Callable[[], int]) -> int:
    """Fork a worker of --processes. Returns what `fork` returns."""
    import asr_load.load.lifecycle  # noqa: F401 (once, and in memory that the workers share)

    return signals.fork_child(fork)
