"""Compare pairs of response parsers on random, broken input: python tests/fuzz.py [SECONDS] [SEED]

It mutates streams of events and splits them at random places. Three pairs must agree: the compiled and the Python event
finder; the compiled and the Python reader of a chunked body over loopback; a response parsed as it arrives and one
parsed when it is complete. For realtime sessions, one reader gets frames in pieces and the other gets them whole, and
counts kept while events of a dialect arrive must equal counts taken at the end. If a pair differs, the case is printed
and the exit code is 1.
"""

# ruff: noqa: E402 (gevent must patch before other imports)

from __future__ import annotations

import contextlib
import json
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
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from asr_load.apis.dialects import DIALECTS
from asr_load.apis.transcript import Transcript, error_text, read_event
from asr_load.http import socket_reader
from asr_load.http.collector import CHUNKED
from asr_load.http.connection import Connection, SharedState, place_of
from asr_load.http.socket_reader import ReaderFactory
from asr_load.http.transport import Transport
from asr_load.realtime.socket import Socket
from asr_load.stream import _events
from asr_load.stream.reader import Answer, ProtocolError
from harness.sse import find_plain, read_collected, read_events

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
ITEM = "conversation.item.input_audio_transcription."
TYPES = (
    *("session.created", "session.updated", "error", "transcription.delta", "transcription.done"),
    *("transcription.segment", "transcription.completed", f"{ITEM}delta", f"{ITEM}completed", f"{ITEM}failed"),
    *(f"input_audio_buffer.{what}" for what in ("speech_started", "speech_stopped", "committed", "cleared")),
    *("conversation.item.created", "conversation.item.added", "unknown"),
)
"""Types of realtime events, of all dialects."""

TEXTS = ("text", "delta", "transcript")
NAMES = ("item_id", "previous_item_id", "segment_id", "id")
NUMBERS = ("event_index", "audio_start_ms", "audio_end_ms", "created")
OBJECTS = ("session", "item", "usage", "error", "code")
ODD: tuple[Any, ...] = (None, True, -1, 7, 1e300, 10**30, "", "b c", "\ud83d", [], ["a"], {}, {"id": "a"}, {"code": []})

LONGEST_WAIT_S = 5


