"""The compiled sender: it sends the same bytes as the event loop, on time, on any kind of connection."""

from __future__ import annotations

import array
import errno
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import requests

from asr_server import chunk_sender
from harness.patience import PATIENCE_S
from harness.serving import ROOT, chat_body, connect, post, running, serve, text_of, wait_until

if not chunk_sender.compiled:
    pytest.skip("no compiled sender here: no C compiler at setup", allow_module_level=True)

from asr_server._chunk_sender import ChunkSender

if TYPE_CHECKING:
    from asr_server._chunk_sender import Stream

FAST = ("--engine", "scripted", "--tokens", "7", "--tokens-per-chunk", "2", "--ttft-ms", "2", "--itl-ms", "1")
STAMP = re.compile(rb"^: sent_at=(\d+\.\d{9})$", re.MULTILINE)


def descriptors(pid: int) -> int:
    """The number of files that a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


# ---- The thread without a server ----


@contextmanager
def thread() -> Iterator[ChunkSender]:
    made = ChunkSender()
    try:
        yield made
    finally:
        made.close()


def start(
    sender: ChunkSender,
    end: socket.socket,
    texts: list[bytes],
    offsets: list[int] | None = None,
    *,
    at: int = 1,
    owner: Any = None,
) -> Stream:
    """Send texts, each between < and >. Without offsets all are due immediately. Times are in nanoseconds."""
    due = array.array("q", offsets or [0] * len(texts)).tobytes()
    return sender.send(end.fileno(), owner, b"head|", b"opening|", b"<", tuple(texts), b">", due, at)


def dechunk(data: bytes) -> list[bytes]:
    """The chunks of an unfinished body."""
    chunks = []
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        chunks.append(rest[:length])
        data = rest[length + 2 :]
    return chunks


def read_all(end: socket.socket) -> bytes:
    """Read up to the end of the stream."""
    end.settimeout(PATIENCE_S)
    parts = []
    while part := end.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def wait_for_end(sender: ChunkSender) -> list[object]:
    """Wait until streams end; return their owners."""
    assert select.select([sender.fileno()], [], [], PATIENCE_S)[0], "no stream has ended"
    return sender.finished()


def check(data: bytes, stream: Stream, texts: list[bytes]) -> None:
    """Check that the bytes on the wire are these texts in order, with the stream's own stamps."""
    assert data.startswith(b"head|")
    first, *others = dechunk(data[5:])
    assert first.startswith(b"opening|")
    chunks = [first[8:], *others]
    bodies = [chunk.split(b"\n", 1) for chunk in chunks]
    assert [body for _, body in bodies] == [b"<" + text + b">" for text in texts]
    stamps = [STAMP.match(stamp) for stamp, _ in bodies]
    assert [float(stamp[1]) for stamp in stamps if stamp] == pytest.approx(stream.sent_at, abs=1e-8)
    assert all(a <= b for a, b in pairwise(stream.sent_at))


def test_chunks_leave_in_order_and_never_before_they_are_due() -> None:
    texts = [b"%d" % i for i in range(60)]
    offsets = [i * 1_000_000 for i in range(60)]
    with thread() as sender, ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(20)]
        for pair in pairs:
            for end in pair:
                stack.enter_context(end)
        at = time.perf_counter_ns() + 20_000_000
        begun = [at + random.Random(i).randrange(5_000_000) for i in range(20)]
        streams = [
            start(sender, a, texts, offsets, at=t, owner=i)
            for i, ((a, _), t) in enumerate(zip(pairs, begun, strict=True))
        ]
        ended: set[object] = set()
        while len(ended) < 20:
            ended.update(wait_for_end(sender))
        assert ended == set(range(20))
        for (a, b), stream, t in zip(pairs, streams, begun, strict=True):
            stream.close()
            a.close()
            check(read_all(b), stream, texts)
            assert all(s * 1e9 >= t + offset - 1 for s, offset in zip(stream.sent_at, offsets, strict=True))
            assert stream.error == 0


def test_later_stream_that_is_due_earlier_is_sent_first() -> None:
    a, b = socket.socketpair()
    with thread() as sender, a, b:
        far = start(sender, a, [b"far"], at=time.perf_counter_ns() + 10**12, owner="far")
        near = start(sender, a, [b"near"], owner="near")
        assert wait_for_end(sender) == ["near"]
        assert (len(near.sent_at), far.sent_at) == (1, [])


