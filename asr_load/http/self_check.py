"""Choose how to read responses, and check that the chosen reader gives the same results as the plain one.

A reader depends on the kernel and gevent's loop. So before a test, a response with everything that is hard to read is
sent over this machine's loopback, and read both ways.

The speed of this machine does not matter. The server sends each piece of a response after the previous one was read, so
that a stamp must lie between two moments that the server noted. An attempt in which something took too long is
inconclusive and is repeated.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from functools import partial
from typing import NamedTuple

import gevent
import requests
from gevent.server import StreamServer

from asr_load.errors import InputError
from asr_load.http import socket_reader
from asr_load.http.collector import SocketReader
from asr_load.http.connection import UserConnection
from asr_load.http.exchange import ExchangeConfig, TranscriptionRequest, exchange
from asr_load.http.socket_reader import ReaderFactory
from asr_load.http.timeouts import Timeouts
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

_BYTES = ("text", "chunks", "output_tokens", "prompt_tokens", "finish_reason")
"""Fields of a record that depend only on the bytes, not on their timing."""

_PAUSE_S, _CLOCKS_S = 0.002, 0.001
"""Minimum distance of events, and tolerance of stamps, which come from another clock of the kernel; in seconds."""

_LIMITS = Timeouts(connect=10, stall=10, total=10)
_LOOK_S = 0.0005
_ATTEMPTS = 5

Reader = tuple[str, ReaderFactory | None]
"""The name of a reader, and its factory (None: plain)."""


class _Sent(NamedTuple):
    """When an event was sent, and by when it had been read, in perf_counter nanoseconds."""

    at: int
    read_by: int


class _Answers(NamedTuple):
    """Two responses read over one connection, and when the server sent the events of the first."""

    records: list[Record]
    began: int
    sent: list[_Sent]


class _UnsettledError(Exception):
    """An attempt was inconclusive. `by_reader`: the reader is faulty if this happens in every attempt."""

    def __init__(self, why: str, *, by_reader: bool) -> None:
        super().__init__(why)
        self.by_reader = by_reader


def choose(reader: str) -> Reader:
    """Choose the reader for one of options.READERS. Logs why, if the requested one is missing or faulty.

    Raises InputError if a check is inconclusive, because results of another reader would not be comparable.
    """
    sources: dict[str, ReaderFactory | None] = {"compiled": socket_reader.compiled, "python": socket_reader.python}
    for name in {"auto": ["compiled", "python"], "compiled": ["compiled", "python"]}.get(reader, [reader]):
        if name == "plain":
            break
        source = sources[name]
        trouble = "not compiled on this machine" if source is None else _fault(name, source)
        if source is not None and not trouble:
            if isinstance(source, socket_reader.CompiledReaders) and source.nice < os.nice(0):
                logger.info(
                    "the priority of the reading thread is nice %d (ASR_LOAD_NICE=0 leaves it at %d)",
                    source.nice,
                    os.nice(0),
                )
            return name, source
        (logger.info if reader == "auto" and source is None else logger.warning)("reader %s: %s", name, trouble)
    return "plain", None


def _fault(name: str, source: ReaderFactory) -> str:
    """The fault of a reader; empty if its results equal those of the plain one. Raises InputError if all attempts are
    inconclusive."""
    unsettled = []
    for _ in range(_ATTEMPTS):
        try:
            wrong = _differs(source)
        except _UnsettledError as error:
            unsettled.append(error)
            continue
        return f"its check failed: {wrong}" if wrong else ""
    if all(error.by_reader for error in unsettled):
        return f"its check failed {_ATTEMPTS} times: {unsettled[-1]}"
    raise InputError(
        f"reader {name}: its check was inconclusive in {_ATTEMPTS} attempts ({unsettled[-1]}): stop other work on this"
        " machine and try again, or use --reader plain"
    )


def _differs(source: ReaderFactory) -> str:
    """The difference between the bytes of a reader and the plain one; empty if there is no difference. Raises
    _UnsettledError if the attempt is inconclusive or stamps are wrong, which a change of the clock can also cause."""
    both = [gevent.spawn(_read, reader_factory) for reader_factory in (None, source)]
    gevent.joinall(both, timeout=3 * _LIMITS.total)
    gevent.killall(both)
    plain, tapped = _settled(both[0].value, by_reader=False), _settled(both[1].value, by_reader=True)
    for one, other in zip(plain.records, tapped.records, strict=True):
        for field in _BYTES:
            wanted, got = getattr(one, field), getattr(other, field)
            if wanted != got:
                return f"{field} {got!r} instead of {wanted!r}"
    _check_stamps(tapped)
    return ""


def _settled(answers: _Answers | Exception | None, *, by_reader: bool) -> _Answers:
    if not isinstance(answers, _Answers):
        raise _UnsettledError(str(answers or "it took too long"), by_reader=by_reader)
    for record in answers.records:
        if record.outcome != "ok":
            raise _UnsettledError(f"outcome {record.outcome!r} ({record.error})", by_reader=by_reader)
    return answers


def _check_stamps(answers: _Answers) -> None:
    record, sent = answers.records[0], answers.sent
    assert record.ttft is not None
    assert record.stream_end is not None
    stamps = {
        _FIRST_CONTENT: record.ttft,
        _SECOND_CONTENT: record.ttft + record.itl[0],
        _END: record.stream_end,
    }
    for number, seconds in stamps.items():
        early = (sent[number].at - answers.began) / 1e9 - seconds
        late = seconds - (sent[number].read_by - answers.began) / 1e9
        if (off := max(early, late)) > _CLOCKS_S:
            how = "before it was sent" if early > late else "after it was read"
            raise _UnsettledError(f"event {number} is stamped {off * 1e3:.1f} ms {how}", by_reader=True)


def _pieces() -> list[tuple[bytes, bytes]]:
    """The events as chunks, each in two parts, cut at awkward places. The body ends with the last event, because a late
    end would close the connection."""
    chunks = [b"%X;ext=1\r\n%b\r\n" % (len(event), event) for event in (*_EVENTS, b"")]
    last = chunks[-2] + chunks[-1]
    middle = last.index(b"DONE")
    return [*((chunk[:-1], chunk[-1:]) for chunk in chunks[:-2]), (last[:middle], last[middle:])]


def _serve(user_connection: UserConnection, sent: list[_Sent], connection: gevent.socket.socket, _: object) -> None:
    """Respond to each request on a connection. Sends each piece of the first response after the previous was read."""
    data, in_steps = b"", True
    with contextlib.suppress(OSError):  # a client that is done disconnects
        connection.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        while received := connection.recv(65536):
            data += received
            while b"\r\n\r\n" in data:
                data = data.partition(b"\r\n\r\n")[2]
                assert user_connection.file is not None
                reader = user_connection.file.reader if in_steps else None
                _send(connection, _HEAD, reader)
                for first, second in _pieces():
                    gevent.sleep(_PAUSE_S if in_steps else 0)
                    at = time.perf_counter_ns()
                    _send(connection, first, reader)
                    _send(connection, second, reader)
                    if in_steps:
                        sent.append(_Sent(at, time.perf_counter_ns()))
                in_steps = False


def _send(connection: gevent.socket.socket, piece: bytes, reader: SocketReader | None) -> None:
    """Send a piece and wait until the reader has read it; without a reader, only let others run."""
    before = reader.last if reader else 0
    connection.sendall(piece)
    gevent.sleep(0)
    while reader and reader.last == before:
        gevent.sleep(_LOOK_S)


def _read(reader_factory: ReaderFactory | None) -> _Answers | Exception:
    """Read two responses over one connection. Returns them, or the error."""
    user_connection, sent = UserConnection(), list[_Sent]()
    user_connection.reader_factory = reader_factory
    server = StreamServer(("127.0.0.1", 0), partial(_serve, user_connection, sent))
    try:
        server.start()
        return _read_two(f"http://127.0.0.1:{server.server_port}/", user_connection, sent)
    except Exception as error:  # gevent would print the traceback of an exception raised in a greenlet
        return error
    finally:
        user_connection.close()
        server.stop(timeout=0)


def _read_two(url: str, user_connection: UserConnection, sent: list[_Sent]) -> _Answers:
    config = ExchangeConfig(_LIMITS, time.time_ns() - time.perf_counter_ns())
    records, began = [], 0
    with requests.Session() as session:
        session.trust_env = False
        for number in range(2):
            request = TranscriptionRequest(url, [b"check"], {}, "check", "", 1.0, number, 0, 0)
            records.append(exchange(session, user_connection, request, config)[0])
            began = began or user_connection.started or 0
    if user_connection.connections.count != 1:
        raise RuntimeError(f"{user_connection.connections.count} connections for two requests")
    return _Answers(records, began, sent)
