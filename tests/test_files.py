"""Files of a run: only regular ones are read, and nothing is written through a link."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from asr_load.audio.shard import write_shard
from asr_load.files import open_regular
from harness.patience import PATIENCE_S


def test_no_shard_is_written_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "others-file"
    other.write_text("mine")
    (tmp_path / "shard.arrow.tmp").symlink_to(other)
    write_shard(tmp_path / "shard.arrow", [])
    assert other.read_text() == "mine"


def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    refused: list[str] = []

    def read() -> None:
        try:
            open_regular(tmp_path / "run.json")
        except OSError as error:
            refused.append(str(error.strerror))

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(PATIENCE_S)
    assert refused == ["not a regular file"]