def stuck(sender: ChunkSender, stream: Stream, end: socket.socket, other: socket.socket) -> int:
    """Chunks sent by a stream whose connection accepts no more. The thread has meanwhile served another stream."""
    sent = -1
    while len(stream.sent_at) != sent or select.select([], [end], [], 0)[1]:
        sent = len(stream.sent_at)
        time.sleep(0.05)  # the kernel may still move bytes to the other side
        probe = start(sender, other, [b"x"], owner="probe")
        assert wait_for_end(sender) == ["probe"]
        probe.close()
    return sent


def test_slow_reader_gets_all_chunks_in_order_with_true_stamps() -> None:
    texts = [bytes([65 + i % 26]) * 30_000 for i in range(200)]
    with socket.create_server(("127.0.0.1", 0)) as server, thread() as sender:
        here = socket.socket()
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        here.connect(server.getsockname())
        there, _ = server.accept()
        there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        a, b = socket.socketpair()
        with here, there, a, b:
            stream = start(sender, there, texts, owner="slow")
            quick = start(
                sender,
                a,
                [b"x"] * 50,
                [i * 1_000_000 for i in range(50)],
                at=time.perf_counter_ns(),
                owner="quick",
            )
            assert wait_for_end(sender) == ["quick"]  # a client that does not read delays no other
            assert len(quick.sent_at) == 50
            before = stuck(sender, stream, there, a)
            assert 0 < before < len(texts)
            resumed = time.perf_counter()
            here.settimeout(PATIENCE_S)
            got = bytearray()
            both = [sender.fileno(), here.fileno()]
            while sender.fileno() not in (ready := select.select(both, [], [], PATIENCE_S)[0]):
                assert ready, "neither a byte nor the end has come"
                got += here.recv(1 << 16)
            assert wait_for_end(sender) == ["slow"]
            stream.close()
            there.close()
            check(bytes(got) + read_all(here), stream, texts)
            assert all(at < resumed for at in stream.sent_at[:before])
            assert all(at >= resumed for at in stream.sent_at[before:])  # when they left, not when they were due


def test_closed_connection_ends_only_its_own_stream() -> None:
    (a, b), (c, d) = socket.socketpair(), socket.socketpair()
    # Neither stream ends by itself: one is long, and the other waits for its reader.
    long, big = [b"x"] * 100_000, [b"y" * 30_000] * 100
    with thread() as sender, a, c, d:
        at = time.perf_counter_ns()
        gone = start(sender, a, long, [i * 1_000_000 for i in range(len(long))], at=at, owner="gone")
        stays = start(sender, c, big, [i * 1_000_000 for i in range(len(big))], at=at, owner="stays")
        assert b.recv(5) == b"head|"
        b.close()
        assert wait_for_end(sender) == ["gone"]
        assert gone.error in (errno.EPIPE, errno.ECONNRESET)
        assert 0 < len(gone.sent_at) < len(long)
        d.setblocking(False)
        got = bytearray()
        while not select.select([sender.fileno()], [], [], 0)[0]:
            with suppress(BlockingIOError):
                got += d.recv(1 << 20)
        d.settimeout(PATIENCE_S)
        assert wait_for_end(sender) == ["stays"]
        stays.close()
        c.close()
        check(bytes(got) + read_all(d), stays, big)


