"""The signals of the workers of --processes and of the process that forks them."""

from __future__ import annotations

import os
import signal

import gevent

from asr_load import signals
from asr_load.settings.commandline import given_options

LOOK_FOR_MASTER_S = 1.0
"""Seconds between a worker's checks of its master and its parent process."""


def after_fork(*, in_child: bool) -> None:
    """Handle signals for the workers of --processes. Called in both processes after each fork."""
    gevent.spawn(_follow_parent if in_child else _take_back)


def _follow_parent() -> None:
    while not signals.is_orphan():
        gevent.sleep(LOOK_FOR_MASTER_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _take_back() -> None:
    if signals.is_child():  # a later child inherits the greenlets of its parent
        return
    # In a process that only forked workers, Locust ignores one SIGINT and kills the workers on the next.
    signals.catch()
    given = given_options()
    if given is not None and given.worker:
        signals.on_signal(signals.pass_on)
