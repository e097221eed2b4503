"""Data sets of a hub, whose API a local server implements."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from asr_load.audio.shard import Shards
from conftest import CHECKOUT, noise
from harness.audio import write_tar
from harness.hub import COMMITS, Hub, hub


def flac(seed: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(1.0, seed=seed), 16000, format="FLAC")
    return file.getvalue()


def write(file: Path, count: int, **columns: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    audio = [{"bytes": flac(number), "path": f"c{number}.flac"} for number in range(count)]
    texts = [f"text {number}" for number in range(count)]
    pq.write_table(pa.table({"audio": audio, "text": texts, **columns}), file)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    write(root / "owner/plain/main/data/test-00000-of-00001.parquet", 4)
    write(root / "owner/plain/v2/data/test-00000-of-00001.parquet", 2)
    scripted = root / "owner/scripted"
    write(scripted / "refs=convert=parquet/clean/test/0000.parquet", 3)
    write(scripted / "refs=convert=parquet/clean/train/0000.parquet", 5)
    write(scripted / "refs=convert=parquet/other/partial-test/0000.parquet", 2)
    (scripted / "main").mkdir()
    (scripted / "main/scripted.py").write_text("import datasets")
    (root / "owner/script-alone/main").mkdir(parents=True)
    (root / "owner/script-alone/main/script-alone.py").write_text("import datasets")
    paths = root / "owner/paths/main"
    (paths / "calls").mkdir(parents=True)
    (paths / "calls/one.flac").write_bytes(flac(1))
    rows = {"audio": ["calls/one.flac", "calls/none.flac", "../../secret.flac"], "text": ["one", "none", "secret"]}
    (paths / "data").mkdir()
    pq.write_table(pa.table(rows), paths / "data/test-00000-of-00001.parquet")
    tagged = root / "owner/tagged/main/data/test-00000-of-00001.parquet"
    write(tagged, 3, text=["so <COMMA> it is", "ignore_time_segment_in_scoring", "Ignore time segment in scoring"])
    for shard in (0, 1):
        members: dict[str, bytes | str] = {}
        for clip in (10 * shard, 10 * shard + 1):
            members |= {f"c{clip}.flac": flac(clip), f"c{clip}.json": json.dumps({"text": f"text {clip}"})}
        write_tar(root / f"owner/tars/main/data/train-{shard}.tar", members)
    with hub(root) as serving:
        yield serving


def prepare(hub: Hub, out: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/prepare.py", "--out", str(out), "--dataset", *words]
    env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(out.parent / "hf"), **env}
    return subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)


def manifest(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return found


@pytest.mark.long
def test_revision_of_a_data_set_is_used_and_recorded(there: Hub, tmp_path: Path) -> None:
    for revision, clips in ((None, 4), ("v2", 2), (COMMITS["v2"], 2)):
        out = tmp_path / f"out-{clips}-{revision}"
        done = prepare(there, out, "owner/plain", "--split", "test", *(["--revision", revision] if revision else []))
        assert done.returncode == 0, done.stderr
        assert manifest(out)["clips"] == clips
        source = manifest(out)["source"]
        assert (source["revision"], source["commit"]) == (revision, COMMITS["main" if revision is None else "v2"])
    done = prepare(there, tmp_path / "none", "owner/plain", "--split", "test", "--revision", "v3")
    assert (done.returncode, "error: --dataset owner/plain has no revision 'v3'" in done.stderr) == (2, True)
    done = prepare(there, tmp_path / "here", str(tmp_path), "--revision", "v3")
    assert done.returncode == 2


@pytest.mark.long
def test_loading_script_falls_back_to_the_hubs_parquet(there: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = prepare(there, out, "owner/scripted", "--split", "test")
    assert done.returncode == 0, done.stderr
    assert "note: owner/scripted has a loading script; using the hub's refs/convert/parquet" in done.stderr
    source = manifest(out)["source"]
    assert (manifest(out)["clips"], source["subset"], source["split"]) == (3, "clean", "test")
    assert (source["revision"], source["commit"]) == (None, COMMITS["refs/convert/parquet"])
    again = prepare(there, out, "owner/scripted", "--split", "test")
    assert again.returncode == 0
    asked = len(there.asked)
    other = prepare(there, tmp_path / "other", "owner/scripted", "--subset", "other", "--split", "test")
    assert "note: refs/convert/parquet contains only the first 5 GB of the data set" in other.stderr
    assert manifest(tmp_path / "other")["clips"] == 2
    assert len(there.asked) > asked
    wrong = prepare(there, tmp_path / "wrong", "owner/scripted", "--subset", "third")
    assert "error: owner/scripted has no subset 'third'; it has: clean, other" in wrong.stderr
    none = prepare(there, tmp_path / "alone", "owner/script-alone", "--split", "test")
    assert none.returncode == 2
    assert "owner/script-alone has a loading script, which `datasets` does not run" in none.stderr


@pytest.mark.long
def test_files_in_the_data_sets_repository_are_fetched(there: Hub, tmp_path: Path) -> None:
    done = prepare(there, tmp_path / "out", "owner/paths", "--split", "test", "--limit", "1")
    assert done.returncode == 0, done.stderr
    done = prepare(there, tmp_path / "outside", "owner/paths", "--split", "test")
    assert done.returncode == 2
    assert "is outside of" in done.stderr


ALL = ("revision", "tree", "paths-info", "resolve")


@pytest.mark.parametrize(
    ("name", "refuses"),
    [
        ("owner/plain", (401, "GatedRepo", ("resolve",))),
        ("owner/plain", (403, "GatedRepo", ("resolve",))),
        ("owner/plain", (403, "", ALL)),
        ("owner/tars", (403, "", ("resolve",))),
    ],
)
def test_refused_access_names_hf_token(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, refuses: tuple[int, str, tuple[str, ...]]
) -> None:
    """The error text does not matter."""
    monkeypatch.setitem(there.refuses, name, refuses)
    done = prepare(there, tmp_path / "out", name)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "set HF_TOKEN to a token with access" in line
    assert "Traceback" not in done.stderr


def test_refused_file_of_a_row_is_not_reported_as_missing(there: Hub, tmp_path: Path) -> None:
    there.refuses_files.add("calls/one.flac")
    done = prepare(there, tmp_path / "out", "owner/paths", "--split", "test", "--limit", "1")
    there.refuses_files.clear()
    assert done.returncode == 2
    assert "cannot be downloaded: access refused: set HF_TOKEN" in done.stderr


@pytest.mark.long
def test_tar_shards_of_a_hub_are_read(there: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = prepare(there, out, "owner/tars", "--split", "train")
    assert done.returncode == 0, done.stderr
    assert (manifest(out)["clips"], manifest(out)["clips_with_text"]) == (4, 4)
    shards = Shards(out)
    assert [shards[number].id for number in range(4)] == ["c0", "c1", "c10", "c11"]


@pytest.mark.long
def test_failed_hub_requests_are_retried(there: Hub, tmp_path: Path) -> None:
    there.fails = 2
    done = prepare(there, tmp_path / "out", "owner/plain", "--split", "test")
    assert done.returncode == 0, done.stderr
    assert there.fails == 0


@pytest.mark.long
def test_segments_marked_as_not_scored_are_skipped(there: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = prepare(there, out, "owner/tagged", "--split", "test")
    assert done.returncode == 0, done.stderr
    assert (manifest(out)["clips"], manifest(out)["skipped"]["not_scored"]["count"]) == (1, 2)
    assert "2 not_scored (excluded by their text)" in done.stdout
    assert prepare(there, tmp_path / "plain", "owner/plain", "--split", "test").returncode == 0
    assert "not_scored" not in manifest(tmp_path / "plain")["skipped"]


def test_hub_token_is_not_printed(there: Hub, tmp_path: Path) -> None:
    done = prepare(there, tmp_path / "out", "owner/nobody", "--split", "test", HF_TOKEN="hf_abcdefghijklmnop")
    assert done.returncode == 2
    assert "hf_abcdefghijklmnop" not in done.stderr + done.stdout