def test_streams_can_be_closed_and_dropped_at_any_moment() -> None:
    """With a C compiler's sanitizers, this finds use after free."""
    chance = random.Random(1)
    begun = descriptors(os.getpid())
    a, b = socket.socketpair()
    sender = ChunkSender()
    kept = start(sender, a, [b"k"] * 100, [i * 3_000_000 for i in range(100)], at=time.perf_counter_ns(), owner="kept")
    ends = [socket.socketpair() for _ in range(8)]
    held: list[Stream] = []
    for i in range(3000):
        end = ends[i % 8][0]  # nobody reads: some streams are waiting for room when they are dropped
        texts = [bytes(chance.randrange(1, 3000)) for _ in range(chance.randrange(1, 40))]
        offsets = [n * chance.randrange(100_000) for n in range(len(texts))]
        held.append(start(sender, end, texts, offsets, at=time.perf_counter_ns(), owner=object()))
        match chance.randrange(4):
            case 0:
                held.pop(chance.randrange(len(held))).close()
            case 1:
                del held[chance.randrange(len(held))]
            case 2:
                assert len(held[-1].sent_at) <= len(texts)
            case _:
                sender.finished()
        if len(held) > 30:
            held.clear()
    wait_until(
        lambda kept=kept: len(kept.sent_at) == 100,  # type: ignore[misc]
        "the end of the stream that was kept",
    )
    kept.close()
    a.close()
    check(read_all(b), kept, [b"k"] * 100)
    b.close()
    sender.close()
    assert held[-1:] == [] or held[-1].error == 0
    del sender, kept  # the thread ends before the remaining streams are dropped
    held.clear()
    for pair in ends:
        for end in pair:
            end.close()
    wait_until(lambda: descriptors(os.getpid()) == begun, "all descriptors closed")


def test_sender_refuses_invalid_arguments() -> None:
    a, b = socket.socketpair()
    with thread() as sender, a, b:
        with pytest.raises(ValueError, match="at least one text"):
            start(sender, a, [])
        with pytest.raises(ValueError, match="an offset of eight bytes"):
            start(sender, a, [b"x"], [1, 2])
        with pytest.raises(TypeError, match="must be bytes"):
            start(sender, a, [b"x", "y"])  # type: ignore[list-item]
        with pytest.raises(OSError, match="Bad file descriptor"):
            sender.send(-1, None, b"", b"", b"", (b"x",), b"", bytes(8), 1)
    with pytest.raises(RuntimeError, match="closed"), socket.socket() as unused:
        start(sender, unused, [b"x"])


# ---- In the server ----


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, Path]]]:
    """For each sender: the URL of a server whose text JSON must escape, and its file of stamps."""
    folder = tmp_path_factory.mktemp("senders")
    (folder / "text.txt").write_text('eins "zwei" drei\\ vïer fünf', encoding="utf-8")
    with ExitStack() as stack:
        found = {}
        for sender in ("python", "compiled"):
            options = (
                "--sender",
                sender,
                "--slow-s",
                "0.1",
                "--text",
                str(folder / "text.txt"),
                "--stamps",
                str(folder / sender),
            )
            found[sender] = (stack.enter_context(serve(*FAST, *options)), folder / sender)
        yield found


def raw(url: str, request: bytes, answers: int = 1) -> bytes:
    """All bytes received for a request, up to the end of that many chunked responses."""
    host, port = urlsplit(url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        got = b""
        while got.count(b"\r\n0\r\n\r\n") < answers:
            part = connection.recv(65536)
            assert part, "the connection was closed"
            got += part
        return got


def chat(headers: str = "", version: str = "1.1", **fields: Any) -> bytes:
    body = json.dumps(chat_body(b"x" * 6400, **fields)).encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: h\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def form(**fields: str) -> bytes:
    url = "http://h/v1/audio/transcriptions"
    made = requests.Request("POST", url, files={"file": b"x" * 64_001}, data=fields).prepare()
    assert isinstance(made.body, bytes)
    lines = f"Host: h\r\nContent-Type: {made.headers['Content-Type']!s}\r\nContent-Length: {len(made.body)}\r\n\r\n"
    return f"POST /v1/audio/transcriptions HTTP/1.1\r\n{lines}".encode() + made.body


def same(data: bytes) -> bytes:
    """Replace what differs between responses: ids and times."""
    for pattern, replacement in (
        (rb"[0-9a-f]{32}", b"ID"),
        (rb'"created":\d+', b"CREATED"),
        (rb"(?m)^date: .*$", b"DATE"),
        (rb"(?m)^: sent_at=\d+\.\d{9}$", b"STAMP"),
    ):
        data = re.sub(pattern, replacement, data)
    return data


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(chat(), id="usage"),
        pytest.param(chat(stream_options=None), id="no usage"),
        pytest.param(
            chat(stream_options={"include_usage": True, "continuous_usage_stats": True}), id="continuous usage"
        ),
        pytest.param(chat(max_tokens=5), id="limit within a chunk"),
        pytest.param(chat(max_tokens=4), id="limit between chunks"),
        pytest.param(chat(max_tokens=0), id="no text"),
        pytest.param(chat("Connection: close\r\n"), id="connection: close"),
        pytest.param(chat(version="1.0"), id="HTTP/1.0"),
        pytest.param(chat("Expect: 100-continue\r\n"), id="100-continue"),
        pytest.param(form(stream="true"), id="transcription"),
        *(
            pytest.param(chat(f"X-Fault: {name}\r\n"), id=name)
            for name in ("no-done", "no-end", "no-usage", "slow-headers", "multi", "bad-json", "empty", "reasoning")
        ),
    ],
)
def test_both_senders_send_the_same_bytes(both: dict[str, tuple[str, Path]], request_bytes: bytes) -> None:
    python, compiled = (raw(both[sender][0], request_bytes) for sender in ("python", "compiled"))
    assert same(compiled) == same(python)
    assert compiled.count(b"CREATED") == 0
    assert compiled != python


