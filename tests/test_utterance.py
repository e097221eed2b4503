"""Utterances: scripted events of a socket lead to an outcome."""

from __future__ import annotations

import json
import time
from collections import deque
from typing import Any

import gevent
import pytest
from gevent import GreenletExit

from asr_load.apis.dialects import DIALECTS
from asr_load.apis.realtime import RealtimeRequest
from asr_load.apis.transcription_request import TranscriptionRequest
from asr_load.audio.dither import NO_DITHER
from asr_load.http.attempt import ExchangeConfig
from asr_load.http.connection import UserConnection
from asr_load.http.failure import Failure
from asr_load.http.transport import Timeouts
from asr_load.realtime import utterance as utterances
from asr_load.realtime.pacer import Playback
from asr_load.realtime.session import RealtimeSession
from asr_load.realtime.utterance import Utterance
from asr_load.stream.reader import ProtocolError
from asr_load.stream.record import RealtimeRecord
from asr_load.stream.timing import NS
from harness.options import settings

NO_LIMIT = gevent.Timeout(None)
DELTA = {"type": "transcription.delta", "delta": "hello"}
DONE = {"type": "transcription.done", "text": "hello", "usage": {"completion_tokens": 1}}
ERROR = {"type": "error", "error": "broke", "code": "processing_error"}
ITEM = "conversation.item.input_audio_transcription"
TURN = [
    {"type": "input_audio_buffer.speech_started", "item_id": "a"},
    {"type": "input_audio_buffer.speech_stopped", "item_id": "a"},
    {"type": "input_audio_buffer.committed", "item_id": "a"},
    {"type": f"{ITEM}.completed", "item_id": "a", "transcript": "hello"},
]


class _Socket:
    """Stands in for a socket: each `listen` brings the next batch of messages, or raises."""

    blocked_s = 0.0
    retry_after = ""

    def __init__(self, *batches: list[Any] | Exception, close_code: int | None = None) -> None:
        self._batches = deque(batches)
        self._closes_with = close_code
        self.close_code: int | None = None
        self.close_reason = ""
        self.messages: deque[tuple[bytes, int]] = deque()

    @property
    def is_open(self) -> bool:
        return self.close_code is None

    def wait_for_message(self, until: float) -> bool:
        if self._batches or self._closes_with or time.perf_counter() < until:
            self.listen(until)
        return not self.is_open or bool(self.messages)

    def listen(self, until: float) -> None:
        assert self._batches or until == 0.0 or self._closes_with, "it would wait"
        if not self._batches:
            self.close_code = self._closes_with
            return
        batch = self._batches.popleft()
        if isinstance(batch, Exception):
            raise batch
        for message in batch:
            data = message if isinstance(message, bytes) else json.dumps(message).encode()
            self.messages.append((data, time.perf_counter_ns()))


class _Packets:
    """Stands in for the packets of 1 s of speech and 1 s of silence, of which `ends_at` seconds were sent."""

    lags = (0.0,)

    def __init__(self, began: float, ends_at: float = 2.0, *, ended: bool = True) -> None:
        self.commits = int(ended)
        self.sent = [(began + ends_at, ends_at)]
        self.has_spoken, self.speech_ends = ends_at >= 1.0, began + 1.0


def utterance(socket: _Socket, dialect: str = "vllm", *, ends_at: float = 2.0, ended: bool = True) -> Utterance:
    """An utterance that has sent `ends_at` seconds of its audio and, if `ended`, the message that ends it."""
    began = time.perf_counter() - ends_at
    options = settings("--api", "realtime").realtime
    assert options is not None
    speech = RealtimeRequest(options, None, NO_DITHER)
    request = TranscriptionRequest("ws://h", [], {}, "a", "", 1.0, 0, 0, 0, realtime=speech)
    config = ExchangeConfig(Timeouts(60, 60, 60), 0)
    found = Utterance(None, UserConnection(), request, speech, config=config, playback=Playback())  # type: ignore[arg-type]
    found.began = round(began * NS)
    found.session = RealtimeSession(socket, "")  # type: ignore[arg-type]
    found.session.dialect = DIALECTS[dialect]
    found.packets = _Packets(began, ends_at, ended=ended)  # type: ignore[assignment]
    if ended:
        found.speech_ended, found.audio_ended = round((began + 1) * NS), round((began + 2) * NS)
    return found


def record_of(found: Utterance) -> RealtimeRecord:
    record = found.record()
    assert isinstance(record, RealtimeRecord)
    return record


@pytest.mark.parametrize(
    ("batches", "outcome"),
    [
        ([[DELTA, DONE]], "ok"),
        ([[DELTA]], "unfinished"),
        ([[DELTA, DONE, ERROR]], "ok"),
        ([[DELTA, ERROR]], "stream_error"),
        ([[DELTA, b"{", DONE]], "unfinished"),
        ([Failure("cut", "x")], "unfinished"),
    ],
)
def test_end_of_the_test_keeps_received_messages(batches: list[Any], outcome: str) -> None:
    found = utterance(_Socket(*batches))
    reraise = GreenletExit()
    assert found.end_with(reraise, NO_LIMIT) is reraise
    assert found.outcome == outcome
    if outcome == "ok":
        assert (record_of(found).text, record_of(found).output_tokens) == ("hello", 1)


