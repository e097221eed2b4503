"""Decoding of foreign JSON: every defect gives a one-line error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from asr_load.audio.manifest import read_rows
from asr_load.audio.prepare import refuse_another
from asr_load.audio.prepared import MANIFEST, read_manifest
from asr_load.decode import MAX_DEPTH, Malformed, decode
from asr_load.errors import InputError
from asr_load.options.form import check_user_class
from asr_load.results.capacity import CAPACITY, read_capacity
from asr_load.results.runfile import RUN, read_run
from asr_load.schedule.trace import read_trace
from harness.options import settings


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff", b'"\xff"', b"NaN", b"1e999", b"9" * 5000, nested(MAX_DEPTH + 1), nested(600), nested(5000)],
)
def test_undecodable_json_is_malformed(text: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        decode(text)
    assert "\n" not in str(caught.value)


def test_depth_limit_counts_levels_and_not_brackets() -> None:
    assert decode(nested(MAX_DEPTH)) == decode(nested(MAX_DEPTH).decode())
    assert len(decode(b"[" + b"[],{}," * MAX_DEPTH + b"1]")) == 2 * MAX_DEPTH + 1
    assert decode(b'"' + b"[" * 5000 + b'"') == "[" * 5000
    assert decode(nested(300), depth=None)


def test_lone_surrogate_is_decoded_only_when_lenient() -> None:
    half = b'{"a":"\\ud83d"}'
    assert decode(half, dict[str, str], lenient=True) == {"a": "\ud83d"}
    with pytest.raises(Malformed):
        decode(half, dict[str, str])
    with pytest.raises(Malformed):
        decode(b'{"a":1}', dict[str, str], lenient=True)


READERS: dict[str, Callable[[Path], object]] = {
    MANIFEST: lambda file: read_manifest(file.parent),
    "an output's manifest.json": lambda file: refuse_another(file.rename(file.parent / MANIFEST).parent, None),  # type: ignore[arg-type]
    "rows.jsonl": read_rows,
    RUN: lambda file: read_run(file.parent),
    CAPACITY: lambda file: read_capacity(file.parent),
    "trace.jsonl": read_trace,
    "an edit of a class": lambda file: check_user_class(file.read_bytes(), {}, {}),
    "--extra-body": lambda file: settings("--extra-body", file.read_text()),
}


@pytest.mark.parametrize("name", READERS)
def test_deeply_nested_file_gives_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(nested(5000))
    with pytest.raises(InputError):
        READERS[name](tmp_path / name)
