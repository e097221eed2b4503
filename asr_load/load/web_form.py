"""Start or edit a test from the web form."""

from __future__ import annotations

import time
from argparse import Namespace
from functools import partial

import gevent
from locust.runners import MasterRunner

from asr_load.errors import InputError
from asr_load.load.plugin import WORKERS_S, Plugin
from asr_load.load.preflight import ask_before_test
from asr_load.options.form import LOCUSTS, Form, changed, read_form
from asr_load.settings.host import check_host, split_host
from asr_load.shipped import locust_command

ENDING_S = 2.0
"""Seconds that a start waits for the previous test to end."""


def take_form(plugin: Plugin, form: Form) -> Form:
    """Apply the form's values to the options, and return Locust's fields. Raises InputError, and changes no option, if
    the test could not start as requested."""
    if not plugin.at_rest.wait(ENDING_S):
        raise InputError("the previous test is still finishing; try again in a moment")
    wanted = read_form(form, plugin.options)
    if plugin.role is not None:
        _check_edit(plugin, wanted, form)
        vars(plugin.options).update(vars(wanted))
        if form.get("run_time"):
            plugin.limit(wanted.run_time)
    else:
        wanted.host = _check_start(plugin, wanted, form)
        form = Form([*form.items(multi=True)])
        form["host"] = wanted.host
        vars(plugin.options).update(vars(wanted))
        plugin.choose_shape()
        plugin.limit(wanted.run_time)
    return Form((name, word) for name, word in form.items(multi=True) if name in LOCUSTS)


def _check_edit(plugin: Plugin, wanted: Namespace, form: Form) -> None:
    """Raise InputError if the running test cannot be changed like this."""
    if plugin.environment.shape_class is not None:
        raise InputError("a shape controls the load of the running test: stop the test first")
    if others := changed(wanted, plugin.options):
        raise InputError(f"{others[0].replace('_', ' ')} cannot change during a test: stop the test first")
    if form.get("host") and check_host(split_host(form["host"])[0]) != plugin.environment.host:
        raise InputError("the host cannot change during a test: stop the test first")


def _check_start(plugin: Plugin, wanted: Namespace, form: Form) -> str:
    """Check that a test can start with these options, and keep its API key. Returns its host. Raises InputError."""
    key, wanted.api_key = wanted.api_key, ""  # the options are visible in pages and to workers
    host = form.get("host") or plugin.environment.host
    check = partial(plugin.checks.check, wanted, host, key, form.getlist("user_classes"))
    settings = check()[0]
    if key and isinstance(plugin.runner, MasterRunner):
        raise InputError("a fleet's workers need the API key themselves: start them with OPENAI_API_KEY and --host")
    plugin.server_info = ask_before_test(
        check,
        plugin.checks.models,
        plugin.checks.dialects,
        ready_s=0,
        trial=not wanted.no_preflight,
        flush=wanted.flush_cache,
    )
    if key:
        plugin.checks.credentials.keep(settings.host, key)
    if isinstance(plugin.runner, MasterRunner):
        _wait_for_workers(plugin, plugin.runner)
    return settings.host


def _wait_for_workers(plugin: Plugin, runner: MasterRunner) -> None:
    """Wait until the last test's workers are ready again or, before the first test, until all expected workers are.
    Raises InputError if there are no workers: Locust would report a started test but send nothing."""
    options, (members, until) = plugin.options, plugin.coming_back
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
