"""Everything that uses or replaces Locust's internals, with the reason for each, and a check of them.

A Locust with other internals would silently lose records or distort metrics. So before a test can start, `check`
compares these internals with those of the supported version; a difference ends the process.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
import locust
import locust.runners
import locust.stats
from locust import argument_parser
from locust.env import Environment
from locust.event import EventHook
from locust.rpc import zmqrpc
from locust.runners import STATE_STOPPING, MasterRunner, Runner, WorkerRunner
from locust.stats import RequestStats, StatsEntry

from asr_load.errors import InputError

if TYPE_CHECKING:
    import numpy as np

WRITTEN_FOR = "2.47.0"

SPAWN_RATE = 100
"""Users to start per second in an open loop or a step of a search. Locust warns about higher rates."""

READ_S = 60
"""Seconds of Locust's counts to keep. Its rates use about ten seconds before the last request."""

HEARTBEAT_PATIENCE_S = 10
"""Seconds that a master waits for a worker's heartbeat before it declares the worker missing."""


class Touched(NamedTuple):
    """A function of Locust: its expected parameters, and why it is replaced or called."""

    owner: Any
    name: str
    parameters: str
    why: str


TOUCHED = (
    Touched(zmqrpc.BaseSocket, "__init__", "self sock_type ipv4_only", "encrypt the connection with the fleet's token"),
    Touched(MasterRunner, "__init__", "self environment master_bind_host master_bind_port", "the token is an option"),
    Touched(WorkerRunner, "__init__", "self environment master_host master_port", "the same"),
    Touched(MasterRunner, "reset_connection", "self", "it makes a new socket"),
    Touched(WorkerRunner, "reset_connection", "self", "the same"),
    Touched(zmqrpc.Server, "recv_from_client", "self", "a malformed message ends the listener to all workers"),
    Touched(MasterRunner, "handle_message", "self client_id msg", "check what workers send before using it"),
    Touched(WorkerRunner, "connect_to_master", "self", "it tries for five minutes in silence"),
    Touched(WorkerRunner, "handle_message", "self msg", "users that start after a test's end lose their records"),
    Touched(WorkerRunner, "_send_stats", "self", "the last records must arrive before the worker reports its end"),
    Touched(Runner, "stop", "self", "two stops at once would reach workers twice, and the second ends the next test"),
    Touched(MasterRunner, "stop", "self send_stop_to_client", "the same"),
    Touched(Runner, "quit", "self", "a master sleeps half a second in each of three calls"),
    Touched(
        StatsEntry, "log", "self response_time content_length", "one call for each of a thousand gaps blocks the loop"
    ),
    Touched(RequestStats, "log_request", "self method name response_time content_length", "Aggregated counts requests"),
    Touched(RequestStats, "serialize_stats", "self", "it empties the rows before they are printed"),
    Touched(gevent, "fork", "args kwargs", "--processes workers outlive a master that exits before its test"),
    Touched(gevent, "signal_handler", "signalnum handler args kwargs", "Locust's SIGTERM ends a test a second time"),
    Touched(argument_parser, "default_args_dict", "", "a worker builds it 150 times per spawn message: 0.2 s"),
    Touched(locust.stats, "bucket_response_time", "response_time", "its buckets are up to 9 % off"),
)

_ENDPOINTS = ("locust.swarm", "locust.update_user", "locust.index", "locust.request_stats", "locust.stats_report")
_WEB_UI = ("app", "template_args", "update_template_args", "auth_required_if_enabled", "userclass_picker_is_active")


def check() -> None:
    """Raise InputError if this Locust differs from TOUCHED, or counts differently from `log_all`."""
    check_functions()
    check_counts()


def check_functions() -> None:
    """Raise InputError if this Locust's functions differ from TOUCHED."""
    for owner, name, parameters, _ in TOUCHED:
        what = f"{getattr(owner, '__name__', owner)}.{name}"
        function = getattr(owner, name, None)
        if function is None:
            raise _unknown(f"it has no {what}")
        present = " ".join(inspect.signature(function).parameters)
        if present != parameters:
            raise _unknown(f"{what} takes {present or 'nothing'}, not {parameters}")
    _require(EventHook(), ("_handlers",))
    _require(locust.runners, ("HEARTBEAT_LIVENESS", "HEARTBEAT_INTERVAL"))


def check_counts() -> None:
    """Raise InputError if Locust counts differently from `log_all`."""
    import numpy as np  # late: see "Start" in docs/architecture.md

    values = np.array([0.5, 12.0, 250.0, 12.0])
    one_by_one, together = (StatsEntry(RequestStats(), "name", "GET", True) for _ in range(2))
    for value in values.tolist():
        one_by_one.log(value, 0)
    log_all(together, values, lambda rest: np.array([locust.stats.bucket_response_time(value) for value in rest]))
    if _counts(one_by_one) != _counts(together):
        raise _unknown("its statistics count differently")


