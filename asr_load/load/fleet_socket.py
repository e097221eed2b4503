"""Secure the connection between a master and its workers against strangers and malformed messages.

Locust lets anyone join who reaches the master's port, and a malformed message ends the greenlet that listens to all
workers. With a token, messages are encrypted, and those of a sender without the token are ignored (CurveZMQ, with keys
derived from the token: https://rfc.zeromq.org/spec/26/). A worker that sends an invalid message is dropped.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from argparse import Namespace
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal
from weakref import WeakKeyDictionary

import gevent
import msgspec
import zmq
from gevent import socket
from locust.env import Environment
from locust.exception import RPCError
from locust.rpc import Message, zmqrpc
from locust.runners import MasterRunner, WorkerRunner
from zmq.utils import z85

from asr_load.load import locust_internals
from asr_load.settings.credentials import TOKEN, read_token
from asr_load.stream.record import Amount, Count, Moment
from asr_load.text import visible

logger = logging.getLogger(__name__)

BROKEN = "asr_broken"
"""The type of a message that replaces an unreadable one."""

DAY_S = 86400.0
"""Maximum difference of clocks, in seconds."""

WORD_AFTER_S = 10.0
"""Seconds between warnings of a worker that its master does not respond."""

SILENT_S = 45.0
"""Seconds without a message from its master after which a worker exits."""

Keys = tuple[bytes, bytes]
"""Public and secret key of a master. Everyone with the token can derive both."""

_keys: ContextVar[Keys | None] = ContextVar("keys", default=None)
"""The keys of the sockets that this greenlet makes now; None without a token."""


def _keys_of(options: Namespace | None) -> Keys | None:
    """The keys of a fleet with these options; None without a token. Raises InputError."""
    token = read_token(options) if options is not None and "fleet_token_file" in options else ""
    if not token:
        return None
    # scrypt makes guesses slow for somebody who has recorded the fleet's traffic.
    secret = z85.encode(hashlib.scrypt(token.encode(), salt=b"asr-load fleet", n=2**14, r=8, p=1, dklen=32))
    return zmq.curve_public(secret), secret


def install() -> None:
    """Install these functions in Locust, once."""
    if zmqrpc.Server.recv_from_client is _receive:
        return
    locust_internals.replace(zmqrpc.BaseSocket, "__init__", _encrypted)
    for runner in (MasterRunner, WorkerRunner):
        locust_internals.replace(runner, "__init__", _with_keys_of_options)
        locust_internals.replace(runner, "reset_connection", _with_keys)
    locust_internals.replace(zmqrpc.Server, "recv_from_client", lambda _: _receive)
    locust_internals.replace(MasterRunner, "handle_message", _checked)
    locust_internals.replace(WorkerRunner, "connect_to_master", _telling)


def _keys_of_runner(runner: Any) -> Keys | None:
    keys: Keys | None = getattr(runner, "asr_keys", None)  # it may be older than `install`
    return keys


def _with_keys_of_options(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def init_with_keys(self: Any, environment: Environment, **address: Any) -> None:
        # Keep them, because a master's options replace those of its workers later.
        self.asr_keys = _keys_of(environment.parsed_options)
        _with_keys(init)(self, environment, **address)

    return init_with_keys


def _with_keys(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def call_with_keys(self: Any, *args: Any, **words: Any) -> None:
        before = _keys.set(_keys_of_runner(self))
        try:
            method(self, *args, **words)
        finally:
            _keys.reset(before)

    return call_with_keys


def _encrypted(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def init_encrypted(self: Any, sock_type: int, *rest: Any) -> None:
        init(self, sock_type, *rest)
        if (keys := _keys.get()) is None:
            return
        public, secret = keys
        if sock_type == zmq.ROUTER:
            self.socket.curve_server = True
            self.socket.curve_publickey, self.socket.curve_secretkey = public, secret
        else:
            self.socket.curve_serverkey = public
            self.socket.curve_publickey, self.socket.curve_secretkey = zmq.curve_keypair()

    return init_encrypted


def _receive(self: Any) -> tuple[str, Message]:
    """Receive the next message and its sender. An unreadable message becomes one of type BROKEN."""
    try:
        frames = self.socket.recv_multipart()
    except zmq.ZMQError as error:
        raise RPCError("ZMQ network broken") from error
    sender = frames[0].decode("utf-8", "backslashreplace")
    try:
        _, data = frames
        message = Message.unserialize(data)
    except Exception:  # msgpack and Message raise many kinds for a stranger's bytes
        return sender, Message(BROKEN, None, sender)
    if isinstance(message.type, str) and isinstance(message.node_id, str):
        return sender, message
    return sender, Message(BROKEN, None, sender)


_dropped: WeakKeyDictionary[MasterRunner, set[str]] = WeakKeyDictionary()


def drop(runner: MasterRunner, sender: str, why: str) -> None:
    """Ignore a sender from now on, remove it from the fleet, and tell it to quit."""
    if sender in _dropped.setdefault(runner, set()):
        return
    _dropped[runner].add(sender)
    logger.error("dropped worker %s: %s", visible(sender)[:80], visible(why)[:200])
    if sender in runner.clients:
        # Remove it as if it had quit.
        _handle(runner, sender, Message("quit", None, sender))
        runner.server.send_to_client(Message("quit", None, sender))


_handle = MasterRunner.handle_message


def _checked(handle: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(handle)
    def handle_checked(self: MasterRunner, client_id: str, msg: Message) -> None:
        if client_id in _dropped.get(self, ()):
            return
        try:
            if why := _why_invalid(client_id, msg):
                drop(self, client_id, why)
            else:
                handle(self, client_id, msg)
        except Exception as error:
            drop(self, client_id, f"its {msg.type!r} message is invalid ({type(error).__name__}: {error})")

    return handle_checked


class _Entry(msgspec.Struct):
    """A row of Locust's statistics. Times are in seconds since the epoch, durations in ms."""

    name: str
    method: str
    last_request_timestamp: Moment | None
    start_time: Moment
    num_requests: Count
    num_none_requests: Count
    num_failures: Count
    total_response_time: Amount
    max_response_time: Amount
    min_response_time: Amount | None
    total_content_length: Amount
    response_times: dict[Amount, Count]
    num_reqs_per_sec: dict[Count, Count]
    num_fail_per_sec: dict[Count, Count]

    def __post_init__(self) -> None:
        times = [self.start_time, self.last_request_timestamp or 0, *self.num_reqs_per_sec, *self.num_fail_per_sec]
        if max(times) > time.time() + DAY_S:
            raise ValueError("it contains a time in the future")


