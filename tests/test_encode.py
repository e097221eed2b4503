"""Clips encoded in the formats that people upload."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_load.apis import APIS
from asr_load.apis.api import RequestFields
from asr_load.audio.clip import AUDIO_FORMATS
from asr_load.audio.dither import NO_DITHER
from asr_load.audio.encode import encode
from asr_load.audio.shard import Shards
from conftest import CHECKOUT
from harness.runs import run
from harness.serving import serve

SAMPLE = CHECKOUT / "asr_data" / "sample"


def tone(seconds: float = 1.0, rate: int = 16000) -> np.ndarray:
    at = np.arange(int(seconds * rate)) / rate
    return (8000 * np.sin(2 * np.pi * 440 * at)).astype("<i2")


@pytest.mark.parametrize("kind", ["flac", "mp3", "opus"])
def test_encoded_audio_decodes_to_the_same_tone(kind: str) -> None:
    samples, rate = soundfile.read(io.BytesIO(encode(tone(), 16000, kind)), dtype="float32")
    assert rate == 16000
    assert len(samples) == pytest.approx(16000, abs=3000)  # MP3 adds some silence
    middle = samples[4000:12000]
    assert np.sqrt((middle**2).mean()) == pytest.approx(8000 / 32768 / np.sqrt(2), rel=0.05)
    assert np.argmax(np.abs(np.fft.rfft(middle))) == pytest.approx(440 * len(middle) / 16000, abs=1)


@pytest.mark.parametrize("kind", ["flac", "mp3", "opus"])
def test_encoding_is_deterministic(kind: str) -> None:
    first = encode(tone(), 16000, kind)
    time.sleep(1.1)  # libsndfile derives serial numbers from the clock
    assert encode(tone(), 16000, kind) == first


def prepared(folder: Path, kind: str, *words: str) -> Path:
    rows = []
    folder.mkdir()
    for number in range(3):
        clip = Shards(SAMPLE)[number]
        (folder / f"{clip.id}.wav").write_bytes(base64.b64decode(bytes(clip.audio_b64)))
        rows.append(json.dumps({"file": f"{clip.id}.wav", "text": clip.text}))
    (folder / "manifest.jsonl").write_text("\n".join(rows))
    out = folder / "out"
    command = [sys.executable, "scripts/prepare.py", "--dataset", str(folder), "--out", str(out), *words]
    done = subprocess.run([*command, "--audio-format", kind], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("kind", AUDIO_FORMATS)
def test_requests_name_the_audio_format(kind: str, tmp_path: Path) -> None:
    shards = Shards(prepared(tmp_path / "set", kind))
    assert shards.audio_format == kind
    clip = shards[0]

    def body(api: str) -> bytes:
        return b"".join(APIS[api](RequestFields("m", "p", 9), shards.audio_format).body(clip, NO_DITHER))

    audio = base64.b64decode(bytes(clip.audio_b64))
    assert audio[:4] == {"wav": b"RIFF", "flac": b"fLaC", "opus": b"OggS"}.get(kind, audio[:4])
    url = json.loads(body("chat"))["messages"][0]["content"][0]["audio_url"]["url"]
    assert url == f"data:{AUDIO_FORMATS[kind]};base64,{bytes(clip.audio_b64).decode()}"
    if kind in ("wav", "mp3"):
        inline = json.loads(body("chat-input-audio"))["messages"][0]["content"][0]["input_audio"]
        assert inline == {"data": bytes(clip.audio_b64).decode(), "format": kind}
    form = body("transcriptions")
    assert f'filename="clip.{kind}"\r\nContent-Type: {AUDIO_FORMATS[kind]}\r\n\r\n'.encode() + audio in form


@pytest.mark.long
@pytest.mark.parametrize("kind", ["flac", "mp3", "opus"])
def test_each_format_has_a_low_wer_end_to_end(kind: str, tmp_path: Path) -> None:
    clips = prepared(tmp_path / "set", kind)
    with serve() as host:
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "3", "--unique", "none")
    assert done.code == 0, done.err
    assert done.summary["wer"] < 0.25


def test_dither_requires_wav(tmp_path: Path) -> None:
    clips = prepared(tmp_path / "set", "flac")
    done = run("http://127.0.0.1:9", clips, tmp_path / "r", "-u", "1", "--requests", "3")
    assert done.code == 2
    assert "is flac, but --unique dither needs WAV: prepare it as WAV, or add --unique none" in done.err


def test_unsupported_format_is_refused_before_users_start(tmp_path: Path) -> None:
    clips = prepared(tmp_path / "set", "opus")
    for api, said in (
        ("chat-input-audio", "supports only wav and mp3, but --data has opus"),
        ("realtime", "--api realtime supports only wav, but --data has opus"),
    ):
        done = run("http://127.0.0.1:9", clips, tmp_path / api, "-u", "1", "--api", api, "--unique", "none")
        assert done.code == 2
        assert said in done.err
        assert "trial request" not in done.err


def test_opus_allows_only_its_sample_rates(tmp_path: Path) -> None:
    words = ("--dataset", str(SAMPLE), "--out", str(tmp_path / "o"), "--audio-format", "opus", "--sample-rate")
    for rate in ("44100", "keep"):
        command = [sys.executable, "scripts/prepare.py", *words, rate]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "--audio-format opus supports only 8000, 12000, 16000, 24000, 48000 Hz" in done.stderr
