"""Names and creation of results folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asr_load.results.folders import folder_name, load_name, new_folder


@pytest.mark.parametrize(
    ("model", "load", "name"),
    [
        ("moonshine-tiny", "4 streams", "moonshine-tiny_4-streams"),
        ("openbmb/MiniCPM-o-2_6", "search", "MiniCPM-o-2_6_search"),
        ("/models/whisper large/", "trace", "whisper-large_trace"),
        ("../..", "1 stream", "1-stream"),
        ("a\x1b[31m:*é", "1 stream", "a-31m_1-stream"),
        ("x" * 300, "", "x" * 60),
    ],
)
def test_name_has_time_model_and_load_in_safe_characters(model: str, load: str, name: str) -> None:
    time, _, rest = folder_name(model, load).partition("_")
    assert re.fullmatch(r"\d{8}-\d{4}-\d\d", time)
    assert rest == name


def test_load_is_streams_sessions_or_a_rate() -> None:
    assert [load_name(1), load_name(2000), load_name(3, realtime=True)] == ["1 stream", "2000 streams", "3 sessions"]
    assert load_name(500, 2.5) == "2.5 requests per s"


def test_further_tests_get_numbered_folders(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path / "results" / "r") for _ in range(3)]
    assert [folder.name for folder in folders] == ["r", "r-2", "r-3"]
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "notes").touch()
    assert new_folder(tmp_path / "filled") == tmp_path / "filled"
