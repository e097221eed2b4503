"""Choose the reader of responses, and check that it reads a known response correctly.

A reader depends on the kernel and gevent's loop. So before a test, it reads a response with everything that is hard to
read over this machine's loopback.

The speed of this machine does not matter. The server sends each piece of a response after the previous one was read, so
that a stamp must lie between two moments that the server noted. An attempt in which something took too long is
inconclusive and is repeated.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import gevent
import requests
from gevent.server import StreamServer

from asr_load.apis.transcription_request import TranscriptionRequest
from asr_load.errors import InputError
from asr_load.http import socket_reader
from asr_load.http.attempt import ExchangeConfig
from asr_load.http.collector import SocketReader
from asr_load.http.connection import UserConnection
from asr_load.http.exchange import exchange
from asr_load.http.socket_reader import ReaderFactory
from asr_load.http.transport import Timeouts
from asr_load.stream.record import Record

logger = logging.getLogger(__name__)

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENTS = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    'data: {"choices":[{"delta":{"content":"Grüße"}}]}\r\n\r\n'.encode(),
    b": a comment\n\n",
    b'event: message\ndata: {"choices":[{"delta":{"content":" two"}}]}\n\n'
    b'data: {"choices":\ndata: [{"delta":{"content":"!"}}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n',
    b"data: [DONE]\n\n",
)
_FIRST_CONTENT, _SECOND_CONTENT, _END = 1, 3, len(_EVENTS) - 1
"""Numbers of the events with content, and of the event at the end."""

_EXPECTED = {"text": "Grüße two!", "chunks": 3, "output_tokens": 3, "prompt_tokens": 7, "finish_reason": "stop"}
"""Fields of the response's record that depend only on the bytes, not on their timing."""

_PAUSE_S, _CLOCKS_S = 0.002, 0.001
"""Minimum distance of events, and tolerance of stamps, which come from another clock of the kernel; in seconds."""

_LIMITS = Timeouts(connect=10, stall=10, total=10)
_LOOK_S = 0.0005
_ATTEMPTS = 5


Reader = tuple[str, ReaderFactory]
"""The name of a reader, and its factory."""

_Sent = tuple[int, int]
"""When an event was sent, and by when it had been read, in perf_counter nanoseconds."""


class _Exchanges(NamedTuple):
    """Two exchanges over one connection, when the first began, and when the server sent its events."""

    records: list[Record]
    began: int
    sent: list[_Sent]


class _UnsettledError(Exception):
    """An attempt was inconclusive. `by_reader`: the reader is faulty if this happens in every attempt."""

    def __init__(self, why: str, *, by_reader: bool = True) -> None:
        super().__init__(why)
        self.by_reader = by_reader


def choose(reader: str) -> Reader:
    """Choose the reader for a value of --reader. Logs why, if the requested one is missing or faulty.

    Raises InputError if no reader is left, or if a check is inconclusive, because results of another reader would not
    be comparable.
    """
    factories: dict[str, ReaderFactory | None] = {"compiled": socket_reader.compiled, "python": socket_reader.python}
    for name in ["python"] if reader == "python" else factories:
        factory = factories[name]
        trouble = "not compiled on this machine" if factory is None else _fault(name, factory)
        if factory is not None and not trouble:
            if isinstance(factory, socket_reader.CompiledReaders) and factory.nice < os.nice(0):
                logger.info(
                    "the priority of the reading thread is nice %d (ASR_LOAD_NICE=0 leaves it at %d)",
                    factory.nice,
                    os.nice(0),
                )
            return name, factory
        (logger.info if reader == "auto" and factory is None else logger.warning)("reader %s: %s", name, trouble)
    raise InputError(f"reader {name}: {trouble}; no reader works on this machine, so nothing can be measured")


def _fault(name: str, factory: ReaderFactory) -> str:
    """The fault of a reader; empty if it reads the response correctly. Raises InputError if all attempts are
    inconclusive."""
    unsettled = []
    for _ in range(_ATTEMPTS):
        try:
            wrong = _mistake(factory)
        except _UnsettledError as error:
            unsettled.append(error)
            continue
        return f"its check failed: {wrong}" if wrong else ""
    if all(error.by_reader for error in unsettled):
        return f"its check failed {_ATTEMPTS} times: {unsettled[-1]}"
    raise InputError(
        f"reader {name}: its check was inconclusive in {_ATTEMPTS} attempts ({unsettled[-1]}): stop other work on this"
        " machine and try again"
    )


def _mistake(factory: ReaderFactory) -> str:
    """The first field that a reader gets wrong; empty without one. Raises _UnsettledError if the attempt is
    inconclusive or stamps are wrong, which a change of the clock can also cause."""
    # A bare socket reads the response at the same time: if it fails too, the machine is at fault.
    received, read = gevent.spawn(_receive), gevent.spawn(_read, factory)
    received.join(timeout=3 * _LIMITS.total)
    read.join(timeout=3 * _LIMITS.total)
    gevent.killall([received, read])
    if received.value != "":
        raise _UnsettledError(str(received.value or "it took too long"), by_reader=False)
    exchanges: _Exchanges | Exception | None = read.value
    if not isinstance(exchanges, _Exchanges):
        raise _UnsettledError(str(exchanges or "it took too long"))
    for record in exchanges.records:
        if record.outcome != "ok":
            raise _UnsettledError(f"outcome {record.outcome!r} ({record.error})")
        for field, expected in _EXPECTED.items():
            if (value := getattr(record, field)) != expected:
                return f"{field} {value!r} instead of {expected!r}"
    _check_stamps(*exchanges)
    return ""


