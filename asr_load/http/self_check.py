"""Which way answers are read: the choice, and the check that the chosen way gives what the plain one gives.

A reader goes by what the kernel and gevent's loop do here. So before it is trusted, an answer with everything in it
that is hard to read is sent over this machine's loopback, and read both ways.

How fast this machine is does not matter. The server sends the next piece of an answer when the last one was read, so a
stamp must lie between two moments that it noted, however far apart they are. An attempt in which something took too
long shows nothing, and is repeated.
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
"""Numbers of the events that bring content, and of the one that comes with the end."""

_BYTES = ("text", "chunks", "output_tokens", "prompt_tokens", "finish_reason")
"""Fields of a record that are the same whenever its bytes came."""

_PAUSE_S, _CLOCKS_S = 0.002, 0.001
"""How far apart events are at least, and by how much a stamp may miss the moments that it must lie between: it is the
kernel's, of another clock."""

_LIMITS = Timeouts(connect=10, stall=10, total=10)
_LOOK_S = 0.0005
_ATTEMPTS = 5

Reader = tuple[str, ReaderFactory | None]
"""A way of reading: its name, and what makes its readers (None: plain)."""


class _Sent(NamedTuple):
    """When an event was sent, and a moment when it had been read, in perf_counter nanoseconds."""

    at: int
    read_by: int


class _Answers(NamedTuple):
    """Two answers that were read over one connection. The server noted when it sent the events of the first."""

    records: list[Record]
    began: int
    sent: list[_Sent]


class _UnsettledError(Exception):
    """An attempt that shows nothing. `by_reader`: it is the reader's, where it comes each time."""

    def __init__(self, why: str, *, by_reader: bool) -> None:
        super().__init__(why)
        self.by_reader = by_reader


def choose(reader: str) -> Reader:
    """The way that is taken for one of options.READERS. Logs a word where it is not the one that was asked for, because
    that one is not there or reads wrong. Raises InputError where a check shows nothing: figures by another reader would
    not be comparable."""
    sources: dict[str, ReaderFactory | None] = {"compiled": socket_reader.compiled, "python": socket_reader.python}
    for name in {"auto": ["compiled", "python"], "compiled": ["compiled", "python"]}.get(reader, [reader]):
        if name == "plain":
            break
        source = sources[name]
        trouble = "it is not compiled here" if source is None else _fault(name, source)
        if source is not None and not trouble:
            if isinstance(source, socket_reader.CompiledReaders) and source.nice < os.nice(0):
                logger.info("the reading thread has rank %d (ASR_LOAD_NICE=0 leaves it at %d)", source.nice, os.nice(0))
            return name, source
        (logger.info if reader == "auto" and source is None else logger.warning)("reader %s: %s", name, trouble)
    return "plain", None


def _fault(name: str, source: ReaderFactory) -> str:
    """What is wrong with a way of reading; empty if it gives what the plain one gives. Raises InputError where that is
    not known after several attempts."""
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
        f"reader {name}: its check came to no result in {_ATTEMPTS} attempts ({unsettled[-1]}): end other work on this"
        " machine and try again, or choose --reader plain"
    )


def _differs(source: ReaderFactory) -> str:
    """In what a way of reading gives other bytes than the plain one; empty if in nothing. Raises _UnsettledError where
    an attempt shows nothing, and where stamps are wrong, which a change of the clock does too."""
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
    """The events framed as chunks, each in two parts, cut where it hurts. The end comes with the last one: a body that
    does not end soon after it would cost the connection."""
    chunks = [b"%X;ext=1\r\n%b\r\n" % (len(event), event) for event in (*_EVENTS, b"")]
    last = chunks[-2] + chunks[-1]
    middle = last.index(b"DONE")
    return [*((chunk[:-1], chunk[-1:]) for chunk in chunks[:-2]), (last[:middle], last[middle:])]


def _serve(user_connection: UserConnection, sent: list[_Sent], connection: gevent.socket.socket, _: object) -> None:
    """Answer each request on a connection. Each piece of the first answer is sent when the one before was read."""
    data, in_steps = b"", True
    with contextlib.suppress(OSError):  # a client that has all it wants goes
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
    """Send a piece, and wait until this reader has read it; None: let others run."""
    before = reader.last if reader else 0
    connection.sendall(piece)
    gevent.sleep(0)
    while reader and reader.last == before:
        gevent.sleep(_LOOK_S)


def _read(reader_factory: ReaderFactory | None) -> _Answers | Exception:
    """Two answers over one connection, or what went wrong."""
    user_connection, sent = UserConnection(), list[_Sent]()
    user_connection.reader_factory = reader_factory
    server = StreamServer(("127.0.0.1", 0), partial(_serve, user_connection, sent))
    try:
        server.start()
        return _read_two(f"http://127.0.0.1:{server.server_port}/", user_connection, sent)
    except Exception as error:  # raised in a greenlet, it would be printed with all its frames
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
