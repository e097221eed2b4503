"""Bytes that a server may have seen: in the trial request, and in earlier runs with the same data set."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_load.audio.clip import AUDIO_FORMATS, Rules
from asr_load.audio.encode import QUIETER, re_encoded
from asr_load.audio.open import open_source
from asr_load.audio.prepare import prepare
from asr_load.audio.prepared import FORMAT, Options
from asr_load.audio.shard import Shards
from asr_load.audio.source import DatasetSpec
from asr_load.load import preflight
from asr_load.results.earlier import earlier_runs
from asr_load.results.runfile import UserClassInfo, write_run
from asr_load.results.summary import summarise
from conftest import write_folder
from harness.models import STREAM, AnsweringServer, answering
from harness.records import record, run_info
from harness.runs import FAST, run
from harness.serving import serve


def prepared(folder: Path, kind: str) -> Path:
    source = open_source(DatasetSpec(str(write_folder(folder / "set", {"a": 0.5, "b": 0.6}))))
    prepare(source, Options(Rules(audio_format=kind), 0, "en"), folder / "out")
    return folder / "out"


@pytest.mark.parametrize("kind", AUDIO_FORMATS)
def test_trial_request_sends_bytes_that_the_test_does_not(kind: str, tmp_path: Path) -> None:
    clips = prepared(tmp_path, kind)
    with answering((200, STREAM)) as host:
        done = run(host, clips, tmp_path / "r", "-u", "1", "--requests", "2", "--unique", "none", preflight=True)
    assert done.code == 0, done.err
    trial, *sent = [body["messages"][0]["content"][0]["audio_url"]["url"] for body in AnsweringServer.asked]
    assert len(set(sent)) == 2
    assert trial not in sent
    samples = [soundfile.read(io.BytesIO(base64.b64decode(url.partition(",")[2])))[0] for url in (trial, sent[0])]
    assert trial.startswith(f"data:{AUDIO_FORMATS[kind]};base64,")
    assert not np.array_equal(*samples)
    size = min(map(len, samples))
    assert np.corrcoef(samples[0][:size], samples[1][:size])[0, 1] > 0.8  # the same recording with noise, encoded twice


@pytest.mark.parametrize("kind", ["flac", "mp3", "opus"])
@pytest.mark.parametrize("quieter", QUIETER)
def test_trial_audio_differs_from_its_clip_throughout(
    kind: str, quieter: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that splits audio then has no piece of the clip in its cache."""
    monkeypatch.setattr("random.uniform", lambda *_: quieter)
    clip = Shards(prepared(tmp_path, kind))[0]
    sent, trial = (
        soundfile.read(io.BytesIO(base64.b64decode(bytes(each.audio_b64))), dtype="int16")[0]
        for each in (clip, re_encoded(clip, kind))
    )
    size = min(map(len, (sent, trial)))
    assert all((sent[at : at + 1600] != trial[at : at + 1600]).any() for at in range(0, size - 1600, 1600))


@pytest.mark.parametrize(
    ("format", "unique", "warns"), [(2, "dither", True), (2, "none", False), (FORMAT, "once", False)]
)
def test_data_of_an_earlier_format_are_reported(
    format: int, unique: str, warns: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Shards(prepared(tmp_path, "wav"))
    shards.manifest.format = format
    preflight._warn_of_old_data(SimpleNamespace(shards=shards, settings=SimpleNamespace(unique=unique)))  # type: ignore[arg-type]
    assert ("was prepared by an earlier version" in capsys.readouterr().err) is warns


def write(folder: Path, records: bytes = b"{}\n", **changes: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_bytes(records)
    write_run(folder, run_info(**{"unique": "none", "data_sha256": "d", "host": "http://a:1"} | changes))


def test_earlier_runs_with_the_same_bytes_and_server_are_found(tmp_path: Path) -> None:
    write(tmp_path / "same")
    write(tmp_path / "killed", ended=False, began_at=1500.0)
    write(tmp_path / "dithered", unique="dither")
    write(tmp_path / "once", unique="once")
    write(tmp_path / "other-host", host="http://b:1")
    write(tmp_path / "other-data", data_sha256="e")
    write(tmp_path / "nothing-sent", b"")
    own = {"endpoint": "/x", "api": "chat", "model": "m", "prompt": "", "max_tokens": 1, "data": "d", "data_clips": 1}
    classes = [
        UserClassInfo(name="a", unique="dither", data_sha256="e", **own),
        UserClassInfo(name="b", unique="none", data_sha256="d", **own),
    ]
    write(tmp_path / "classes", unique="dither", data_sha256="e", user_classes=classes)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    places = (tmp_path, tmp_path / "nowhere", tmp_path)
    assert earlier_runs(places, "http://a:1", {"d"}) == ["classes", "same", "killed"]  # in the order of their start
    assert earlier_runs(places, "http://a:1", set()) == []


def test_verdict_names_earlier_runs_with_the_same_bytes() -> None:
    said = "the same clips were sent to this server before, in an earlier test (one): its caches may have answered"
    validity = summarise([record()], run_info(sent_before=["one"], unique="none")).validity
    assert validity.verdict == "suspect"
    assert said in validity.reasons[0]
    reasons = summarise([record()], run_info(sent_before=["one", "two"], unique="none")).validity.reasons
    assert "in 2 earlier tests (the last: two)" in reasons[0]
    assert summarise([record()], run_info()).validity.verdict == "valid"


def test_repeated_bytes_are_counted_per_user_class_and_data_set() -> None:
    own = {"endpoint": "/x", "api": "chat", "model": "m", "prompt": "", "max_tokens": 1, "data": "d", "data_clips": 1}
    classes = [
        UserClassInfo(name=name, unique=unique, data_sha256=name, **own)
        for name, unique in (("first", "dither"), ("second", "none"))
    ]
    records = [record(n, clip="a", user_class="first" if n < 3 else "second") for n in range(5)]
    said = "1 request repeated a clip's bytes (--unique none): caches may have answered"
    assert said in summarise(records, run_info(unique="dither", user_classes=classes)).validity.reasons
    assert summarise(records[:3], run_info(unique="dither", user_classes=classes)).validity.verdict == "valid"
    # Two classes that send the same data set count together.
    for each in classes:
        each.unique, each.data_sha256 = "none", "d"
    assert summarise([records[0], records[4]], run_info(user_classes=classes)).validity.reasons == [said]


def test_second_run_with_the_same_bytes_is_suspect(tmp_path: Path) -> None:
    clips = prepared(tmp_path, "flac")
    words = ("-u", "1", "--requests", "2", "--unique", "none")
    with serve(*FAST) as host:
        first, second = (run(host, clips, tmp_path / name, *words) for name in ("r1", "r2"))
    said = "the same clips were sent to this server before, in an earlier test (r1)"
    assert said not in " ".join(first.summary["validity"]["reasons"])
    assert said in " ".join(second.summary["validity"]["reasons"])
    assert said in second.out