def _check_stamps(records: list[Record], began: int, sent: list[_Sent]) -> None:
    record = records[0]
    assert record.ttft is not None
    assert record.stream_end is not None
    stamps = {
        _FIRST_CONTENT: record.ttft,
        _SECOND_CONTENT: record.ttft + record.itl[0],
        _END: record.stream_end,
    }
    for number, seconds in stamps.items():
        at, read_by = sent[number]
        early, late = (at - began) / 1e9 - seconds, seconds - (read_by - began) / 1e9
        if (off := max(early, late)) > _CLOCKS_S:
            how = "before it was sent" if early > late else "after it was read"
            raise _UnsettledError(f"event {number} is stamped {off * 1e3:.1f} ms {how}")


def _pieces() -> list[tuple[bytes, bytes]]:
    """The events as chunks, each in two parts, cut at awkward places. The body ends with the last event, because a late
    end would close the connection."""
    chunks = [b"%X;ext=1\r\n%b\r\n" % (len(event), event) for event in (*_EVENTS, b"")]
    last = chunks[-2] + chunks[-1]
    middle = last.index(b"DONE")
    return [*((chunk[:-1], chunk[-1:]) for chunk in chunks[:-2]), (last[:middle], last[middle:])]


def _serve(
    user_connection: UserConnection | None, sent: list[_Sent], connection: gevent.socket.socket, _: object
) -> None:
    """Respond to each request on a connection. Sends each piece of a user's first response after the previous one was
    read."""
    data, in_steps = b"", user_connection is not None
    with contextlib.suppress(OSError):  # a client that is done disconnects
        connection.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        while received := connection.recv(65536):
            data += received
            while b"\r\n\r\n" in data:
                data = data.partition(b"\r\n\r\n")[2]
                reader = None
                if in_steps and user_connection is not None:
                    assert user_connection.response is not None
                    reader = user_connection.response.reader
                _send(connection, _HEAD, reader)
                for first, second in _pieces():
                    gevent.sleep(_PAUSE_S if in_steps else 0)
                    at = time.perf_counter_ns()
                    _send(connection, first, reader)
                    _send(connection, second, reader)
                    if in_steps:
                        sent.append((at, time.perf_counter_ns()))
                in_steps = False


def _send(connection: gevent.socket.socket, piece: bytes, reader: SocketReader | None) -> None:
    """Send a piece and wait until the reader has read it; without a reader, only let others run."""
    before = reader.last if reader else 0
    connection.sendall(piece)
    gevent.sleep(0)
    while reader and reader.last == before:
        gevent.sleep(_LOOK_S)


@contextlib.contextmanager
def _server(user_connection: UserConnection | None, sent: list[_Sent]) -> Iterator[int]:
    """The port of a server on loopback that sends the response."""
    server = StreamServer(("127.0.0.1", 0), partial(_serve, user_connection, sent))
    try:
        server.start()
        yield int(server.address[1])
    finally:
        server.stop(timeout=0)


def _receive() -> str:
    """Receive the response with a bare socket. Returns the error; empty without one."""
    expected, received = _HEAD + b"".join(map(b"".join, _pieces())), b""
    try:
        with (
            _server(None, []) as port,
            gevent.socket.create_connection(("127.0.0.1", port), timeout=_LIMITS.stall) as connection,
        ):
            connection.sendall(b"POST / HTTP/1.1\r\n\r\n")
            while len(received) < len(expected) and (data := connection.recv(65536)):
                received += data
    except OSError as error:
        return str(error) or type(error).__name__
    return "" if received == expected else "a bare socket received other bytes than were sent"


def _read(factory: ReaderFactory) -> _Exchanges | Exception:
    """Make two exchanges over one connection. Returns them, or the error."""
    user_connection, sent = UserConnection(), list[_Sent]()
    user_connection.reader_factory = factory
    try:
        with _server(user_connection, sent) as port:
            return _read_two(f"http://127.0.0.1:{port}/", user_connection, sent)
    except Exception as error:  # gevent would print the traceback of an exception raised in a greenlet
        return error
    finally:
        user_connection.close()


def _read_two(url: str, user_connection: UserConnection, sent: list[_Sent]) -> _Exchanges:
    config = ExchangeConfig(_LIMITS, time.time_ns() - time.perf_counter_ns())
    records, began = [], 0
    with requests.Session() as session:
        session.trust_env = False
        for number in range(2):
            request = TranscriptionRequest(url, [b"check"], {}, "check", "", 1.0, number, 0, 0)
            records.append(exchange(session, user_connection, request, config)[0])
            began = began or user_connection.started or 0
    if user_connection.shared.count != 1:
        raise RuntimeError(f"{user_connection.shared.count} connections for two requests")
    return _Exchanges(records, began, sent)