class _Error(msgspec.Struct):
    name: str
    method: str
    error: Any
    occurrences: Count


class _Stats(msgspec.Struct):
    stats: list[_Entry]
    stats_total: _Entry
    errors: dict[str, _Error]
    user_count: Count
    user_classes_count: dict[str, Count]


class _Heartbeat(msgspec.Struct):
    state: Literal["ready", "spawning", "running", "cleanup", "stopping", "stopped", "missing"]
    current_cpu_usage: Amount
    current_memory_usage: Amount = 0


class _Spawned(msgspec.Struct):
    user_classes_count: dict[str, Count]
    user_count: Count


class _Logs(msgspec.Struct):
    worker_id: str
    logs: list[str]


class _Exception(msgspec.Struct):
    msg: str
    traceback: str


FROM_WORKERS: dict[str, Any] = {
    "client_ready": str,
    "heartbeat": _Heartbeat,
    "stats": _Stats,
    "spawning_complete": _Spawned,
    "logs": _Logs,
    "exception": _Exception,
}
"""The content of Locust's messages from workers by type, which Locust does not check."""


def _why_invalid(sender: str, msg: Message) -> str:
    """Why a message cannot come from this worker; empty if it can. Raises msgspec.ValidationError."""
    if msg.type == BROKEN:
        return "it sent a malformed message"
    if msg.node_id != sender:
        return f"it sent a {msg.type!r} message in the name of {msg.node_id}"
    content = msgspec.convert(msg.data, FROM_WORKERS[msg.type], strict=False) if msg.type in FROM_WORKERS else None
    if isinstance(content, _Logs) and content.worker_id != sender:
        return f"it sent the log of {content.worker_id}"
    return ""


def _telling(connect: Callable[..., None]) -> Callable[..., None]:
    """Report while a worker waits for its master. Locust waits silently for five minutes, even for a dead master."""

    @functools.wraps(connect)
    def connect_and_tell(self: Any) -> None:
        if self.retry:  # the function calls itself
            connect(self)
            return

        def tell() -> None:
            where, have = f"{self.master_host}:{self.master_port}", "one" if _keys_of_runner(self) else "none"
            listened = time.monotonic()
            while time.monotonic() - listened < SILENT_S:
                gevent.sleep(WORD_AFTER_S)
                if _listens(self.master_host, self.master_port):
                    listened = time.monotonic()
                line = "the master on %s does not respond: does it have the same fleet token? This worker has %s (%s)"
                logger.warning(line, where, have, TOKEN)
            gone = ConnectionError(f"the master is gone: nothing listens on {where}")
            gevent.get_hub().handle_system_error(ConnectionError, gone)

        telling = gevent.spawn(tell)
        try:
            connect(self)
        finally:
            telling.kill(block=False)

    return connect_and_tell


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=WORD_AFTER_S).close()
    except OSError:
        return False
    return True
