"""Dither changes the bytes of a clip and the features of its speech, but not the speech."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import pytest

from asr_load.audio.clip import Clip, Recording, Rules
from asr_load.audio.convert import convert
from asr_load.audio.dither import NO_DITHER, dithered, new_dither
from asr_load.audio.dither_places import dither_places
from conftest import CHECKOUT
from harness.audio import clip, encoded


def wav(audio_b64: bytes | memoryview) -> bytes:
    return base64.b64decode(bytes(audio_b64), validate=True)


def samples(audio: bytes) -> np.ndarray:
    return np.frombuffer(audio[44:], dtype="<i2").astype(int)


def test_dither_flips_the_lowest_bits_given_by_the_nonce() -> None:
    original = clip()
    nonce = bytes([0b1, 0, 0, 0, 0, 0, 0, 0b1000_0000])
    for places in ([2], [5], [3002], [7934], [2, 68, 3002, 7934]):  # of 8000 samples
        changed = wav(b"".join(dithered(original.audio_b64, nonce, places)))
        assert changed[:44] == wav(original.audio_b64)[:44]
        difference = np.abs(samples(changed) - samples(wav(original.audio_b64)))
        assert np.flatnonzero(difference).tolist() == sorted(at + bit for at in places for bit in (0, 63))
        assert difference.max() == 1


@pytest.mark.parametrize("loud", [0, 2, 3, 1000, 7936, 7999])
def test_dither_is_placed_where_the_clip_is_loudest(loud: int) -> None:
    pcm = np.resize(np.array([100, -100], dtype=np.int16), 8000)
    pcm[loud : loud + 64] *= 50
    (found,) = next(convert(Recording("a", "", encoded(pcm, subtype="PCM_16")), Rules())).dither_at
    assert found % 3 == 2
    assert found <= 8000 - 64
    possible = range(2, 8000 - 63, 3)
    best = max(np.sum(pcm[at : at + 64].astype(float) ** 2) for at in possible)
    assert np.sum(pcm[found : found + 64].astype(float) ** 2) == best


def test_each_nonce_gives_different_audio() -> None:
    original = clip()
    assert b"".join(dithered(original.audio_b64, NO_DITHER, [2])) == bytes(original.audio_b64)
    seen = {b"".join(dithered(original.audio_b64, new_dither(), original.dither_at)) for _ in range(200)}
    assert len(seen) == 200
    assert all(len(audio) == len(original.audio_b64) for audio in seen)


@pytest.mark.parametrize("number", [1, 2, 3, 30, 65, 66, 67, 68])
def test_dither_is_truncated_in_a_very_short_clip(number: int) -> None:
    pcm = np.resize(np.array([1000, -1000], dtype=np.int16), number)
    short = Clip("a", "", 0.1, 16000, "", [2], 0.1, base64.b64encode(encoded(pcm, subtype="PCM_16")))
    changed = wav(b"".join(dithered(short.audio_b64, b"\xff" * 8, short.dither_at)))
    difference = np.abs(samples(changed) - pcm)
    expected = [index for index in range(number) if 2 <= index <= 65]
    assert np.flatnonzero(difference).tolist() == expected


def log_mel(pcm: np.ndarray) -> np.ndarray:
    """Whisper's features of 16 kHz audio, which are the key of SGLang's cache: 80 mel bands of 25 ms every 10 ms, in
    float32, clipped at eight decades below the maximum (Radford et al., 2022; its audio.py)."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(pcm / 32768.0, 200, mode="reflect"), 400)[::160]
    power = (np.abs(np.fft.rfft(frames * np.hanning(401)[:-1])) ** 2).astype(np.float32)
    # Slaney's scale: linear up to 1 kHz, then logarithmic.
    knots = np.linspace(0, 15 + 27 * math.log(8) / math.log(6.4), 82)
    hertz = np.where(knots < 15, knots * 200 / 3, 1000 * np.exp((knots - 15) * math.log(6.4) / 27))
    bins = np.linspace(0, 8000, 201)
    low, middle, high = hertz[:-2, None], hertz[1:-1, None], hertz[2:, None]
    bank = np.maximum(0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))) * 2 / (high - low)
    mel = np.log10(np.maximum(power @ bank.T.astype(np.float32), np.float32(1e-10)))
    return np.asarray((np.maximum(mel, mel.max() - 8) + 4) / 4, dtype=np.float32)