class Fuzz:
    """A generator of random cases from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def stream(self) -> bytes:
        """A response body, possibly broken."""
        body = bytearray(b"".join(self.random.choices(EVENTS, k=self.random.randrange(1, 12))))
        for _ in range(self.random.choice((0, 0, 1, 2, 5))):
            at = self.random.randrange(len(body) + 1)
            cut = self.random.randrange(6)
            body[at : at + cut] = self.random.choice((b"", self.random.choice(NOISE), bytes(body[at : at + 9])))
        return bytes(body)

    def pieces(self, whole: bytes) -> list[bytes]:
        """Split data: into single bytes, some pieces, or one piece."""
        pieces = []
        while whole:
            size = self.random.choice((1, 2, self.random.randrange(1, 120), len(whole)))
            pieces.append(whole[:size])
            whole = whole[size:]
        return pieces

    def chunked(self, body: bytes) -> bytes:
        """A body in HTTP chunks, sometimes with unusual but legal parts, sometimes with errors."""
        framed = bytearray()
        for piece in self.pieces(body):
            ending = self.random.choice((b"", b"", b"", b";name=value", b" "))
            framed += f"{len(piece):{self.random.choice('xX')}}".encode() + ending + b"\r\n" + piece + b"\r\n"
        framed += b"0\r\n" + self.random.choice((b"", b"", b"X-Trailer: a\r\n")) + b"\r\n"
        if self.random.random() < 0.4:
            at = self.random.randrange(len(framed))
            framed[at : at + self.random.randrange(3)] = self.random.choice((*NOISE, b"", b"f", b"0"))
        return bytes(framed)

    def event(self) -> bytes:
        """A realtime event, possibly broken."""
        random = self.random
        fields: dict[str, Any] = {"type": random.choice(TYPES)}
        fields |= {name: random.choice(("a ", "b", "c d", "", " a")) for name in random.sample(TEXTS, 2)}
        fields |= {name: random.choice("abc") for name in random.sample(NAMES, random.randrange(3))}
        fields |= {name: random.randrange(2000) for name in random.sample(NUMBERS, random.randrange(2))}
        fields |= {name: {"completion_tokens": 3, "id": "a"} for name in random.sample(OBJECTS, random.randrange(2))}
        if random.random() < 0.3:
            fields[random.choice((*fields, *TEXTS, *NAMES, *NUMBERS, *OBJECTS))] = random.choice(ODD)
        data = json.dumps(fields, ensure_ascii=random.random() < 0.5).encode(errors="surrogatepass")
        at = random.randrange(len(data))
        return data if random.random() < 0.9 else data[:at] + random.choice(NOISE) + data[at + random.randrange(3) :]

    def frames(self) -> bytes:
        """Frames of a realtime session as a server sends them, possibly broken."""
        random, found = self.random, bytearray()
        for _ in range(random.randrange(1, 12)):
            pieces = self.pieces(self.event()) if random.random() < 0.5 else [self.event()]
            for number, piece in enumerate(pieces):
                opcode = Opcode.CONT if number else Opcode.TEXT
                found += Frame(opcode, piece, number == len(pieces) - 1).serialize(mask=False)
                if random.random() < 0.1:
                    found += Frame(random.choice((Opcode.PING, Opcode.PONG)), piece[:125]).serialize(mask=False)
        if random.random() < 0.3:
            reason = Close(random.choice((1000, 1009, 1011, 4000)), "bye").serialize()
            found += Frame(Opcode.CLOSE, reason).serialize(mask=False)
        if random.random() < 0.4:
            at = random.randrange(len(found))
            found[at : at + random.randrange(3)] = random.choice((*NOISE, b"\x82\0", b"\x88\0", b"\x80\0", b"\x81\x7f"))
        return bytes(found)


def differ(what: str, case: object, one: object, other: object) -> None:
    print(f"{what} differ\ncase: {case!r}\n{one!r}\n{other!r}", file=sys.stderr)
    sys.exit(1)


def finders(fuzz: Fuzz) -> None:
    reads = fuzz.pieces(fuzz.stream())
    body, ends = b"".join(reads), list(accumulate(map(len, reads)))
    stamps, start = list(range(len(ends))), fuzz.random.choice((0, 0, fuzz.random.randrange(len(body) + 1)))
    limit = fuzz.random.choice((len(body), fuzz.random.randrange(start, len(body) + 1)))
    found = [find(body, start, stamps, ends, limit) for find in (find_plain, _events.find)]
    if found[0] != found[1]:
        differ("finders of events", (body, start, limit, ends), *found)


def socket_readers(fuzz: Fuzz) -> None:
    parts = fuzz.pieces(fuzz.chunked(fuzz.stream()))
    assert socket_reader.compiled is not None
    read = [_read(source, parts) for source in (socket_reader.python, socket_reader.compiled)]
    if read[0] != read[1]:
        differ("socket_readers", parts, *read)


def _read(source: ReaderFactory, parts: list[bytes]) -> tuple[Any, ...]:
    """The body that a reader takes from a connection, and its final status."""
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
        there.shutdown(socket.SHUT_WR)  # every response ends, broken or not
        if not made.want(-1) and not come.wait(LONGEST_WAIT_S):
            differ("an answer and its end", parts, made.status, "ended")
        body = made.collected()[0]
        result = body, made.status
        made.close()
    return result


def answers(fuzz: Fuzz) -> None:
    reads = fuzz.pieces(fuzz.stream())
    if b"\xef\xbb\xbf" in b"".join(reads):
        return  # read_events does not find a byte order mark within a stream
    as_it_comes = _said(lambda answer: read_events(answer, iter(reads), lambda: 0))
    whole = _said(lambda answer: _collected(answer, reads))
    if as_it_comes != whole:
        differ("answers", reads, as_it_comes, whole)


def _collected(answer: Answer, reads: list[bytes]) -> None:
    body, ends = b"".join(reads), list(accumulate(map(len, reads)))
    read_collected(answer, body, [0] * len(ends), ends, ended=True)


def _said(read: Any) -> tuple[Any, ...]:
    answer = Answer()
    try:
        read(answer)
    except ProtocolError:
        return ("protocol",)
    return (answer.outcome(), answer.text, len(answer.times), answer.output_tokens, answer.finish_reason, answer.error)


def sessions(fuzz: Fuzz) -> None:
    frames = fuzz.frames()
    assert socket_reader.compiled is not None
    heard = [
        _messages(socket_reader.compiled, fuzz.pieces(frames)),
        _messages(socket_reader.python, [frames]),
    ]
    if heard[0] != heard[1]:
        differ("sessions", frames, *heard)


def _messages(source: ReaderFactory, parts: list[bytes]) -> tuple[Any, ...]:
    """The messages that a session receives, and how it ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}/v1/realtime"
        connection = Connection(place_of(url), Transport(), SharedState())
        connection.open(LONGEST_WAIT_S)
        client, error = Socket(connection, source, url), ""
        talking = gevent.spawn(_talk, server, parts)
        until = time.perf_counter() + LONGEST_WAIT_S
        try:
            client.shake_hands({}, until)
            while client.is_open and time.perf_counter() < until:
                client.listen(until)
        except ProtocolError as found:
            error = str(found)
        result = [data for data, _ in client.messages], client.close_code, client.close_reason, error
        client.drop()
        talking.join()
    return result


