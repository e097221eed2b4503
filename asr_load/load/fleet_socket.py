"""Secure the connection between a master and its workers against strangers and malformed messages.

Locust lets anyone join who reaches the master's port, and a malformed message ends the greenlet that listens to all
workers. With a token, messages are encrypted, and those of a sender without the token are ignored (CurveZMQ, with keys
derived from the token: https://rfc.zeromq.org/spec/26/). A worker that sends an invalid message is dropped.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import gevent
import msgpack  # type: ignore[import-untyped]
import msgspec
import zmq
from gevent import socket
from locust.exception import RPCError
from locust.rpc import Message, zmqrpc
from locust.runners import MasterRunner, WorkerRunner
from zmq.utils import z85

from asr_load.load import locust_internals
from asr_load.settings.credentials import TOKEN
from asr_load.text import visible

logger = logging.getLogger(__name__)

BROKEN = "asr_broken"
"""The type of a message that replaces an unreadable one."""

STATES = frozenset(("ready", "spawning", "running", "cleanup", "stopping", "stopped", "missing"))
DAY_S = 86400.0
"""Maximum difference of clocks, in seconds."""

WORD_AFTER_S = 10.0
"""Seconds between warnings of a worker that its master does not respond."""

SILENT_S = 45.0
"""Seconds without a message from its master after which a worker exits."""

Keys = tuple[bytes, bytes]

_server: Keys | None = None
"""Public and secret key of the master; None without a token. Processes with the token can derive the public key."""


def use_token(token: str) -> None:
    """Encrypt connections made from now on with this token; do not encrypt them if it is empty."""
    global _server  # noqa: PLW0603 (a process is in one fleet, and Locust makes its socket before our code runs)
    if not token:
        _server = None
        return
    # scrypt makes guesses slow for somebody who has recorded the fleet's traffic.
    secret = z85.encode(hashlib.scrypt(token.encode(), salt=b"asr-load fleet", n=2**14, r=8, p=1, dklen=32))
    _server = zmq.curve_public(secret), secret


def install() -> None:
    """Install these functions in Locust, once."""
    if Message.unserialize.__func__ is _unserialize:  # type: ignore[attr-defined]
        return
    locust_internals.replace(Message, "unserialize", lambda _: classmethod(_unserialize))
    locust_internals.replace(zmqrpc.BaseSocket, "__init__", _encrypted)
    locust_internals.replace(zmqrpc.Server, "recv_from_client", lambda _: _receive)
    locust_internals.replace(MasterRunner, "handle_message", _checked)
    locust_internals.replace(WorkerRunner, "connect_to_master", _telling)


def _encrypted(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def init_encrypted(self: Any, sock_type: int, *rest: Any) -> None:
        init(self, sock_type, *rest)
        if _server is None:
            return
        public, secret = _server
        if sock_type == zmq.ROUTER:
            self.socket.curve_server = True
            self.socket.curve_publickey, self.socket.curve_secretkey = public, secret
        else:
            self.socket.curve_serverkey = public
            self.socket.curve_publickey, self.socket.curve_secretkey = zmq.curve_keypair()

    return init_encrypted


_unserialize_unchecked = Message.unserialize.__func__  # type: ignore[attr-defined]


def _unserialize(cls: type[Message], data: bytes) -> Message:
    try:
        message: Message = _unserialize_unchecked(cls, data)
    except Exception as error:
        raise msgpack.ExtraData(None, b"") from error
    if not (isinstance(message.type, str) and isinstance(message.node_id, str)):
        raise msgpack.ExtraData(None, b"")
    return message


def _receive(self: Any) -> tuple[str, Message]:
    """Receive the next message and its sender. An unreadable message becomes one of type BROKEN."""
    try:
        frames = self.socket.recv_multipart()
    except zmq.ZMQError as error:
        raise RPCError("ZMQ network broken") from error
    sender = frames[0].decode("utf-8", "backslashreplace")
    try:
        _, data = frames
        return sender, Message.unserialize(data)
    except (ValueError, msgpack.UnpackException):
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
            if why := _wrong(client_id, msg):
                drop(self, client_id, why)
            else:
                handle(self, client_id, msg)
        except Exception as error:
            drop(self, client_id, f"its {msg.type!r} message is invalid ({type(error).__name__}: {error})")

    return handle_checked


class _Entry(msgspec.Struct):
    name: str
    method: str
    last_request_timestamp: float | None
    start_time: float
    num_requests: int
    num_none_requests: int
    num_failures: int
    total_response_time: float
    max_response_time: float
    min_response_time: float | None
    total_content_length: int
    response_times: dict[float, int]
    num_reqs_per_sec: dict[int, int]
    num_fail_per_sec: dict[int, int]


class _Error(msgspec.Struct):
    name: str
    method: str
    error: Any
    occurrences: int


class _Stats(msgspec.Struct):
    stats: list[_Entry]
    stats_total: _Entry
    errors: dict[str, _Error]
    user_count: int
    user_classes_count: dict[str, int]


class _Heartbeat(msgspec.Struct):
    state: str
    current_cpu_usage: float
    current_memory_usage: float = 0


class _Spawned(msgspec.Struct):
    user_classes_count: dict[str, int]
    user_count: int


class _Logs(msgspec.Struct):
    worker_id: str
    logs: list[str]


class _Raised(msgspec.Struct):
    msg: str
    traceback: str


class _Clock(msgspec.Struct):
    sent: int


class _Refusal(msgspec.Struct):
    reason: str


SHAPES: dict[str, Any] = {
    "client_ready": str,
    "heartbeat": _Heartbeat,
    "stats": _Stats,
    "spawning_complete": _Spawned,
    "logs": _Logs,
    "exception": _Raised,
    "asr_clock": _Clock,
    "asr_refuse": _Refusal,
}
"""The content of workers' messages by type, which Locust does not check."""


