"""The pacer: packets are sent when they are due, and no session delays another."""

from __future__ import annotations

from collections.abc import Iterator

import gevent.event
import pytest

from asr_load.apis.dialects import DIALECTS
from asr_load.apis.realtime import RealtimeOptions, RealtimeRequest
from asr_load.audio.clip import Clip
from asr_load.audio.dither import NO_DITHER
from asr_load.realtime.pacer import TICK_S, Pacer, Packets
from asr_load.realtime.speech import Resampled, Speech, speech_of
from asr_load.stream.limits import TURN_S
from harness.audio import clip
from harness.patience import PATIENCE_S


def spoken(clip: Clip, nonce: bytes = NO_DITHER, silence_s: float = 0.0, rates: tuple[int, ...] = (16000,)) -> Speech:
    options = RealtimeOptions("vllm", 0.1, 1.0, silence_s, server_vad=False, utterances=1, model="", language="")
    return speech_of(RealtimeRequest(options, clip, nonce), rates, Resampled())


class _Clock:
    """A clock that only advances by `cost` seconds with each packet sent."""

    def __init__(self, cost: float = 0.0) -> None:
        self.now, self.cost = 100.0, cost

    def __call__(self) -> float:
        return self.now


class _Wire:
    """Stands in for a socket."""

    def __init__(self, clock: _Clock, fails_at: int = -1) -> None:
        self.sent: list[float] = []
        self.woken = 0
        self._clock, self._fails_at = clock, fails_at

    def send(self, _message: bytes) -> None:
        if len(self.sent) == self._fails_at:
            raise ValueError("broken")
        self.sent.append(self._clock.now)
        self._clock.now += self._clock.cost

    def wake(self) -> None:
        self.woken += 1


def _packets(wire: _Wire, begins: float, pace: float = 1.0, *, speech: Speech | None = None) -> Packets:
    speech = speech or spoken(clip())
    return Packets(wire, DIALECTS["vllm"], speech, packet_s=0.1, pace=pace, begins=begins)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def pacer(clock: _Clock) -> Iterator[Pacer]:
    pacer = Pacer(clock)
    yield pacer
    assert not pacer._due, "it still ticks"


def _tick_until(pacer: Pacer, clock: _Clock, until: float, step: float = TICK_S) -> None:
    """Advance a clock in steps; the pacer sends what is due at each."""
    while clock.now < until:
        pacer.send_due()
        clock.now += step


def test_packets_are_sent_when_a_microphone_would_have_filled_them(pacer: Pacer, clock: _Clock) -> None:
    wire, begins = _Wire(clock), clock.now + 0.05
    packets = _packets(wire, begins, pace=2.0)
    pacer.add(packets)
    _tick_until(pacer, clock, begins + 0.5)
    assert packets.ended
    assert wire.woken == 1
    late = [at - begins - 0.05 * number for number, at in enumerate(wire.sent, 1)]
    assert len(late) == 5
    assert min(late) >= 0
    assert max(late) <= 1.5 * TICK_S
    assert packets.lags == pytest.approx(late)


def test_delayed_packets_leave_in_order_and_later_ones_on_time(pacer: Pacer, clock: _Clock) -> None:
    wire, begins = _Wire(clock), clock.now
    packets = _packets(wire, begins)
    pacer.add(packets)
    clock.now += 0.25  # the loop was blocked: two packets are due
    _tick_until(pacer, clock, begins + 1)
    assert packets.lags == pytest.approx([0.15, 0.05, 0, 0, 0], abs=1.5 * TICK_S)
    assert wire.sent == sorted(wire.sent)


def test_500_sessions_keep_their_pace_on_half_a_core() -> None:
    clock = _Clock(cost=1e-4)  # 500 sessions with 10 packets per second take half of a core
    pacer, speech, begins = Pacer(clock), spoken(clip(2.0)), clock.now
    all_packets = [_packets(_Wire(clock), begins + number * 0.1 / 500, speech=speech) for number in range(500)]
    for packets in all_packets:
        pacer.add(packets)
    _tick_until(pacer, clock, begins + 2.2)
    assert not pacer._due
    lags = [lag for packets in all_packets for lag in packets.lags]
    assert len(lags) == 500 * 20
    assert min(lags) >= 0
    assert max(lags) <= 3 * TICK_S


def test_pacer_yields_after_its_turn_and_continues_in_the_next(clock: _Clock) -> None:
    clock.cost = TURN_S / 4
    pacer = Pacer(clock)
    wires = [_Wire(clock) for _ in range(10)]
    for wire in wires:
        pacer.add(_packets(wire, clock.now - 0.1))  # the first packet of each is due
    counts = []
    while sum(len(wire.sent) for wire in wires) < 10:
        pacer.send_due()
        counts.append(sum(len(wire.sent) for wire in wires))
    assert counts in ([4, 8, 10], [5, 10])
    _tick_until(pacer, clock, clock.now + 1)


def test_broken_socket_delays_no_other(pacer: Pacer, clock: _Clock) -> None:
    broken, whole = _Wire(clock, fails_at=2), _Wire(clock)
    both = [_packets(wire, clock.now, pace=10.0) for wire in (broken, whole)]
    for packets in both:
        pacer.add(packets)
    _tick_until(pacer, clock, clock.now + 0.1)
    assert str(both[0].error) == "broken"
    assert [len(wire.sent) for wire in (broken, whole)] == [2, 5]
    assert broken.woken == whole.woken == 1


def test_ended_packets_are_not_sent(pacer: Pacer, clock: _Clock) -> None:
    wire = _Wire(clock)
    packets = _packets(wire, clock.now)
    pacer.add(packets)
    _tick_until(pacer, clock, clock.now + 0.15)
    packets.end()
    _tick_until(pacer, clock, clock.now + 0.3)
    assert len(wire.sent) == 1


def test_timer_of_the_real_loop_sends_due_packets() -> None:
    clock = _Clock()
    pacer, sent = Pacer(clock), gevent.event.Event()
    packets = _packets(_Wire(clock), clock.now - 1)
    packets._socket.wake = sent.set  # type: ignore[method-assign]
    pacer.add(packets)
    assert sent.wait(PATIENCE_S)
    assert packets.ended