def test_both_senders_have_the_same_metrics() -> None:
    found = []
    for sender in ("python", "compiled"):
        with serve(*FAST, "--sender", sender) as url:
            post(url, chat_body(b"x" * 6400))
            post(url, chat_body(b"x" * 6400, max_tokens=3))
            page = requests.get(url + "/metrics", timeout=PATIENCE_S).text
        found.append(re.findall(r'^(sglang:\w+(?:_total|_count|_reqs)\{.*|.*le="\+Inf".*)', page, re.MULTILINE))
    assert found[0] == found[1]
    assert len(found[0]) > 8


@pytest.mark.parametrize("sender", ["python", "compiled"])
def test_stamps_file_equals_the_stamps_in_the_chunks(both: dict[str, tuple[str, Path]], sender: str) -> None:
    url, file = both[sender]
    _, _, body = post(url, chat_body(max_tokens=5), {"X-Request-Id": "mine"})
    wait_until(lambda: b'"mine"' in file.read_bytes(), "the line of the request")
    line = next(entry for entry in map(json.loads, file.read_text().splitlines()) if entry["request_id"] == "mine")
    assert list(line) == ["request_id", "received_at", "started_at", "sent_at", "tokens", "fault"]
    assert line["sent_at"] == pytest.approx([float(stamp) for stamp in STAMP.findall(body)], abs=1e-8)
    assert (line["tokens"], line["fault"], len(line["sent_at"])) == (5, None, 3)
    due = [line["started_at"] + 0.002 + 0.002 * chunk for chunk in range(3)]
    assert all(at >= when for at, when in zip(line["sent_at"], due, strict=True))


def test_connection_serves_several_requests(both: dict[str, tuple[str, Path]]) -> None:
    url, _ = both["compiled"]
    connection = connect(url)
    ports = set()
    for request in range(20):
        body = chat_body(stream=request % 3 > 0)  # uvicorn writes the complete (non-streamed) responses in between
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        ports.add(connection.sock.getsockname()[1])
        answer = connection.getresponse()
        assert answer.status == 200
        assert b"eins" in answer.read()
    connection.close()
    assert len(ports) == 1


def test_pipelined_requests_are_answered_in_order(both: dict[str, tuple[str, Path]]) -> None:
    url, _ = both["compiled"]
    got = raw(url, chat(max_tokens=1) + chat(max_tokens=3) + chat(max_tokens=5), answers=3)
    assert [answer.count(b": sent_at=") for answer in got.split(b"HTTP/1.1 200 OK\r\n")[1:]] == [1, 2, 3]


