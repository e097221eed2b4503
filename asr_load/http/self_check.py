"""Which way answers are read: the choice, and the check that the chosen way gives what the plain one gives.

A reader goes by what the kernel and gevent's loop do here. So before it is trusted, an answer with everything in it
that is hard to read is sent over this machine's loopback, and read both ways.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time

import gevent
import requests
from gevent.server import StreamServer

from asr_load.http import socket_reader
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
_PAUSE_S = 0.002
_LIMITS = Timeouts(connect=5, stall=5, total=5)


def choose(reader: str) -> tuple[str, ReaderFactory | None]:
    """The way that is taken for one of options.READERS, and what makes its readers (None: plain). Logs a word where it
    is not the one that was asked for."""
    sources: dict[str, ReaderFactory | None] = {"compiled": socket_reader.compiled, "python": socket_reader.python}
    for name in {"auto": ["compiled", "python"], "compiled": ["compiled", "python"]}.get(reader, [reader]):
        if name == "plain":
            break
        source = sources[name]
        trouble = "it is not compiled here" if source is None else _differs(source)
        if source is not None and not trouble:
            if isinstance(source, socket_reader.CompiledReaders) and source.nice < os.nice(0):
                logger.info("the reading thread has rank %d (ASR_LOAD_NICE=0 leaves it at %d)", source.nice, os.nice(0))
            return name, source
        (logger.info if reader == "auto" and source is None else logger.warning)("reader %s: %s", name, trouble)
    return "plain", None


def _differs(source: ReaderFactory) -> str:
    """What is wrong with a way of reading; empty if it gives what the plain one gives."""
    server = StreamServer(("127.0.0.1", 0), _serve)
    server.start()
    host = f"http://127.0.0.1:{server.server_port}"
    # Both at once: the first request of a test waits for this.
    both = [gevent.spawn(_read, host, reader_factory) for reader_factory in (None, source)]
    gevent.joinall(both, timeout=2 * _LIMITS.total)
    gevent.killall(both)
    server.stop(timeout=0)
    plain, tapped = (each.value for each in both)
    if not isinstance(plain, list) or not isinstance(tapped, list):
        return f"its check failed: {plain if isinstance(tapped, list) else tapped!r}"
    for one, other in zip(plain, tapped, strict=True):
        for field in ("outcome", "text", "chunks", "output_tokens", "prompt_tokens", "finish_reason"):
            wanted, got = getattr(one, field), getattr(other, field)
            if wanted != got:
                return f"its check failed: {field} {got!r} instead of {wanted!r}"
    paused = tapped[0]
    pauses = [*paused.itl, (paused.stream_end or 0) - (paused.e2el or 0)]
    if not all(pause >= _PAUSE_S / 2 for pause in (paused.itl[0], *pauses[2:])):
        return f"its check failed: chunks {pauses} s apart that were sent {_PAUSE_S} s apart"
    return ""


def _serve(connection: gevent.socket.socket, _: object) -> None:
    """Answer each request on a connection: each event in two parts, framed and split where it hurts. The first answer
    has pauses."""
    pause = _PAUSE_S
    data = b""
    with contextlib.suppress(OSError):  # a client that has all it wants goes
        connection.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        while received := connection.recv(65536):
            data += received
            while b"\r\n\r\n" in data:
                data = data.partition(b"\r\n\r\n")[2]
                connection.sendall(_HEAD)
                for event in (*_EVENTS, b""):
                    gevent.sleep(pause)
                    chunk = b"%X;ext=1\r\n%b\r\n" % (len(event), event)
                    connection.sendall(chunk[:-1])
                    gevent.sleep(0)
                    connection.sendall(chunk[-1:])
                pause = 0.0


def _read(host: str, reader_factory: ReaderFactory | None) -> list[Record] | Exception:
    """Two answers over one connection, or what went wrong."""
    try:
        return _read_two(host, reader_factory)
    except Exception as error:  # raised in a greenlet, it would be printed with all its frames
        return error


def _read_two(host: str, reader_factory: ReaderFactory | None) -> list[Record]:
    user_connection = UserConnection()
    user_connection.reader_factory = reader_factory
    config = ExchangeConfig(_LIMITS, time.time_ns() - time.perf_counter_ns(), str)
    records = []
    with requests.Session() as session:
        session.trust_env = False
        for number in range(2):
            request = TranscriptionRequest(f"{host}/", [b"check"], {}, "check", "", 1.0, number, 0, 0)
            records.append(exchange(session, user_connection, request, config)[0])
    user_connection.close()
    if user_connection.connections.count != 1:
        raise RuntimeError(f"{user_connection.connections.count} connections for two requests")
    return records
