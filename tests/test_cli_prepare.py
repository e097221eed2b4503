"""Prepared folders of shards: deterministic, complete or absent, and resumed after an interruption."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from asr_load.audio import prepare as module
from asr_load.audio import shard
from asr_load.audio.clip import Rules
from asr_load.audio.open import open_source
from asr_load.audio.prepare import prepare
from asr_load.audio.prepared import PARTIAL, Manifest, Options, file_sha256
from asr_load.audio.shard import Shards
from asr_load.audio.source import DatasetSpec
from asr_load.errors import InputError
from asr_load.files import alone_in
from conftest import CHECKOUT, write_folder
from harness.audio import SAMPLE, sample_text
from harness.patience import PATIENCE_S

LENGTHS = {f"clip{number:02d}": 0.1 + number / 100 for number in range(10)}


def run(folder: Path, out: Path, *, limit: int = 0, processes: int = 1, block_rows: int = 3, **rules: Any) -> Manifest:
    options = Options(Rules(**rules), limit, "en")
    return prepare(open_source(DatasetSpec(str(folder))), options, out, processes, block_rows)


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir()}


def ids(out: Path) -> list[str]:
    shards = Shards(out)
    return [shards[number].id for number in range(len(shards))]


def test_clips_are_read_back_unchanged(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", LENGTHS)
    manifest = run(folder, tmp_path / "out")
    shards = Shards(tmp_path / "out")
    assert len(shards) == manifest.clips == manifest.clips_with_text == 10
    assert [shard.rows for shard in manifest.shards] == [3, 3, 3, 1]
    assert manifest.audio_s == pytest.approx(sum(LENGTHS.values()), abs=1e-3)
    for number, name in enumerate(LENGTHS):
        clip = shards[number]
        assert (clip.id, clip.text) == (name, f"text of {name}")
        assert base64.b64decode(bytes(clip.audio_b64)) == (folder / f"{name}.wav").read_bytes()
    with pytest.raises(IndexError):
        shards[10]


def test_prepare_is_deterministic_with_any_number_of_processes(tmp_path: Path) -> None:
    lengths = LENGTHS | {"long": 3.0}
    for place, processes in (("one", 1), ("two", 2)):
        folder = write_folder(tmp_path / place / "set", lengths)
        run(folder, tmp_path / place / "out", limit=9, processes=processes, max_duration=2.0)
    assert contents(tmp_path / "one" / "out") == contents(tmp_path / "two" / "out")


def test_limit_counts_kept_clips_and_reads_no_further(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"a": 0.1, "long1": 3, "b": 0.1, "long2": 3, "c": 0.1, "d": 0.1, "e": 0.1})
    manifest = run(folder, tmp_path / "out", limit=4, max_duration=2.0)
    assert ids(tmp_path / "out") == ["a", "b", "c", "d"]
    assert manifest.skipped["too_long"].ids == ["long1", "long2"]


def test_every_skipped_clip_is_listed_under_its_reason(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"good": 0.5, "long": 3.0, "short": 0.05})
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    (folder / "broken.wav").write_bytes(b"RIFF....")
    (folder / "empty.wav").touch()
    with (folder / "manifest.jsonl").open("a") as manifest_file:
        for name in ("silent", "broken", "empty", "missing"):
            manifest_file.write(json.dumps({"file": f"{name}.wav"}) + "\n")
    run(folder, tmp_path / "out", max_duration=2.0, min_duration=0.2)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["clips"] == 1
    assert {reason: entry["ids"] for reason, entry in manifest["skipped"].items()} == {
        "too_long": ["long"],
        "too_short": ["short"],
        "silent": ["silent"],
        "empty": ["empty"],
        "undecodable": ["broken"],
        "no_audio": ["missing"],
    }
    assert all(entry["count"] == 1 for entry in manifest["skipped"].values())


def test_concurrent_prepare_of_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "set", {"a": 3.0}), tmp_path / "out"
    out.mkdir()
    with alone_in(out), pytest.raises(InputError, match=r"another prepare is writing there"):
        run(folder, out)
    assert list(out.iterdir()) == []
    run(folder, out)
    with alone_in(out):  # a complete folder is only read
        run(folder, out)


def test_no_clip_left_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"a": 3.0, "b": 3.0})
    with pytest.raises(InputError, match="no clip is left to send: skipped 2 too_long"):
        run(folder, tmp_path / "out", max_duration=1.0)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_equal_file_names_get_different_ids(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "one", {"x": 0.1})
    write_folder(tmp_path / "set" / "two", {"x": 0.1})
    (tmp_path / "set" / "manifest.jsonl").write_text('{"file": "one/x.wav"}\n{"file": "two/x.wav"}\n')
    run(tmp_path / "set", tmp_path / "out")
    assert ids(tmp_path / "out") == ["x", "x-2"]


def test_interrupted_prepare_is_incomplete_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "set", LENGTHS)
    run(folder, tmp_path / "whole")
    converted: list[list[str]] = []
    original = module.convert_block

    def interrupted(recordings: list[Any], *rest: Any) -> Any:
        converted.append([row.id for row in recordings])
        if len(converted) == 3:
            raise KeyboardInterrupt
        return original(recordings, *rest)

    monkeypatch.setattr(module, "convert_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out")
    with pytest.raises(InputError, match="not a prepared folder"):
        Shards(tmp_path / "out")
    run(folder, tmp_path / "out")
    assert converted[3:] == [["clip06", "clip07", "clip08"], ["clip09"]]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_partial_folder_of_other_options_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "set", LENGTHS)
    (tmp_path / "out" / PARTIAL).mkdir(parents=True)
    (tmp_path / "out" / PARTIAL / "job.json").write_text("{}")
    (tmp_path / "out" / PARTIAL / "block-00000.json").write_text("{}")
    run(folder, tmp_path / "out")
    assert len(Shards(tmp_path / "out")) == 10
    run(folder, tmp_path / "out", limit=2)
    assert ids(tmp_path / "out") == ["clip00", "clip01"]
    assert len(list((tmp_path / "out").glob("*.arrow"))) == 1
    # The same command again has nothing to do.
    monkeypatch.setattr(module, "convert_block", None)
    assert run(folder, tmp_path / "out", limit=2).clips == 2


def test_damaged_folder_is_refused_and_repaired(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", LENGTHS)
    run(folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    shard = next((tmp_path / "out").glob("shard-00001*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        Shards(tmp_path / "out")
    shard.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        Shards(tmp_path / "out")
    run(folder, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_opening_a_folder_reads_no_audio(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"a": 1.0})
    run(folder, tmp_path / "out")
    before = pa.total_allocated_bytes()
    clip = Shards(tmp_path / "out")[0]
    assert len(clip.audio_b64) > 40_000
    # The audio is in the mapped file's pages: Arrow has allocated less than its size.
    assert pa.total_allocated_bytes() - before < 20_000


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, CHECKOUT / "scripts" / "prepare.py", *words], capture_output=True, text=True, check=False
    )


def test_prepare_command_prints_clips_and_skipped(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"a": 0.5, "long": 31})
    done = command("--dataset", folder, "--out", tmp_path / "out", "--sample-rate", "8000")
    assert done.returncode == 0
    assert (
        "1 clip, 0.5 s of audio, 1 shard; skipped 1 too_long (over 30 s; --max-duration, --no-skip-long)" in done.stdout
    )
    assert Shards(tmp_path / "out")[0].sample_rate == 8000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset", "../nowhere"], "there is no such file or folder"),
        (["--dataset", ".", "--limit", "-1"], "-1 is negative"),
        (["--dataset", ".", "--sample-rate", "fast"], "neither 'keep' nor a sample rate"),
        (["--dataset", ".", "--max-duration", "-3"], "not a number of seconds"),
        (["--dataset", ".", "--limit", "many"], "not a whole number"),
    ],
)
def test_invalid_input_of_prepare_gives_one_line_and_exit_code_2(tmp_path: Path, words: list[str], said: str) -> None:
    done = command(*words, "--out", tmp_path / "out")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line


def test_sample_is_prepared_with_the_default_rules(tmp_path: Path) -> None:
    manifest = prepare(open_source(DatasetSpec(str(SAMPLE))), Options(Rules(), 0, "en"), tmp_path / "out")
    lengths = {file.stem: soundfile.info(file).duration for file in SAMPLE.glob("*.flac")}
    assert manifest.skipped["too_long"].ids == [name for name, length in lengths.items() if length > 30] == ["rms-15"]
    assert manifest.clips == len(lengths) - 1
    shards = Shards(tmp_path / "out")
    for number in range(len(shards)):
        clip = shards[number]
        assert clip.duration_s == pytest.approx(lengths[clip.id], abs=0.001)
        assert clip.sample_rate == 16000
        assert clip.text == sample_text(clip.id)


def test_another_data_set_needs_overwrite(tmp_path: Path) -> None:
    """The error names the data set that would be lost. The same data set with other options is replaced."""
    one, two = (write_folder(tmp_path / name, {"a": 0.5}) for name in ("one", "two"))
    out = tmp_path / "out"
    assert command("--dataset", one, "--out", out).returncode == 0
    assert command("--dataset", one, "--out", out, "--sample-rate", "8000").returncode == 0
    done = command("--dataset", two, "--out", out)
    assert done.returncode == 2
    assert done.stderr == f"error: --out {out} holds one, not two: choose another folder, or add --overwrite\n"
    assert Shards(out).manifest.source["dataset"] == "one"
    assert command("--dataset", two, "--out", out, "--overwrite").returncode == 0
    assert Shards(out).manifest.source["dataset"] == "two"


def test_foreign_manifest_is_not_overwritten(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"a": 0.5})
    (folder / "manifest.jsonl").rename(folder / "manifest.json")
    before = (folder / "manifest.json").read_bytes()
    done = command("--dataset", folder, "--out", folder)
    assert done.returncode == 2
    assert "has a manifest.json that prepare did not write" in done.stderr
    assert (folder / "manifest.json").read_bytes() == before


def test_skip_reasons_are_printed_with_their_options(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"a": 0.5, "b": 0.05})
    (folder / "manifest.jsonl").unlink()
    for suffix in ("m4a", "mp4"):
        (folder / f"other.{suffix}").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(500))
    done = command("--dataset", folder, "--out", tmp_path / "out", "--min-duration", "0.1")
    assert done.returncode == 0
    said = "skipped 1 too_short (under 0.1 s; --min-duration), 2 undecodable (convert with ffmpeg)"
    assert done.stdout.splitlines()[-1].endswith(said)
    assert done.stderr == "note: no manifest and no .txt next to the audio: no transcripts, so no WER\n"


def test_long_clips_are_written_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Arrow batch holds less than 2 GB, which sixteen clips of an hour exceed."""
    monkeypatch.setattr(shard, "BATCH_BYTES", 30_000)
    folder = write_folder(tmp_path / "set", {f"clip{n}": 0.2 + 0.7 * (n % 3) for n in range(16)})
    run(folder, tmp_path / "out", block_rows=16)
    file = pa.ipc.open_file(tmp_path / "out" / "shard-00000-of-00001.arrow")
    sizes = [file.get_batch(n).column("audio_b64").nbytes for n in range(file.num_record_batches)]
    assert len(sizes) > 8
    assert max(sizes) < 30_000 + 50_000
    shards = Shards(tmp_path / "out")
    assert [shards[n].id for n in range(16)] == [f"clip{n}" for n in range(16)]
    for n in range(16):
        assert hashlib.sha256(base64.b64decode(shards[n].audio_b64)).hexdigest() == shards[n].sha256


