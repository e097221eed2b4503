"""Clips as packets: the same samples for any packet size and rate."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soxr

from asr_load.apis.realtime import RealtimeOptions, RealtimeRequest
from asr_load.audio import shard
from asr_load.audio.clip import Clip, Recording, Rules
from asr_load.audio.convert import convert
from asr_load.audio.dither import NO_DITHER, dithered, new_dither
from asr_load.audio.loudness import end_of_speech
from asr_load.realtime import speech
from asr_load.realtime.speech import Resampled, Speech, speech_of
from conftest import noise
from harness.audio import clip, encoded


def spoken(
    clip: Clip,
    nonce: bytes = NO_DITHER,
    silence_s: float = 0.0,
    rates: tuple[int, ...] = (16000,),
    resampled: Resampled | None = None,
) -> Speech:
    options = RealtimeOptions("vllm", 0.1, 1.0, silence_s, server_vad=False, utterances=1, model="", language="")
    return speech_of(RealtimeRequest(options, clip, nonce), rates, resampled or Resampled())


def samples(clip: Clip, nonce: bytes = NO_DITHER) -> bytes:
    return base64.b64decode(b"".join(map(bytes, dithered(clip.audio_b64, nonce, clip.dither_at))))[44:]


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
    one, kept = clip(), Resampled()
    spoken_twice = (spoken(one, new_dither(), rates=(24000,), resampled=kept) for _ in "ab")
    first, second = (b"".join(pcm for pcm, _ in each.packets(0.1)) for each in spoken_twice)
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
    clips, resampled = [replace(clip(), sha256=str(number)) for number in range(4)], Resampled()
    for each in [*clips, clips[2]]:
        spoken(each, rates=(24000,), resampled=resampled)
    assert list(resampled.kept) == [("3", 24000), ("2", 24000)]


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
