"""The embedded speech recognizer (Moonshine) on real speech."""

import http.client
import io
import json
from collections.abc import Iterator
from typing import Any

import jiwer
import numpy as np
import pytest
import requests
import soundfile
from whisper_normalizer.english import EnglishTextNormalizer

from asr_server.audio import RATE, cut_at_pauses
from harness.audio import FORMATS, sample_in, sample_text
from harness.patience import PATIENCE_S
from harness.serving import chat_body, connect, events, gauges, post, serve, text_of, wait_until

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve("--threads", "1") as address:
        yield address


def wer(text: str, truth: str) -> float:
    normal = EnglishTextNormalizer()
    return float(jiwer.wer(normal(truth), normal(text)))


def wav(samples: Any, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def transcript(url: str, audio: bytes, **fields: Any) -> tuple[str, dict[str, Any]]:
    status, _, body = post(url, chat_body(audio, **fields))
    assert status == 200, body
    assert body.endswith(b"data: [DONE]\n\n")
    return text_of(body), events(body)[-2]["usage"]


def test_text_arrives_token_by_token_and_is_correct(url: str) -> None:
    name = "rms-09"
    _, _, body = post(url, chat_body(sample_in(name)))
    chunks = [event["choices"][0]["delta"]["content"] for event in events(body)[1:-3]]
    usage = events(body)[-2]["usage"]
    assert wer("".join(chunks), sample_text(name)) < 0.15
    assert not chunks[0].startswith(" ")
    assert len(chunks) <= usage["completion_tokens"] <= len(chunks) + 3
    assert usage["prompt_tokens"] == pytest.approx(4.23 * RATE / 384, abs=3)  # encoder frames of 24 ms
    assert events(body)[-3]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("kind", FORMATS)
def test_each_audio_format_is_transcribed(url: str, kind: str) -> None:
    text, _ = transcript(url, sample_in("rms-09", kind))
    assert "clear skies" in text.lower()


def test_long_audio_is_cut_at_pauses_and_joined(url: str) -> None:
    name = "rms-15"
    text, usage = transcript(url, sample_in(name))
    assert wer(text, sample_text(name)) < 0.25
    assert "  " not in text
    assert usage["prompt_tokens"] == pytest.approx(38.6 * RATE / 384, rel=0.05)


def test_cuts_are_in_pauses() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 60 * RATE).astype(np.float32)
    pauses = (20.0, 38.0, 50.0)
    for at in pauses:
        samples[int(at * RATE) : int((at + 0.4) * RATE)] *= 0.001
    pieces = list(cut_at_pauses(samples, 25 * RATE))
    assert np.array_equal(np.concatenate(pieces), samples)
    assert all(len(piece) < 25 * RATE for piece in pieces)
    cuts = np.cumsum([len(piece) for piece in pieces])[:-1] / RATE
    assert all(any(at <= cut <= at + 0.4 for at in pauses) for cut in cuts)


@pytest.mark.parametrize("seconds", [0.0, 1.0, 30.0])
def test_silence_has_no_text(url: str, seconds: float) -> None:
    text, usage = transcript(url, wav(np.zeros(int(seconds * RATE))))
    assert (text, usage["completion_tokens"]) == ("", 0)


@pytest.mark.parametrize("samples", [1, 100, 1500])
def test_very_short_audio_gets_a_response(url: str, samples: int) -> None:
    transcript(url, wav(np.full(samples, 0.1)))


def test_max_tokens_ends_the_text_with_length(url: str) -> None:
    audio = sample_in("rms-09")
    _, _, body = post(url, chat_body(audio, max_completion_tokens=5))
    assert events(body)[-2]["usage"]["completion_tokens"] == 5
    assert events(body)[-3]["choices"][0]["finish_reason"] == "length"


def test_undecodable_audio_gives_sglangs_400(url: str) -> None:
    for audio in (b"\0\0\0", b"RIFF" + b"x" * 5000):
        status, _, body = post(url, chat_body(audio))
        error = json.loads(body)
        assert (status, error["object"], error["code"]) == (400, "error", 400)
        assert error["message"].startswith(
            "An exception occurred while loading AUDIO data at index 0: Error while loading"
        )
    part = {"type": "input_audio", "input_audio": {"data": "not base64!"}}
    assert post(url, chat_body(messages=[{"role": "user", "content": [part]}]))[0] == 400


def test_transcriptions_api(url: str) -> None:
    audio = sample_in("slt-14")
    answer = requests.post(url + "/v1/audio/transcriptions", files={"file": audio}, timeout=PATIENCE_S).json()
    assert wer(answer["text"], sample_text("slt-14")) < 0.3
    assert answer["usage"] == {"type": "duration", "seconds": 3}


def test_faults_apply_to_the_recognizer(url: str) -> None:
    headers = {"X-Fault": "early-end"}
    with pytest.raises(http.client.IncompleteRead):
        post(url, chat_body(sample_in("rms-09")), headers)


def test_disconnected_client_frees_its_slot(url: str) -> None:
    long, short = sample_in("rms-15"), sample_in("slt-14")
    for _ in range(4):
        connection = connect(url)
        connection.request("POST", "/v1/chat/completions", json.dumps(chat_body(long)))
        assert connection.getresponse().read(20)
        connection.close()
    assert transcript(url, short)[0]
    wait_until(lambda: gauges(url) == (0, 0), "no slot is taken, and nobody waits for one")


def test_vocabulary_lengths_of_one_and_two_bytes() -> None:
    from asr_server.moonshine import read_vocabulary  # late: make setup does not install ONNX Runtime

    long = "▁".encode() * 50
    data = b"\x01a" + bytes([len(long) % 128 + 128, len(long) // 128]) + long
    assert read_vocabulary(data) == [b"a", b" " * 50]