def check_environment(environment: Environment) -> None:
    """Raise InputError if an environment lacks an attribute that is used."""
    runner, web_ui = environment.runner, environment.web_ui
    _require(runner, ("state", "user_greenlets", "user_count", "register_message"))
    if isinstance(runner, MasterRunner):
        _require(runner, ("clients", "server"))
        _require(runner.clients, ("ready", "values"))
    if web_ui is not None:
        _require(web_ui, _WEB_UI)
        app: Any = web_ui.app
        if missing := [name for name in _ENDPOINTS if name not in app.view_functions]:
            raise _unknown(f"its web UI has no {missing[0]}")


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace one of TOUCHED with `make(function)`; on an instance, only for that instance."""
    kind = owner if inspect.isclass(owner) or inspect.ismodule(owner) else type(owner)
    assert any(touched.name == name and _is_of(touched.owner, kind) for touched in TOUCHED), name
    setattr(owner, name, make(getattr(owner, name)))


def _is_of(owner: Any, kind: Any) -> bool:
    return owner is kind or (inspect.isclass(owner) and inspect.isclass(kind) and issubclass(kind, owner))


def _counts(entry: StatsEntry) -> dict[str, Any]:
    times = ("stats", "num_reqs_per_sec", "start_time", "last_request_timestamp", "response_times_cache")
    counts = {name: value for name, value in vars(entry).items() if name not in times}
    return counts | {"in_seconds": sum(entry.num_reqs_per_sec.values())}


def _require(thing: Any, names: Iterable[str]) -> None:
    for name in names:
        if not hasattr(thing, name):
            raise _unknown(f"its {getattr(thing, '__name__', type(thing).__name__)} has no {name}")


def _unknown(why: str) -> InputError:
    version = locust.__version__
    return InputError(f"Locust {version} is not supported: {why}. Install locust=={WRITTEN_FOR}")


def remember_defaults() -> None:
    """Cache the names of Locust's options. A worker looks them up for each option of each spawn message, which would
    stop it from reading streams for 0.2 s every second of the ramp-up."""
    if not hasattr(argument_parser.default_args_dict, "cache_info"):
        replace(argument_parser, "default_args_dict", functools.cache)


def wait_longer_for_heartbeats() -> None:
    """Let a master wait longer for each heartbeat. A worker on a busy machine may need more than Locust's three seconds
    to start a test, and the master would stop it because "the last worker went missing"."""
    locust.runners.HEARTBEAT_LIVENESS = HEARTBEAT_PATIENCE_S // locust.runners.HEARTBEAT_INTERVAL


def own_signals(fork_child: Callable[[Callable[[], int]], int], after_fork: Callable[..., None]) -> None:
    """Fork the workers of --processes with `fork_child`, call `after_fork(in_child=...)` in both processes, and keep
    Locust from handling SIGTERM."""
    if hasattr(gevent.fork, "__wrapped__"):
        return

    def noted(fork: Callable[..., int]) -> Callable[[], int]:
        @functools.wraps(fork)
        def fork_noted() -> int:
            pid = fork_child(fork)
            after_fork(in_child=not pid)
            return pid

        return fork_noted

    def but_locusts(signal_handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(signal_handler, updated=())
        def others(signalnum: int, handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if handler.__module__ == "locust.main":
                return None
            return signal_handler(signalnum, handler, *args, **kwargs)

        return others

    replace(gevent, "fork", noted)
    replace(gevent, "signal_handler", but_locusts)


def log_all(entry: StatsEntry, values: np.ndarray, buckets: Callable[[np.ndarray], np.ndarray]) -> None:
    """Do what `entry.log` does for each of `values`, in ms, shape (n,), n at least 1. `buckets` rounds an array as
    Locust's function rounds one value."""
    import numpy as np  # late: see "Start" in docs/architecture.md

    # Locust logs the first value itself: it also starts a new second and caches the percentiles of the last one.
    entry.log(values[0].item(), 0)
    others = values[1:]
    if others.size:
        entry.num_requests += others.size
        entry.total_response_time += others.sum().item()
        assert entry.min_response_time is not None
        entry.min_response_time = min(entry.min_response_time, others.min().item())
        entry.max_response_time = max(entry.max_response_time, others.max().item())
        rounded, counts = np.unique(buckets(others), return_counts=True)
        for value, count in zip(rounded.tolist(), counts.tolist(), strict=True):
            entry.response_times[value] += count
        entry.num_reqs_per_sec[int(time.time())] += others.size


def forget_old_seconds(environment: Environment) -> None:
    """Drop Locust's counts of old seconds, which would fill memory, unless `--json` needs them."""
    options = environment.parsed_options
    if options is not None and (options.json or options.json_file):
        return
    until = (environment.stats.last_request_timestamp or 0.0) - READ_S
    for entry in (environment.stats.total, *environment.stats.entries.values()):
        for counts in (entry.num_reqs_per_sec, entry.num_fail_per_sec):
            for second in list(itertools.takewhile(until.__gt__, counts)):
                del counts[second]


def listens_alone(environment: Environment) -> bool:
    """Whether only Locust's statistics listen to request events. Then none need to be fired: the 65 events of one
    request would take 0.2 ms."""
    return len(environment.events.request._handlers) == 1


def cut_streams(runner: Runner) -> None:
    """Kill the users without waiting for them."""
    runner.user_greenlets.kill(block=False)


def take_no_workers(runner: MasterRunner) -> None:
    """Mark the test as stopping: while streams drain, Locust would give users to a worker that joins."""
    runner.state = STATE_STOPPING


def send_last_report(runner: WorkerRunner) -> None:
    """Send Locust's last report early; it carries the remaining records."""
    runner._send_stats()


def stop_starting(web_ui: Any) -> None:
    """Cancel a start that still spawns users, as Locust's STOP does; it would report the ended test as running."""
    if (starting := web_ui._swarm_greenlet) is not None:
        starting.kill()
