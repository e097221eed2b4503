"""Request bodies: valid JSON spliced from bytes, and dither that changes the bytes but not the speech."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from email.parser import BytesParser
from typing import Any

import numpy as np
import pytest

from asr_load.audio.clip import Clip, Recording, Rules
from asr_load.audio.convert import convert, dither_places
from asr_load.audio.payload import NO_DITHER, BodyOptions, dithered, make_builder, new_dither
from asr_load.errors import InputError
from conftest import CHECKOUT, noise
from harness.audio import encoded


def clip(seconds: float = 0.5) -> Clip:
    return next(
        convert(Recording("a", "", encoded((noise(seconds) * 32768).astype(np.int16), subtype="PCM_16")), Rules())
    )


def wav(audio_b64: bytes | memoryview) -> bytes:
    return base64.b64decode(bytes(audio_b64), validate=True)


def body(api: str, nonce: bytes = NO_DITHER, **extra: Any) -> dict[str, Any]:
    build, content_type = make_builder(BodyOptions(api, "my/model", 'Say "what" you hear: ü', 64, extra))
    assert content_type == "application/json"
    decoded: dict[str, Any] = json.loads(b"".join(build(clip(), nonce)))
    return decoded


def test_chat_body() -> None:
    assert body("chat") == {
        "model": "my/model",
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "audio_url",
                        "audio_url": {"url": "data:audio/wav;base64," + bytes(clip().audio_b64).decode()},
                    },
                    {"type": "text", "text": 'Say "what" you hear: ü'},
                ],
            }
        ],
        "max_tokens": 64,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_chat_body_with_input_audio() -> None:
    audio = body("chat-input-audio")["messages"][0]["content"][0]
    assert audio == {
        "type": "input_audio",
        "input_audio": {"data": bytes(clip().audio_b64).decode(), "format": "wav"},
    }


def test_extra_fields_are_merged_but_cannot_replace_the_audio() -> None:
    assert body("chat", temperature=0.5, top_p=0.9)["temperature"] == 0.5
    for api, field in (("chat", "messages"), ("chat", "stream"), ("transcriptions", "file")):
        with pytest.raises(InputError, match=f"cannot set '{field}'"):
            make_builder(BodyOptions(api, "m", "p", 1, {field: 1}))


def test_omitted_fields_are_not_sent() -> None:
    made = body("chat", stream_options=None, max_tokens=None)
    assert {"stream_options", "max_tokens"}.isdisjoint(made)
    assert {"messages", "stream", "model"} <= made.keys()
    plain = b"".join(
        make_builder(BodyOptions("transcriptions", "m", "p", 1, {"stream_include_usage": None}))[0](clip(), NO_DITHER)
    )
    assert b"stream_include_usage" not in plain
    assert b'name="stream"' in plain
    with pytest.raises(InputError, match="'stream' cannot be removed: the measurement needs it"):
        make_builder(BodyOptions("chat", "m", "p", 1, {"stream": None}))
    with pytest.raises(InputError, match="'top_k' cannot be removed, because this --api does not send it; "):
        make_builder(BodyOptions("chat", "m", "p", 1, {"top_k": None}))


@pytest.mark.parametrize("kind", ["flac", "opus"])
def test_input_audio_takes_only_wav_and_mp3(kind: str) -> None:
    options = BodyOptions("chat-input-audio", "m", "p", 1)
    with pytest.raises(InputError, match=f"--api chat-input-audio supports only wav and mp3, but --data has {kind}"):
        make_builder(options, kind)
    assert [make_builder(options, known)[1] for known in ("wav", "mp3")] == ["application/json"] * 2


def test_transcription_body() -> None:
    build, content_type = make_builder(BodyOptions("transcriptions", "m", "a prompt", 64, {"language": "en"}))
    message = BytesParser().parsebytes(
        f"Content-Type: {content_type}\r\n\r\n".encode() + b"".join(build(clip(), NO_DITHER))
    )
    parts = {str(part.get_param("name", header="content-disposition")): part for part in message.get_payload()}  # type: ignore[union-attr]
    texts = {name: part.get_payload(decode=True) for name, part in parts.items()}  # type: ignore[union-attr]
    assert texts.pop("file") == wav(clip().audio_b64)
    assert texts == {
        "model": b"m",
        "prompt": b"a prompt",
        "temperature": b"0",
        "max_completion_tokens": b"64",
        "stream": b"true",
        "stream_include_usage": b"true",
        "language": b"en",
    }


def content_of(**options: Any) -> list[dict[str, Any]]:
    build, _ = make_builder(BodyOptions("chat", "m", max_tokens=9, **options))
    messages: list[dict[str, Any]] = json.loads(b"".join(build(clip(), NO_DITHER)))["messages"]
    return messages


def test_prompt_position_in_a_chat() -> None:
    for first, types in ((False, ["audio_url", "text"]), (True, ["text", "audio_url"])):
        (message,) = content_of(prompt="what?", prompt_first=first)
        assert [part["type"] for part in message["content"]] == types
    (message,) = content_of(prompt="")
    assert [part["type"] for part in message["content"]] == ["audio_url"]


def test_system_message_comes_first() -> None:
    first, second = content_of(prompt="what?", system="Be brief.")
    assert first == {"role": "system", "content": "Be brief."}
    assert second["role"] == "user"


def test_temperature_is_sent() -> None:
    for api in ("chat", "chat-input-audio", "transcriptions"):
        built = b"".join(make_builder(BodyOptions(api, "m", "p", 1, temperature=0.2))[0](clip(), NO_DITHER))
        assert (b'"temperature":0.2' in built) or (b'name="temperature"\r\n\r\n0.2\r\n' in built)


def test_n_other_than_1_is_refused() -> None:
    assert body("chat", n=1)["n"] == 1
    with pytest.raises(InputError, match="a request must have exactly one response"):
        make_builder(BodyOptions("chat", "m", "p", 1, {"n": 2}))


@pytest.mark.parametrize(
    ("api", "extra", "limit"),
    [
        ("chat", {}, 64),
        ("chat-input-audio", {"max_tokens": 9}, 9),
        ("chat", {"max_tokens": None}, None),
        ("chat", {"max_tokens": None, "max_completion_tokens": 7}, 7),
        ("transcriptions", {}, 64),
        ("transcriptions", {"max_completion_tokens": None}, None),
        ("transcriptions", {"max_tokens": 5}, 64),
    ],
)
def test_token_limit_of_a_request(api: str, extra: dict[str, Any], limit: int | None) -> None:
    assert BodyOptions(api, "m", "p", 64, extra).token_limit == limit


def test_every_api_has_a_builder() -> None:
    for api in ("chat", "chat-input-audio", "transcriptions"):
        assert make_builder(BodyOptions(api, "m", "p", 1, {}))[0](clip(), new_dither())


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
    for clip in [clip for name in SPOKEN for clip in spoken(name, chunk_long=chunk_long)]:
        one, other = (heard(clip, new_dither()) for _ in "ab")
        for first in range(0, len(one) - 32000 + 1, 4000):
            pieces = [log_mel(pcm[first : first + 32000]).tobytes() for pcm in (one, other)]
            assert pieces[0] != pieces[1], f"{clip.id} at {first / 16000} s"
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


@pytest.mark.parametrize("at", [2, 3002, 7934])  # of 8,000 samples
def test_chat_body_copies_only_the_audio_it_dithers(at: int) -> None:
    """A request in flight holds a view of the data, not a copy of a megabyte, wherever the dither is."""
    long = replace(clip(), dither_at=[at])
    pieces = make_builder(BodyOptions("chat", "m", "p", 1, {}))[0](long, new_dither())
    views = [piece for piece in pieces if isinstance(piece, memoryview)]
    assert all(view.obj is memoryview(long.audio_b64).obj for view in views)
    assert sum(map(len, views)) >= len(long.audio_b64) - 1000