def test_unreachable_hub_is_reported_quickly(tmp_path: Path) -> None:
    """It is retried once, not for half a minute. (The address has no hub.)"""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    words = ["--dataset", "asr_dat/mistyped", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, CHECKOUT / "scripts" / "prepare.py", *words],
        capture_output=True, text=True, check=False, env=environment, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 2
    first, last = done.stderr.splitlines()
    assert first == "no local folder asr_dat/mistyped: looking for it on the Hugging Face hub"
    assert "there is no such local folder, and the Hugging Face hub cannot be reached" in last


def test_limit_within_a_parquet_file_gives_no_warning(tmp_path: Path) -> None:
    """Python must not warn about an unfinished generator."""
    wav = (write_folder(tmp_path / "set", {"a": 0.2}) / "a.wav").read_bytes()
    rows = [{"audio": {"bytes": wav, "path": f"{n}.wav"}, "text": str(n)} for n in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    done = command("--dataset", tmp_path / "rows.parquet", "--out", tmp_path / "out", "--limit", "3")
    assert done.returncode == 0
    assert done.stderr == "note: audio from the column 'audio', text from the column 'text'\n"
    assert len(Shards(tmp_path / "out")) == 3


def test_folder_of_format_2_is_read_and_replaced(tmp_path: Path) -> None:
    """Format 2 has one place for dither per clip, as a number."""
    folder, out = write_folder(tmp_path / "set", {"a": 2.5, "b": 0.5}), tmp_path / "out"
    new = run(folder, out)
    written = {each.name: each.read_bytes() for each in out.iterdir()}
    file = out / new.shards[0].file
    with pa.ipc.open_file(file) as reader:
        batch = reader.get_batch(0)
    places = [each[0] for each in batch.column("dither_at").to_pylist()]
    older = batch.set_column(5, "dither_at", pa.array(places, pa.int32()))
    with pa.ipc.new_file(file, older.schema) as writer:
        writer.write_batch(older)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["format"] = 2
    manifest["shards"][0]["sha256"] = file_sha256(file)
    (out / "manifest.json").write_text(json.dumps(manifest))
    shards = Shards(out)
    assert [clip.dither_at for clip in map(shards.__getitem__, range(len(shards)))] == [[place] for place in places]
    assert not shards.dithered_throughout
    run(folder, out)
    assert {each.name: each.read_bytes() for each in out.iterdir()} == written
    assert [len(Shards(out)[number].dither_at) for number in range(2)] == [3, 1]
    assert Shards(out).dithered_throughout