def _talk(server: socket.socket, parts: list[bytes]) -> None:
    peer, _ = server.accept()
    protocol = ServerProtocol()
    protocol.receive_data(peer.recv(65536))
    (request,) = protocol.events_received()
    assert isinstance(request, Request)
    protocol.send_response(protocol.accept(request))
    with peer, contextlib.suppress(OSError):  # a client that found an error has closed the connection
        for part in (*protocol.data_to_send(), *parts):
            peer.sendall(part)
            gevent.sleep(0)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65536):
            pass


def utterances(fuzz: Fuzz) -> None:
    """Check the counts of one utterance whose events come from any dialect."""
    dialect = fuzz.random.choice(list(DIALECTS.values()))
    transcript, said = Transcript(fuzz.random.choice((frozenset(), frozenset("a")))), []
    for at in range(fuzz.random.randrange(1, 30)):
        said.append(fuzz.event())
        transcript.ends = fuzz.random.choice((transcript.ends, transcript.ends + 1))
        with contextlib.suppress(ProtocolError):
            event = read_event(said[-1])
            transcript.count(event, at)
            error_text(event)
            dialect.apply(event, transcript, at)
        items = transcript.items.values()
        pending = any(item.is_committed and not item.is_done for item in items)
        done = sum(item.is_done for item in items)
        found = transcript.done, transcript.is_settled
        if found != (done, bool(done) and not transcript.speaking and not pending):
            differ("counts", (dialect.name, said), found, list(items))
    transcript.text.encode()
    if (
        transcript.times != sorted(transcript.times)
        or not (transcript.output_tokens is None or transcript.output_tokens >= 0)
        or transcript.revised < 0
    ):
        differ("transcript", (dialect.name, said), transcript.times, transcript.output_tokens)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    fuzz, rounds, until = Fuzz(seed), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        rounds += 1
        for _ in range(20):
            finders(fuzz)
            answers(fuzz)
            utterances(fuzz)
        sessions(fuzz)
        socket_readers(fuzz)
    print(f"{rounds} rounds of seed {seed}: no difference")


if __name__ == "__main__":
    main()
