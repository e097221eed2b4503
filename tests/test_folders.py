"""Names of results folders."""

from __future__ import annotations

from datetime import datetime

import pytest

from asr_load.results.folders import folder_name

NOW = datetime(2026, 12, 1, 1, 30, 17)


@pytest.mark.parametrize(
    ("model", "load", "name"),
    [
        ("moonshine-tiny", "4-streams", "20261201-0130-17_moonshine-tiny_4-streams"),
        ("openbmb/MiniCPM-o-2_6", "search", "20261201-0130-17_MiniCPM-o-2_6_search"),
        ("/models/whisper large/", "trace", "20261201-0130-17_whisper-large_trace"),
        ("../..", "1-stream", "20261201-0130-17_1-stream"),
        ("a\x1b[31m:*é", "1-stream", "20261201-0130-17_a-31m_1-stream"),
        ("x" * 300, "", f"20261201-0130-17_{'x' * 60}"),
    ],
)
def test_name_has_time_model_and_load_in_safe_characters(model: str, load: str, name: str) -> None:
    assert folder_name(NOW, model, load) == name
