"""Clips as packets: the same samples for any packet size and rate, and sent when due."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent.event
import numpy as np
import pyarrow as pa
import pytest
import soxr

from asr_load.audio import shard
from asr_load.audio.clip import Clip, Recording, Rules
from asr_load.audio.convert import convert, end_of_speech
from asr_load.audio.dither import NO_DITHER, dithered, new_dither
from asr_load.realtime import speech
from asr_load.realtime.dialects import DIALECTS, RealtimeOptions
from asr_load.realtime.pacer import TICK_S, Pacer, Packets
from asr_load.realtime.speech import RealtimeRequest, Speech, speech_of
from asr_load.stream.limits import TURN_S
from conftest import noise
from harness.audio import clip, encoded


def spoken(clip: Clip, nonce: bytes = NO_DITHER, silence_s: float = 0.0, rates: tuple[int, ...] = (16000,)) -> Speech:
    options = RealtimeOptions("vllm", 0.1, 1.0, silence_s, server_vad=False, utterances=1, model="", language="")
    return speech_of(RealtimeRequest(options, clip, nonce), rates)


def samples(clip: Clip, nonce: bytes = NO_DITHER) -> bytes:
    return base64.b64decode(b"".join(map(bytes, dithered(clip.audio_b64, nonce, clip.dither_at))))[44:]


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "_kept", type(speech._kept)())


@pytest.mark.parametrize("seconds", [0.1, 0.5, 0.50003, 3.7])
@pytest.mark.parametrize("packet_s", [0.001, 0.0007, 0.1, 3.0])
def test_packets_contain_the_samples_of_the_clip(seconds: float, packet_s: float) -> None:
    one, nonce = clip(seconds), new_dither()
    packets = list(spoken(one, nonce, 0.25).packets(packet_s))
    whole = b"".join(pcm for pcm, _ in packets)
    length = len(samples(one))
    assert whole[:length] == samples(one, nonce) != samples(one)
    silence = np.frombuffer(whole[length:], "<i2")
    assert len(silence) == 4000
    assert 0 < np.abs(silence).max() <= speech.NOISE
    ends = np.cumsum([len(pcm) for pcm, _ in packets]) / 32000
    assert [end_s for _, end_s in packets] == pytest.approx(ends.tolist())


def test_clip_is_resampled_once_and_dithered_per_request(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    resampled = soxr.resample

    def resample(samples: np.ndarray, rate: int, to: int) -> Any:
        calls.append(to)
        return resampled(samples, rate, to)

    monkeypatch.setattr(soxr, "resample", resample)
    one = clip()
    first, second = (b"".join(pcm for pcm, _ in spoken(one, new_dither(), rates=(24000,)).packets(0.1)) for _ in "ab")
    assert calls == [24000]
    assert len(first) == len(second) == 24000
    changed = np.flatnonzero(np.frombuffer(first, "<i2") != np.frombuffer(second, "<i2"))
    at = round(one.dither_at[0] * 1.5)
    assert 0 < len(changed) <= 64
    assert at <= changed.min() <= changed.max() < at + 64
    assert np.abs(np.subtract(*(np.frombuffer(each, "<i2").astype(int) for each in (first, second)))).max() == 1


@pytest.mark.parametrize("rate", [16000, 24000, 8000])
@pytest.mark.parametrize("packet_s", [0.02, 0.3])
def test_two_sessions_differ_in_every_second(rate: int, packet_s: float) -> None:
    one = clip(5.5)
    first, second = (
        np.frombuffer(b"".join(pcm for pcm, _ in spoken(one, new_dither(), 2.5, (rate,)).packets(packet_s)), "<i2")
        for _ in "ab"
    )
    assert np.abs(first.astype(int) - second).max() == 1
    seconds = np.flatnonzero(first != second) // rate
    assert set(seconds) == set(range(8))


def test_cache_of_resampled_clips_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "KEPT_BYTES", 50_000)
    clips = [replace(clip(), sha256=str(number)) for number in range(4)]
    for each in [*clips, clips[2]]:
        spoken(each, rates=(24000,))
    assert list(speech._kept) == [("3", 24000), ("2", 24000)]


def test_end_of_speech_is_found_at_preparation_and_stored(tmp_path: Path) -> None:
    pcm = np.zeros(32000, np.int16)
    pcm[:16000] = (noise(1.0) * 32768).astype(np.int16)
    pcm[20000] = 3  # a very quiet click
    one = next(convert(Recording("a", "", encoded(pcm, subtype="PCM_16")), Rules()))
    assert one.speech_end_s == 1.0
    assert spoken(one, silence_s=0.5).end_s == 1.0
    assert spoken(one).end_s == 2.0
    shard.write_shard(tmp_path / "new", [one])
    (new,) = shard._open_batches(tmp_path, "new")
    one_place = pa.array([places[0] for places in new.column("dither_at").to_pylist()], pa.int32())
    older = new.set_column(5, "dither_at", one_place).drop_columns(["speech_end_s"])
    with pa.ipc.new_file(str(tmp_path / "older"), older.schema) as writer:
        writer.write_batch(older)
    read = [shard.Shards._read(_Batches(tmp_path, name), 0)[0] for name in ("new", "older")]  # type: ignore[arg-type]
    assert [each.speech_end_s for each in read] == [1.0, None]
    assert [each.dither_at for each in read] == [one.dither_at, one.dither_at[:1]]
    assert spoken(read[1], silence_s=0.5).end_s == 1.0


class _Batches:
    def __init__(self, folder: Path, name: str) -> None:
        self._batches = shard._open_batches(folder, name)


def test_end_of_speech_of_a_long_clip_spans_its_blocks() -> None:
    pcm = np.zeros(3 << 20, np.int16)
    pcm[1_000_000:2_000_000] = 1000
    pcm[0] = 10_000  # a single sample, but its stretch is still the loudest
    assert end_of_speech(pcm, 16000) == pytest.approx(125.0, abs=0.02)


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
    assert sent.wait(30)
    assert packets.ended