@pytest.mark.parametrize(
    "error", [Failure("client", "no memory"), ProtocolError("a binary frame"), ValueError("x"), NO_LIMIT]
)
def test_final_text_received_before_an_error_is_a_success(error: BaseException) -> None:
    found = utterance(_Socket([]))
    assert found.session is not None
    for event in (DELTA, DONE):
        found.session.socket.messages.append((json.dumps(event).encode(), time.perf_counter_ns()))
    found.end_with(error, NO_LIMIT)
    assert found.outcome == "ok"


def test_messages_after_a_protocol_error_are_ignored() -> None:
    found = utterance(_Socket([DELTA, b"{", DONE], [DONE]))
    assert found.session is not None
    with pytest.raises(ProtocolError) as raised:
        found.await_final(found.session)
    found.end_with(raised.value, NO_LIMIT)
    assert found.outcome == "protocol"


@pytest.mark.parametrize(
    ("ends_at", "events", "outcome"),
    [
        (1.5, TURN, "ok"),
        (1.5, TURN[:-1], "unfinished"),
        (1.5, [*TURN, TURN[0]], "unfinished"),  # another turn has started
        (0.5, TURN, "unfinished"),  # some speech was not sent
    ],
)
def test_turn_ended_by_the_server_is_complete_without_all_silence_sent(
    ends_at: float, events: list[Any], outcome: str
) -> None:
    found = utterance(_Socket(events), "openai", ends_at=ends_at, ended=False)
    found.end_with(GreenletExit(), NO_LIMIT)
    assert found.outcome == outcome
    if outcome == "ok":
        record = record_of(found)
        assert record.ttfs == pytest.approx(0.5, abs=0.4)
        assert (record.done_latency, record.text) == (None, "hello")


@pytest.mark.parametrize(("ends_at", "outcome"), [(1.5, "ok"), (0.5, "closed_1011")])
def test_close_after_a_complete_turn_is_a_success(ends_at: float, outcome: str) -> None:
    socket = _Socket(TURN, close_code=1011)
    found = utterance(socket, "openai", ends_at=ends_at, ended=False)
    assert found.session is not None
    found.await_final(found.session)
    assert found.outcome == outcome


def test_ttfs_is_never_negative() -> None:
    # The server ends the turn and sends its text before the speech of the clip ends.
    found = utterance(_Socket([]), "openai")
    assert found.session is not None
    found.packets = _Packets(found.began / NS, ended=False)  # type: ignore[assignment]
    at = found.began + NS // 2
    found.session.socket.messages += [(json.dumps(event).encode(), at) for event in TURN]
    found.process_events(found.session)
    record = record_of(found)
    assert (found.transcript.final_at, record.ttfs) == (found.speech_ended, 0.0)


def test_final_text_before_the_end_of_the_audio_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utterances, "LINGER_S", 0.0)
    socket = _Socket([DELTA, DONE])
    found = utterance(socket, ended=False)
    assert found.session is not None
    socket.listen(0.0)
    found.process_events(found.session)
    found.audio_ended = time.perf_counter_ns()
    found.packets = _Packets(found.began / NS)  # type: ignore[assignment]
    with pytest.raises(Failure, match="before the audio had ended") as raised:
        found.await_final(found.session)
    assert raised.value.outcome == "no_final"
    # In a later utterance of a session, such a text belongs to the earlier one, and the utterance waits for its own.
    later = utterance(_Socket([DONE]))
    later.transcript.is_early = True
    assert later.session is not None
    later.session.utterances = 1
    later.await_final(later.session)
    assert later.outcome == "ok"


def test_unanswered_commit_is_not_waited_for_when_all_turns_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utterances, "LINGER_S", 0.0)
    found = utterance(_Socket(), "openai")
    assert found.session is not None
    at = time.perf_counter_ns()
    found.session.socket.messages += [(json.dumps(event).encode(), at) for event in TURN]
    found.await_final(found.session)
    assert (found.outcome, found.transcript.final_at) == ("ok", at)


@pytest.mark.parametrize("events", [TURN, [{**DELTA, "type": f"{ITEM}.delta", "item_id": "a"}, *TURN[1:]]])
def test_empty_commit_after_a_complete_transcript_is_not_an_error(events: list[Any]) -> None:
    empty = {"type": "error", "error": {"code": "input_audio_buffer_commit_empty", "message": "buffer too small"}}
    for order in ([*events[:-1], empty, events[-1]], [*events, empty]):
        found = utterance(_Socket(order), "openai")
        assert found.session is not None
        found.await_final(found.session)
        assert (found.outcome, found.transcript.text, found.transcript.events["error"]) == ("ok", "hello", 1)
    alone = utterance(_Socket([empty], close_code=1000), "openai")
    assert alone.session is not None
    alone.await_final(alone.session)
    assert (alone.outcome, alone.error) == ("stream_error", "input_audio_buffer_commit_empty: buffer too small")
