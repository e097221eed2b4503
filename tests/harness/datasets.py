"""What a source reads from a data set, and why it refuses one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile

from asr_load.audio.clip import Recording, Rules
from asr_load.audio.convert import convert
from asr_load.audio.open import open_source
from asr_load.audio.source import DatasetSpec
from asr_load.errors import InputError
from conftest import noise


def write_audio(file: Path, seconds: float = 0.1) -> Path:
    """Write noise in the format of the file's suffix, or as WAV if it has none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, noise(seconds), 16000, format="WAV" if file.suffix == "" else None)
    return file


def recordings(dataset: Path | str, **words: Any) -> list[Recording]:
    """The recordings of a data set, read with these fields of DatasetSpec."""
    return list(open_source(DatasetSpec(str(dataset), **words)).rows(None))


def texts(dataset: Path, **words: Any) -> dict[str, str]:
    """The text of each recording of a data set, by its id. Check that all of them have audio."""
    rows = recordings(dataset, **words)
    assert all(next(convert(row, Rules())).duration_s >= 0.05 for row in rows)
    return {row.id: row.text for row in rows}


def refusal(dataset: Path | str, **words: Any) -> str:
    """The one-line error for a data set that cannot be read."""
    with pytest.raises(InputError) as caught:
        recordings(dataset, **words)
    assert "\n" not in str(caught.value)
    return str(caught.value)