def test_disconnected_clients_free_their_descriptors_and_stop_no_other(tmp_path: Path) -> None:
    stamps = tmp_path / "stamps"
    options = ("--tokens", "100000", "--ttft-ms", "5", "--itl-ms", "5", "--sender", "compiled", "--stamps", str(stamps))
    with running("--engine", "scripted", *options) as (url, process):
        post(url, chat_body(max_tokens=1))
        before = descriptors(process.pid)  # that connection may still be open
        stays = connect(url)
        stays.request("POST", "/v1/chat/completions", json.dumps(chat_body(max_tokens=400)))
        others = [connect(url) for _ in range(20)]
        for number, other in enumerate(others):
            other.request("POST", "/v1/chat/completions", json.dumps(chat_body()), {"X-Request-Id": f"gone-{number}"})
        for other in others:
            assert other.sock.recv(15) == b"HTTP/1.1 200 OK"
        assert descriptors(process.pid) >= before + 2 * 20
        for other in others:
            other.close()
        wait_until(lambda: stamps.read_bytes().count(b'"gone-') == 20, "the end of the streams that were left")
        assert len(text_of(stays.getresponse().read()).split()) == 400
        stays.close()
        wait_until(lambda: descriptors(process.pid) <= before, "all descriptors closed")
        lines = [json.loads(line) for line in stamps.read_text().splitlines()]
    gone = [line for line in lines if line["request_id"].startswith("gone-")]
    assert len(gone) == 20
    assert all(1 <= len(line["sent_at"]) == line["tokens"] < 100_000 for line in gone)


def test_client_that_pauses_reading_gets_all_when_it_resumes() -> None:
    """Chunks of about 60 kB fill the system's buffers, so that the sender has to wait."""
    options = ("--tokens", "1000000", "--tokens-per-chunk", "10000", "--ttft-ms", "0", "--itl-ms", "0")
    with serve("--engine", "scripted", *options, "--sender", "compiled") as url:
        host, port = urlsplit(url).netloc.split(":")
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((host, int(port)))
            slow.sendall(chat("Connection: close\r\n"))
            assert slow.recv(12) == b"HTTP/1.1 200"
            assert len(text_of(post(url, chat_body(max_tokens=20))[2]).split()) == 20  # others are served meanwhile
            got = read_all(slow)
    body = b"".join(dechunk(got.partition(b"\r\n\r\n")[2]))
    assert len(STAMP.findall(body)) == 100
    assert len(text_of(body).split()) == 1_000_000
    assert body.endswith(b"data: [DONE]\n\n")


def test_300_concurrent_streams_are_complete_and_on_time(tmp_path: Path) -> None:
    stamps = tmp_path / "stamps"
    options = ("--tokens", "50", "--ttft-ms", "100", "--itl-ms", "10", "--sender", "compiled", "--stamps", str(stamps))
    # With too few descriptors, the server raises the limit. No shell sets it, as sanitizers are preloaded into it.
    limit = "import os, sys; from resource import *; setrlimit(RLIMIT_NOFILE, (256, getrlimit(RLIMIT_NOFILE)[1]));"
    few = (sys.executable, "-c", f"{limit} os.execv(sys.argv[1], sys.argv[1:])")
    with ExitStack() as stack:
        url = stack.enter_context(serve("--engine", "scripted", *options, on=few))
        host, port = urlsplit(url).netloc.split(":")
        request = chat("Connection: close\r\n")
        connections = []
        for _ in range(300):
            connections.append(stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S)))
            connections[-1].sendall(request)
        bodies = [b"".join(dechunk(read_all(each).partition(b"\r\n\r\n")[2])) for each in connections]
        assert {len(text_of(body).split()) for body in bodies} == {50}
        assert len({text_of(body) for body in bodies}) == 1
        wait_until(lambda: stamps.read_bytes().count(b"\n") == 300, "the lines of all requests")
        for line in map(json.loads, stamps.read_text().splitlines()):
            due = [line["started_at"] + 0.1 + 0.01 * chunk for chunk in range(50)]
            assert all(at >= when for at, when in zip(line["sent_at"], due, strict=True))


def test_server_stops_while_streams_run() -> None:
    with running("--engine", "scripted", "--tokens", "100000", "--sender", "compiled") as (url, process):
        connections = [connect(url) for _ in range(50)]
        for connection in connections:
            connection.request("POST", "/v1/chat/completions", json.dumps(chat_body()))
        for connection in connections:
            assert connection.sock.recv(12) == b"HTTP/1.1 200"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        for connection in connections:
            assert not read_all(connection.sock).endswith(b"\r\n0\r\n\r\n")
            connection.close()


WITHOUT = """
import sys
sys.modules["asr_server._chunk_sender"] = None
from asr_server.main import main
main(["--engine", "scripted", "--sender", "compiled"])
"""


def test_missing_compiled_sender_gives_a_one_line_error() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S, check=False
    )
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: --sender compiled: not compiled on this machine; use auto or python\n",
    )