SPOKEN = sorted(file.name for file in (CHECKOUT / "asr_data" / "sample").glob("*.flac"))


def spoken(name: str, **rules: Any) -> list[Clip]:
    return list(convert(Recording(name, "", CHECKOUT / "asr_data" / "sample" / name), Rules(None, **rules)))


def heard(clip: Clip, nonce: bytes) -> np.ndarray:
    return samples(wav(b"".join(dithered(clip.audio_b64, nonce, clip.dither_at))))


@pytest.mark.parametrize("name", SPOKEN)
def test_dither_changes_the_features_very_little(name: str) -> None:
    (original,) = spoken(name)
    plain = log_mel(samples(wav(original.audio_b64)))
    features = [log_mel(heard(original, new_dither())) for _ in range(4)]
    assert max(np.abs(each - plain).max() for each in features) < 0.1
    assert len({each.tobytes() for each in (plain, *features)}) == 5


@pytest.mark.parametrize("chunk_long", [None, 7.0])
def test_two_requests_differ_in_the_features_of_any_two_seconds(chunk_long: float | None) -> None:
    """Engines that split audio cache each piece separately, wherever they split."""
    windows = 0
    for spoken_clip in [part for name in SPOKEN for part in spoken(name, chunk_long=chunk_long)]:
        one, other = (heard(spoken_clip, new_dither()) for _ in "ab")
        for first in range(0, len(one) - 32000 + 1, 4000):
            pieces = [log_mel(pcm[first : first + 32000]).tobytes() for pcm in (one, other)]
            assert pieces[0] != pieces[1], f"{spoken_clip.id} at {first / 16000} s"
            windows += 1
    assert windows > 150


def test_each_second_is_dithered_where_it_is_loudest() -> None:
    pcm = np.resize(np.array([100, -100], dtype=np.int16), 16000 * 3 + 63)
    for loud in (7000, 16001, 47935):
        pcm[loud : loud + 64] *= 50
    places = dither_places(pcm, 16000)
    assert [abs(place - loud) <= 1 for place, loud in zip(places, (7000, 16001, 47935), strict=True)] == [True] * 3
    assert dither_places(pcm[:32000], 16000) == places[:2]
    assert dither_places(pcm[:10], 16000) == [2]


def test_dither_places_of_an_hour_neither_overlap_nor_leave_the_base64_grid() -> None:
    at: np.ndarray = np.array(dither_places(np.tile(np.array([3, 1, -4, 1, 5], np.int16), 16000 * 720), 16000))
    assert len(at) == 3600
    assert (at % 3 == 2).all()
    assert (np.diff(at) >= 64).all()
    assert at.max() + 64 <= 16000 * 3600


def test_dither_in_a_quiet_beginning_would_have_no_effect() -> None:
    pcm = np.rint(16000 * np.sin(np.arange(16000) / 5)).astype(np.int16)
    pcm[:4000] = np.arange(4000) % 2
    quiet = next(convert(Recording("a", "", encoded(pcm, subtype="PCM_16")), Rules()))
    plain = log_mel(samples(wav(quiet.audio_b64))).tobytes()

    def features(at: int) -> bytes:
        return log_mel(samples(wav(b"".join(dithered(quiet.audio_b64, b"\xa5" * 8, [at]))))).tobytes()

    (place,) = quiet.dither_at
    assert place > 4000
    assert features(place) != plain
    assert features(2) == plain
