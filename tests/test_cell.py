"""Cells with audio: file names, arrays, base64 and URLs, in JSON and in parquet."""

from __future__ import annotations

import base64
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asr_load.audio.clip import Rules
from asr_load.audio.convert import convert
from asr_load.audio.open import open_source
from asr_load.audio.source import DatasetSpec
from conftest import noise
from harness.audio import encoded
from harness.datasets import refusal, texts, write_audio


@pytest.mark.parametrize(
    "name",
    [
        "a b.wav",
        "file://{folder}/a%20b.wav",
        "{folder}/a b.wav",
        "sub\\a b.wav",
        "sub/a b",
        "clip.wav",
        "in wavs",
    ],
)
def test_file_names_of_every_form_are_found(tmp_path: Path, name: str) -> None:
    for file in ("a b.wav", "sub/a b.wav", "clips/clip.wav", "wavs/in wavs.wav"):
        write_audio(tmp_path / file)
    line = {"audio": name.format(folder=tmp_path), "text": "it"}
    for cell in (
        line["audio"],
        {"path": line["audio"]},
        {"bytes": None, "path": line["audio"], "sampling_rate": 16000},
    ):
        (tmp_path / "manifest.jsonl").write_text(json.dumps(line | {"audio": cell}) + "\n")
        assert list(texts(tmp_path).values()) == ["it"]


SAMPLES = (noise(0.5) * 30000).astype("<i2")


@pytest.mark.parametrize(
    ("cell", "beside"),
    [
        ({"array": (SAMPLES / 32768).tolist(), "sampling_rate": 16000, "path": "said.wav"}, {}),
        ({"array": SAMPLES.tolist(), "sampling_rate": 16000, "path": "said.wav"}, {}),
        ((SAMPLES / 32768).tolist(), {"sampling_rate": 16000, "id": "said"}),
        ({"array": [(SAMPLES / 32768).tolist()] * 2, "sample_rate": 16000.0, "path": "said.wav"}, {}),
        ({"array": (SAMPLES.astype(int) * 65536).tolist(), "sampling_rate": 16000, "path": "said.wav"}, {}),
    ],
)
def test_decoded_arrays_are_read(tmp_path: Path, cell: Any, beside: dict[str, Any]) -> None:
    """They may be in JSON, and in parquet as lists in a struct."""
    row = {"audio": cell, "text": "it", **beside}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    for dataset in (tmp_path, tmp_path / "rows.parquet"):
        (recording,) = open_source(DatasetSpec(str(dataset))).rows(None)
        assert (recording.id, recording.text) == ("said", "it")
        clip = next(convert(recording, Rules()))
        pcm = np.frombuffer(base64.b64decode(clip.audio_b64)[44:], "<i2")
        assert np.array_equal(pcm, SAMPLES)


def test_base64_audio_in_json_is_read(tmp_path: Path) -> None:
    data = base64.b64encode(write_audio(tmp_path / "x.wav").read_bytes()).decode()
    for number, word in enumerate((data, f"data:audio/wav;base64,{data}")):
        (tmp_path / "m.jsonl").write_text(json.dumps({"audio": {"bytes": word}, "id": number, "text": "it"}) + "\n")
        assert texts(tmp_path / "m.jsonl") == {str(number): "it"}
    for cell, said in (
        ({"bytes": "no base64!"}, "bytes that are not base64"),
        ({"array": [0.1, 0.2]}, "samples without a sampling_rate"),
        ({"array": ["x"], "sampling_rate": 16000}, "malformed samples"),
        ([[[1.0]]], "samples"),
    ):
        (tmp_path / "m.jsonl").write_text(json.dumps({"audio": cell}) + "\n")
        assert said in refusal(tmp_path / "m.jsonl")


def test_audio_urls_in_rows_are_fetched(tmp_path: Path) -> None:
    """In a manifest and in parquet: each URL is fetched, 404 skips the row, and a dead server is a one-line error."""
    write_audio(tmp_path / "web" / "a.wav")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path / "web"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    rows = [{"audio": f"{url}/a.wav", "text": "it"}, {"audio": f"{url}/gone.wav", "text": "gone"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    for name in ("m.jsonl", "m.parquet"):
        here, gone = open_source(DatasetSpec(str(tmp_path / name), allow_outside=True)).rows(None)
        assert (here.id, here.text) == ("a", "it")
        assert here.audio == (tmp_path / "web" / "a.wav").read_bytes()
        assert (gone.id, gone.audio) == ("gone", None)
    server.shutdown()
    server.server_close()
    for name in ("m.jsonl", "m.parquet"):
        assert f"row 1: {url}/a.wav cannot be downloaded" in refusal(tmp_path / name, allow_outside=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_too_large_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr_load.audio.cell.MAX_CELL_BYTES", 1000)
    pq.write_table(pa.Table.from_pylist([{"audio": encoded(noise(1.0)), "text": "it"}]), tmp_path / "rows.parquet")
    assert "of audio in a row: store recordings over 0 MB in separate files" in refusal(tmp_path / "rows.parquet")
