"""Untrusted data sets and prepared folders: they may only refer to their own files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from asr_load.audio import shard
from asr_load.audio.clip import Rules
from asr_load.audio.open import open_source
from asr_load.audio.prepare import prepare
from asr_load.audio.prepared import FORMAT, MANIFEST, Options, file_sha256
from asr_load.audio.shard import SCHEMA, Shards, verify
from asr_load.audio.source import DatasetSpec
from asr_load.errors import InputError
from conftest import write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = write_folder(tmp_path / "set", {f"clip{number}": 0.5 for number in range(40)})
    prepare(open_source(DatasetSpec(str(source))), Options(Rules(), 0, "en"), tmp_path / "prepared")
    return tmp_path / "prepared"


def test_changed_shard_is_refused(folder: Path) -> None:
    (file,) = folder.glob("*.arrow")
    made = Shards(folder)
    verify(folder, made.manifest)
    data = bytearray(file.read_bytes())
    at = data.index(bytes(made[7].audio_b64))
    data[at + 1000] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"has changed since it was prepared; prepare it again"):
        verify(folder, made.manifest)
    file.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        verify(folder, made.manifest)


def test_shard_is_hashed_once_and_again_if_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = file_sha256

    def count(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(shard, "file_sha256", count)
    manifest = Shards(folder).manifest
    read.clear()
    for _ in range(3):
        verify(folder, manifest)
    assert len(read) == 1
    (file,) = folder.glob("*.arrow")
    shutil.copy(file, folder / "copy")
    (folder / "copy").replace(file)
    verify(folder, manifest)
    assert len(read) == 2


@pytest.mark.parametrize(
    "name", ["../shard-00000-of-00001.arrow", "/etc/passwd", "x.arrow", "shard-00000-of-00001.arrow/"]
)
def test_manifest_may_only_name_shards_in_its_folder(folder: Path, name: str) -> None:
    file = folder / MANIFEST
    found = json.loads(file.read_text())
    found["shards"][0]["file"] = name
    file.write_text(json.dumps(found))
    with pytest.raises(InputError, match="which is not a shard"):
        Shards(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": [None]}, "nulls"),
        ({"audio_b64": [None]}, "nulls"),
        ({"duration_s": [float("nan")]}, "no duration"),
        ({"duration_s": [-1.0]}, "no duration"),
        ({"sample_rate": [0]}, "no duration or sample rate"),
        ({"dither_at": [[-1]]}, "dither place is out of bounds"),
        ({"dither_at": [[3]]}, "dither place is out of bounds"),
        ({"dither_at": [[2, 65]]}, "dither place is out of bounds"),
        ({"dither_at": [[302, 2]]}, "dither place is out of bounds"),
        ({"dither_at": [[]]}, "no dither place"),
        ({"dither_at": [[None]]}, "no dither place"),
        ({"dither_at": [None]}, "nulls"),
        ({"speech_end_s": [1.5]}, "end of speech is outside"),
        ({"text": "bytes"}, "UTF8|utf8"),
        ({"audio_b64": "offsets"}, "File too short"),
        ({"columns": "fewer"}, "unknown columns"),
    ],
)
def test_invalid_shard_content_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    values: dict[str, Any] = {
        "id": ["a"],
        "text": ["it"],
        "duration_s": [1.0],
        "sample_rate": [16000],
        "sha256": ["0"],
        "dither_at": [[2, 68, 302]],
        "speech_end_s": [1.0],
        "audio_b64": ["QUJD" * 1234],
    }
    bad = changes | {}
    columns = {
        name: pa.array(bad[name] if isinstance(bad.get(name), list) else value, SCHEMA.field(name).type)
        for name, value in values.items()
    }
    if bad.get("text") == "bytes":
        ends = pa.py_buffer(np.array([0, 2], np.int32))
        columns["text"] = pa.StringArray.from_buffers(1, ends, pa.py_buffer(b"\xff\xfe"))
    table = pa.record_batch(columns) if "columns" not in bad else pa.record_batch({"id": columns["id"]})
    name = "shard-00000-of-00001.arrow"
    with pa.ipc.new_file(str(tmp_path / name), table.schema) as writer:
        writer.write_batch(table)
    if bad.get("audio_b64") == "offsets":  # Arrow itself would not write this
        data = (tmp_path / name).read_bytes()
        at = data.index(np.array([0, len("QUJD") * 1234], np.int32).tobytes())
        (tmp_path / name).write_bytes(data[:at] + np.array([0, 1 << 30], np.int32).tobytes() + data[at + 8 :])
    manifest = {
        "format": FORMAT,
        "source": {},
        "options": {"rules": {}, "limit": 0, "language": "en"},
        "clips": 1,
        "clips_with_text": 1,
        "audio_s": 1.0,
        "skipped": {},
        "shards": [{"file": name, "rows": 1, "sha256": "0"}],
    }
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=said):
        Shards(tmp_path)


def test_audio_offsets_outside_the_buffer_are_refused() -> None:
    """They lie between a first and a last offset that Arrow accepts."""
    ends = pa.py_buffer(np.array([0, 9000, 8], np.int32))
    columns = [pa.array(["a", "b"]), pa.array(["it", "it"]), pa.array([1.0, 1.0]), pa.array([1, 1], pa.int32())]
    columns += [pa.array(["0", "0"]), pa.array([[2, 302], [2]], pa.list_(pa.int32())), pa.array([1.0, 1.0])]
    columns.append(pa.StringArray.from_buffers(2, ends, pa.py_buffer(b"QUJDQUJD")))
    with pytest.raises(ValueError, match="is out of bounds"):
        shard._check_batch(pa.record_batch(columns, SCHEMA))


@pytest.mark.parametrize("name", ["manifest.json", "shard-*.arrow"])
def test_prepared_folder_is_only_read_from_regular_files(clips: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(clips, tmp_path / "data")
    file = next((tmp_path / "data").glob(name))
    file.unlink()
    file.symlink_to("/dev/null")
    with pytest.raises(InputError, match="not a regular file"):
        Shards(tmp_path / "data")


def test_opening_shards_imports_no_pandas(clips: Path) -> None:
    code = "import sys; from asr_load import open_shards; shards = open_shards(sys.argv[1]); shards[0]; shards.ids(); "
    code += "assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, clips], check=True)
