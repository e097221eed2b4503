"""What reads answers, against its twins, on answers that no engine sends: python tests/fuzz.py [SECONDS] [SEED]

Streams of events are mutated and cut at any place, and three pairs must agree: the finders of events, compiled and in
Python; both readers, on a chunked body over loopback; an answer that is read as it comes and one that is read when
it is whole. Exit code 1, with the case, where two of a pair differ.
"""

# ruff: noqa: E402 (gevent patches before others are imported)

from __future__ import annotations

import random
import socket
import sys
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from gevent import monkey

monkey.patch_all()

import gevent
from gevent.event import Event

from asr_load.http import socket_reader
from asr_load.http.collector import CHUNKED
from asr_load.http.socket_reader import ReaderFactory
from asr_load.stream import _events, events
from asr_load.stream.reader import Answer, ProtocolError

EVENTS = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n',
    'data: {"choices":[{"delta":{"content":" größer"}}]}\n\n'.encode(),
    b'data: {"choices":[{"delta":{"content":" x"}}]}\r\n\r\n',
    b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
    b'data: {"error":{"message":"no","code":500}}\n\n',
    b'data: {"type":"transcript.text.delta","delta":"a"}\n\n',
    b'data: {"type":"transcript.text.done","text":"a"}\n\n',
    b'event: message\nid: 7\ndata: {"choices":[{"delta":{"content":"e"}}]}\n\n',
    b'data: {"choices":\ndata: [{"delta":{"content":"!"}}]}\n\n',
    b": keep-alive\n\n",
    b"data: [DONE]\n\n",
    b"\n",
)
NOISE = (
    b"\n",
    b"\r",
    b"\r\n",
    b"data:",
    b"data: ",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b" ",
    b'"',
)
LONGEST_WAIT_S = 5


class Fuzz:
    """Cases of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def stream(self) -> bytes:
        """A body, or what was one."""
        body = bytearray(b"".join(self.random.choices(EVENTS, k=self.random.randrange(1, 12))))
        for _ in range(self.random.choice((0, 0, 1, 2, 5))):
            at = self.random.randrange(len(body) + 1)
            cut = self.random.randrange(6)
            body[at : at + cut] = self.random.choice((b"", self.random.choice(NOISE), bytes(body[at : at + 9])))
        return bytes(body)

    def pieces(self, whole: bytes) -> list[bytes]:
        """It in pieces: single bytes, some, or all."""
        pieces = []
        while whole:
            size = self.random.choice((1, 2, self.random.randrange(1, 120), len(whole)))
            pieces.append(whole[:size])
            whole = whole[size:]
        return pieces

    def chunked(self, body: bytes) -> bytes:
        """A body in HTTP's chunks, at times with what is odd and allowed, at times with what is wrong."""
        framed = bytearray()
        for piece in self.pieces(body):
            ending = self.random.choice((b"", b"", b"", b";name=value", b" "))
            framed += f"{len(piece):{self.random.choice('xX')}}".encode() + ending + b"\r\n" + piece + b"\r\n"
        framed += b"0\r\n" + self.random.choice((b"", b"", b"X-Trailer: a\r\n")) + b"\r\n"
        if self.random.random() < 0.4:
            at = self.random.randrange(len(framed))
            framed[at : at + self.random.randrange(3)] = self.random.choice((*NOISE, b"", b"f", b"0"))
        return bytes(framed)


def differ(what: str, case: object, one: object, other: object) -> None:
    print(f"{what} differ\ncase: {case!r}\n{one!r}\n{other!r}", file=sys.stderr)
    sys.exit(1)


def finders(fuzz: Fuzz) -> None:
    reads = fuzz.pieces(fuzz.stream())
    body, ends = b"".join(reads), list(accumulate(map(len, reads)))
    stamps, start = list(range(len(ends))), fuzz.random.choice((0, 0, fuzz.random.randrange(len(body) + 1)))
    limit = fuzz.random.choice((len(body), fuzz.random.randrange(start, len(body) + 1)))
    found = [find(body, start, stamps, ends, limit) for find in (events.find_in_python, _events.find)]
    if found[0] != found[1]:
        differ("finders of events", (body, start, limit, ends), *found)


def socket_readers(fuzz: Fuzz) -> None:
    parts = fuzz.pieces(fuzz.chunked(fuzz.stream()))
    assert socket_reader.compiled is not None
    read = [_read(source, parts) for source in (socket_reader.python, socket_reader.compiled)]
    if read[0] != read[1]:
        differ("socket_readers", parts, *read)


def _read(source: ReaderFactory, parts: list[bytes]) -> tuple[Any, ...]:
    """The body that a reader gets of a connection, and how it ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    with here, there:
        come = Event()
        made = source(here.fileno(), come)
        made.begin_body(0, CHUNKED)
        there.sendall(b"".join(parts[:1]))
        gevent.sleep(0)
        there.sendall(b"".join(parts[1:]))
        there.shutdown(socket.SHUT_WR)  # every answer ends, broken or not
        if not made.want(-1) and not come.wait(LONGEST_WAIT_S):
            differ("an answer and its end", parts, made.status, "ended")
        body = made.collected()[0]
        result = body, made.status
        made.close()
    return result


def answers(fuzz: Fuzz) -> None:
    reads = fuzz.pieces(fuzz.stream())
    # sseclient, which the one is, knows no event that ends in a mixture of line ends, and no mark without a stream.
    body = b"".join(reads)
    if body.count(b"\r") not in (0, body.count(b"\n")) or (b"\r" in body and body.count(b"\r\n") < body.count(b"\n")):
        return
    if b"\xef\xbb\xbf" in body:
        return
    as_it_comes = _said(lambda answer: answer.read_events(iter(reads), lambda: 0))
    whole = _said(lambda answer: _collected(answer, reads))
    if as_it_comes != whole:
        differ("answers", reads, as_it_comes, whole)


def _collected(answer: Answer, reads: list[bytes]) -> None:
    body, ends = b"".join(reads), list(accumulate(map(len, reads)))
    answer.read_collected(body, [0] * len(ends), ends, ended=True)


def _said(read: Any) -> tuple[Any, ...]:
    answer = Answer()
    try:
        read(answer)
    except ProtocolError:
        return ("protocol",)
    return (answer.outcome(), answer.text, len(answer.times), answer.output_tokens, answer.finish_reason, answer.error)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    fuzz, rounds, until = Fuzz(seed), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        rounds += 1
        for _ in range(20):
            finders(fuzz)
            answers(fuzz)
        socket_readers(fuzz)
    print(f"{rounds} rounds of seed {seed}: no difference")


if __name__ == "__main__":
    main()
