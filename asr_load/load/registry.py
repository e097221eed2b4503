"""The plugin and the running test of each of Locust's environments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent
from locust.env import Environment

if TYPE_CHECKING:
    from asr_load.load.plugin import Plugin
    from asr_load.load.run import Run


def keep_plugin(plugin: Plugin) -> None:
    """Register a plugin for `plugin_of`."""
    vars(plugin.environment)["asr_load"] = plugin


def plugin_of(environment: Environment) -> Plugin:
    """The plugin of an environment. Raises KeyError before the environment is initialised."""
    plugin: Plugin = vars(environment)["asr_load"]
    return plugin


def started_run(environment: Environment) -> Run | None:
    """The running test in this process; None without one, or before the environment is initialised."""
    return plugin_of(environment).run if "asr_load" in vars(environment) else None


def current_run(environment: Environment) -> Run:
    """The running test in this process. Raises GreenletExit without one: it could not start, and the error was logged.
    Waits until the environment is initialised, because a worker's users may start before that."""
    while "asr_load" not in vars(environment):
        gevent.sleep(0.01)
    plugin = plugin_of(environment)
    plugin.ready.wait()
    if plugin.run is None:
        raise gevent.GreenletExit  # ends a user; Locust would log a StopUser here as an error
    return plugin.run