def _wrong(client_id: str, msg: Message) -> str:
    """Why a message cannot come from this worker; empty if it can."""
    if msg.type == BROKEN:
        return "it sent a malformed message"
    if msg.node_id != client_id:
        return f"it sent a {msg.type!r} message in the name of {msg.node_id}"
    shape = SHAPES.get(msg.type)
    content = None if shape is None else msgspec.convert(msg.data, shape, strict=False)
    match content:
        case _Heartbeat():
            numbers = math.isfinite(content.current_cpu_usage) and math.isfinite(content.current_memory_usage)
            return "" if numbers and content.state in STATES else f"its heartbeat is invalid: {content}"
        case _Logs():
            return "" if content.worker_id == client_id else f"it sent the log of {content.worker_id}"
        case _Stats():
            return _wrong_stats(content)
    return ""


def _wrong_stats(stats: _Stats) -> str:
    now = time.time()
    for entry in (*stats.stats, stats.stats_total):
        numbers = [
            entry.num_requests,
            entry.num_none_requests,
            entry.num_failures,
            entry.total_response_time,
            entry.max_response_time,
            entry.min_response_time or 0,
            entry.total_content_length,
            *entry.response_times,
            *entry.response_times.values(),
            *entry.num_reqs_per_sec.values(),
            *entry.num_fail_per_sec.values(),
        ]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            return "its statistics contain a negative or infinite number"
        times = [
            entry.start_time,
            entry.last_request_timestamp or now,
            *entry.num_reqs_per_sec,
            *entry.num_fail_per_sec,
        ]
        if not all(math.isfinite(at) and at < now + DAY_S for at in times):
            return "its statistics contain a time in the future"
    return ""


def _telling(connect: Callable[..., None]) -> Callable[..., None]:
    """Report while a worker waits for its master. Locust waits silently for five minutes, even for a dead master."""

    @functools.wraps(connect)
    def connect_and_tell(self: Any) -> None:
        if self.retry:  # the function calls itself
            connect(self)
            return

        def tell() -> None:
            where, have = f"{self.master_host}:{self.master_port}", "one" if _server else "none"
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
