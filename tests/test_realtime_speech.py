"""Clips as packets: the same samples, whatever the size of a packet and the rate; and who sends them when."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import numpy as np
import pyarrow as pa
import pytest
import soxr

from asr_load.audio import shard
from asr_load.audio.clip import Clip, Recording, Rules
from asr_load.audio.convert import convert, end_of_speech
from asr_load.audio.payload import NO_DITHER, dithered, new_dither
from asr_load.realtime import speech
from asr_load.realtime.dialects import DIALECTS, LiveOptions
from asr_load.realtime.pacer import Pacer, Packets
from asr_load.realtime.speech import LiveRequest, Speech, speech_of
from conftest import noise
from harness.audio import encoded


def clip(seconds: float = 0.5) -> Clip:
    pcm = (noise(seconds) * 32768).astype(np.int16)
    return next(convert(Recording("a", "", encoded(pcm, subtype="PCM_16")), Rules()))


def spoken(clip: Clip, nonce: bytes = NO_DITHER, silence_s: float = 0.0, rates: tuple[int, ...] = (16000,)) -> Speech:
    options = LiveOptions("vllm", 0.1, 1.0, silence_s, server_vad=False, utterances=1, model="", language="")
    return speech_of(LiveRequest(options, clip, nonce), rates)


def samples(clip: Clip, nonce: bytes = NO_DITHER) -> bytes:
    return base64.b64decode(b"".join(map(bytes, dithered(clip.audio_b64, nonce, clip.dither_at))))[44:]


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "_kept", type(speech._kept)())


@pytest.mark.parametrize("seconds", [0.1, 0.5, 0.50003, 3.7])
@pytest.mark.parametrize("packet_s", [0.001, 0.0007, 0.1, 3.0])
def test_packets_are_the_samples_that_a_file_would_hold(seconds: float, packet_s: float) -> None:
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


def test_a_clip_is_resampled_once_and_each_request_has_bits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
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
        np.frombuffer(b"".join(pcm for pcm, _ in spoken(one, new_dither(), rates=(rate,)).packets(packet_s)), "<i2")
        for _ in "ab"
    )
    assert np.abs(first.astype(int) - second).max() == 1
    seconds = np.flatnonzero(first != second) // rate
    assert set(seconds) == set(range(6))


def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "KEPT_BYTES", 50_000)
    clips = [replace(clip(), sha256=str(number)) for number in range(4)]
    for each in [*clips, clips[2]]:
        spoken(each, rates=(24000,))
    assert list(speech._kept) == [("3", 24000), ("2", 24000)]


def test_the_end_of_speech_is_found_at_preparation_and_kept(tmp_path: Path) -> None:
    pcm = np.zeros(32000, np.int16)
    pcm[:16000] = (noise(1.0) * 32768).astype(np.int16)
    pcm[20000] = 3  # a click that is next to nothing
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


def test_the_end_of_speech_of_what_is_long_is_that_of_its_blocks_together() -> None:
    pcm = np.zeros(3 << 20, np.int16)
    pcm[1_000_000:2_000_000] = 1000
    pcm[0] = 10_000  # alone in its stretch, which is still the loudest
    assert end_of_speech(pcm, 16000) == pytest.approx(125.0, abs=0.02)


class _Wire:
    """Stands for a socket."""

    def __init__(self) -> None:
        self.sent: list[float] = []
        self.woken = 0
        self.fails_at = -1

    def send(self, _message: bytes) -> None:
        if len(self.sent) == self.fails_at:
            raise ValueError("broken")
        self.sent.append(time.perf_counter())

    def wake(self) -> None:
        self.woken += 1


def _packets(wire: _Wire, begins: float, pace: float = 1.0) -> Packets:
    return Packets(wire, DIALECTS["vllm"], spoken(clip()), packet_s=0.1, pace=pace, begins=begins)  # type: ignore[arg-type]


@pytest.fixture
def pacer() -> Iterator[Pacer]:
    pacer = Pacer()
    yield pacer
    assert not pacer._due, "it still ticks"


def test_packets_leave_when_a_microphone_has_filled_them(pacer: Pacer) -> None:
    wire, begins = _Wire(), time.perf_counter() + 0.05
    packets = _packets(wire, begins, pace=2.0)
    pacer.add(packets)
    gevent.sleep(0.5)
    assert packets.ended
    assert wire.woken == 1
    late = [at - begins - 0.05 * number for number, at in enumerate(wire.sent, 1)]
    assert len(late) == 5
    assert min(late) >= 0
    assert packets.lags == pytest.approx(late, abs=0.02)


def test_one_that_breaks_holds_up_no_other(pacer: Pacer) -> None:
    broken, whole = _Wire(), _Wire()
    broken.fails_at = 2
    both = [_packets(wire, time.perf_counter(), pace=10.0) for wire in (broken, whole)]
    for packets in both:
        pacer.add(packets)
    gevent.sleep(0.3)
    assert str(both[0].error) == "broken"
    assert [len(wire.sent) for wire in (broken, whole)] == [2, 5]
    assert broken.woken == whole.woken == 1


def test_what_need_not_be_sent_any_more_is_not(pacer: Pacer) -> None:
    wire = _Wire()
    packets = _packets(wire, time.perf_counter())
    pacer.add(packets)
    gevent.sleep(0.15)
    packets.end()
    gevent.sleep(0.3)
    assert len(wire.sent) == 1
