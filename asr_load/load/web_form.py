"""Start or edit a test from the web form."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

import gevent
from locust.runners import MasterRunner

from asr_load.audio.shard import prepared_folders
from asr_load.errors import InputError
from asr_load.http import server_info
from asr_load.load.plugin import NO_SHAPE, WORKERS_S, Plugin
from asr_load.load.preflight import ask_before_test
from asr_load.load.shapes import plan
from asr_load.options.form import LOCUSTS, FieldError, Form, changed, read_form
from asr_load.settings.host import check_host, split_host
from asr_load.shipped import SAMPLE, locust_command
from asr_load.text import count_of
from asr_load.web.webui import LoadPicture

ENDING_S = 2.0
"""Seconds that a start waits for the previous test to end."""


MOST_STAGES = 1000
"""Maximum number of stages of which the form shows a picture."""


class WebForm:
    """The form of the web UI that starts or edits a test."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    def take(self, form: Form) -> Form:
        """Apply the form's values to the options, and return Locust's fields. Raises InputError, and changes no option,
        if the test could not start as requested."""
        if not self._plugin.at_rest.wait(ENDING_S):
            raise InputError("the previous test is still finishing; try again in a moment")
        wanted = read_form(form, self._plugin.options)
        if self._plugin.role is not None:
            _check_edit(self._plugin, wanted, form)
            vars(self._plugin.options).update(vars(wanted))
            if form.get("run_time"):
                self._plugin.limit(wanted.run_time)
        else:
            wanted.host = _check_start(self._plugin, wanted, form)
            form = Form([*form.items(multi=True)])
            form["host"] = wanted.host
            vars(self._plugin.options).update(vars(wanted))
            self._plugin.choose_shape()
            self._plugin.limit(wanted.run_time)
        return Form((name, word) for name, word in form.items(multi=True) if name in LOCUSTS)

    def data(self) -> list[str]:
        """The prepared folders next to the test's data and in asr_data/."""
        parents = dict.fromkeys((Path(SAMPLE).parent, Path(self._plugin.options.data).parent))
        return [str(folder) for folder in prepared_folders(parents)]

    def models(self, host: str, key: str) -> list[str]:
        """The models of the server that the form names, with its API key, if any. Raises InputError."""
        settings, _ = self._plugin.checks.settings(self._plugin.options, host or self._plugin.environment.host, key)
        return server_info.list_models(settings.host, settings.headers, settings.intake, settings.transport)

    def picture(self, form: Form) -> LoadPicture:
        """The number of users over time that the form asks for; empty if that is not known before the test. Raises
        InputError."""
        wanted = read_form(form, self._plugin.options)
        peak, rate = wanted.num_users or 1, wanted.spawn_rate or 1.0
        if self._plugin.checks.searching:
            return LoadPicture()
        if (shape := getattr(wanted, "shape", NO_SHAPE)) != NO_SHAPE:
            if not (1 <= wanted.stages <= MOST_STAGES and 0 < wanted.stage_time < math.inf):
                return LoadPicture()
            stages = plan(shape, peak, wanted.stages, wanted.stage_time)
            corners = [corner for one in stages for corner in ((one.begins, one.first), (one.ends, one.last))]
            return LoadPicture([(0.0, 0), *corners], f"up to {count_of(peak, 'user')}, for {stages[-1].ends:g} s")
        full = peak / rate
        if wanted.run_time and wanted.run_time < full:
            users = round(wanted.run_time * rate)
            return LoadPicture(((0.0, 0), (wanted.run_time, users)), f"{count_of(users, 'user')} at the end")
        reached = f"{count_of(peak, 'user')} after {full:.3g} s"
        until = f"for {wanted.run_time:g} s" if wanted.run_time else "until stopped"
        return LoadPicture([(0.0, 0), (full, peak), (wanted.run_time or 1.25 * full, peak)], f"{reached}, {until}")


def _check_edit(plugin: Plugin, wanted: Namespace, form: Form) -> None:
    """Raise InputError if the running test cannot be changed like this."""
    if plugin.environment.shape_class is not None:
        raise InputError("a shape controls the load of the running test: stop the test first")
    if others := changed(wanted, plugin.options):
        line = f"{others[0].replace('_', ' ')} cannot change during a test: stop the test first"
        raise FieldError(others[0], line)
    if form.get("host") and check_host(split_host(form["host"])[0]) != plugin.environment.host:
        raise FieldError("host", "the host cannot change during a test: stop the test first")


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
