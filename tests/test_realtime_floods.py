"""Servers that flood a session: it ends, and other users are not delayed."""

from __future__ import annotations

import gc
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import gevent
import pytest
from websockets.frames import Opcode

from asr_load.realtime import socket as realtime
from asr_load.realtime.dialects import DIALECTS
from asr_load.realtime.heard import MOST_ITEMS, Heard, read_event
from asr_load.stream.limits import MAX_STREAM_BYTES
from asr_load.stream.reader import ProtocolError
from benchmarks.flood_server import FLOODS, PHASES, accept, frame
from harness.peer import LIMITS, TLS, WAYS, server_context
from harness.realtime import utter

MOST_FRAMES = 20_000
"""The limit for an utterance in these tests."""

IN_A_ROUND = 5 * 1024
"""The limit of frames and events per round of the loop: two calls of `listen`, and a margin."""


@contextmanager
def flooded(name: str, phase: str, *, tls: bool = False) -> Iterator[str]:
    """The URL of a session that gets flooded."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener = server_context().wrap_socket(server, server_side=True) if tls else server
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"ws{'s' * tls}://127.0.0.1:{listener.getsockname()[1]}/{name}/{phase}"
        listener.close()


@pytest.fixture
def most_in_a_round(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """The largest number of frames and events taken in one round of the event loop so far."""
    taken, rounds = 0, [0]

    def counted(owner: type, name: str) -> None:
        plain = getattr(owner, name)

        def take(*args: object) -> None:
            nonlocal taken
            taken += 1
            plain(*args)

        monkeypatch.setattr(owner, name, take)

    def begin_round() -> None:
        nonlocal taken
        rounds.append(taken)
        taken = 0

    counted(realtime.Socket, "_take")
    counted(Heard, "note")
    watcher = gevent.get_hub().loop.prepare()
    watcher.start(begin_round)
    yield lambda: max(rounds)
    watcher.close()


CASES = [
    *((name, phase, "compiled") for name, phase in itertools.product(FLOODS, PHASES)),
    *((name, "after", "compiled" + TLS) for name in FLOODS),
    *(("pings", "after", way) for way in WAYS if way.startswith("python")),
]


@pytest.mark.parametrize(("name", "phase", "way"), CASES)
def test_flood_yields_to_other_users_and_ends_at_the_limit(
    name: str, phase: str, way: str, most_in_a_round: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "MAX_EVENTS", MOST_FRAMES, raising=False)
    with flooded(name, phase, tls=way.endswith(TLS)) as url:
        record = utter(url, way)
    assert record.outcome == "protocol"
    assert f"more than {MOST_FRAMES} frames" in (record.error or "")
    assert 0 < most_in_a_round() < IN_A_ROUND


@pytest.mark.parametrize("phase", PHASES)
def test_total_timeout_ends_a_flooded_utterance(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_EVENTS", "MAX_STREAM_BYTES"):
        monkeypatch.setattr(realtime, name, 1 << 60, raising=False)
    monkeypatch.setitem(FLOODS, "long pings", (b"", frame(Opcode.PING, b"x" * 125)))
    with flooded("long pings", phase) as url:
        assert utter(url, limits=replace(LIMITS, total=0.6)).outcome == "timeout"


def test_text_of_an_utterance_has_the_limit_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = b'{"type":"transcription.delta","delta":"%b"}' % (b"word " * 10_000)
    monkeypatch.setitem(FLOODS, "deltas", (b"", frame(Opcode.TEXT, delta)))
    with flooded("deltas", "after") as url:
        record = utter(url)
    assert record.outcome == "protocol"
    assert f"{MAX_STREAM_BYTES} bytes" in (record.error or "")
    assert MAX_STREAM_BYTES / 2 < len(record.text) < MAX_STREAM_BYTES


def test_number_of_items_of_an_utterance_is_limited() -> None:
    heard = Heard()
    for number in range(MOST_ITEMS):
        heard.append(f"{number}", "x", 1)
    with pytest.raises(ProtocolError, match=f"more than {MOST_ITEMS} items"):
        heard.append("one more", "x", 1)
    heard.append("0", "x", 1)
    assert heard.text.split() == ["xx", *["x"] * (MOST_ITEMS - 1)]


ITEM = "conversation.item.input_audio_transcription"
EVENTS: dict[str, list[tuple[str, dict[str, object]]]] = {
    "deltas of one item": [("vllm", {"type": "transcription.delta", "delta": "x" * 1500})],
    "items": [
        ("openai", {"type": "input_audio_buffer.committed"}),
        ("openai", {"type": f"{ITEM}.completed", "transcript": "x"}),
    ],
}


@pytest.mark.parametrize("name", EVENTS)
def test_time_per_event_does_not_grow_with_earlier_events(name: str) -> None:
    def spent(count: int) -> float:
        heard = Heard()
        events = [
            (DIALECTS[dialect], read_event(json.dumps({**fields, "item_id": f"{number}"}).encode()))
            for number in range(count)
            for dialect, fields in EVENTS[name]
        ]
        gc.disable()  # a collection walks the objects of all tests
        began = time.thread_time()
        for dialect, event in events:
            dialect.hear(event, heard, 1)
            dialect.is_final(heard)
        took = time.thread_time() - began
        gc.enable()
        return took

    # 10 times as long for 10 times as many; 100 times if each event looked at all earlier ones.
    assert min(spent(4_000) for _ in range(3)) < 40 * max(spent(400) for _ in range(3))
