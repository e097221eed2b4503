"""Shared helpers of several test files: small synthetic audio."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# Tests only import Locust's types and parsers. Its monkey patching is for processes that send load.
os.environ.setdefault("LOCUST_SKIP_MONKEY_PATCH", "1")

import numpy as np
import pytest
import soundfile

# Cache compiled modules, even if the environment forbids it. Otherwise each pytest worker would rewrite the assertions
# of all files, which takes 5 s, and each of the thousand processes that tests start would compile asr_load.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _no_calibration(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep this machine's stored calibration out of the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def noise(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """Noise at -20 dBFS as float32, shape (seconds * rate,). It is not silence, and it differs for each seed."""
    return (np.random.default_rng(seed).standard_normal(int(seconds * rate)) * 0.1).clip(-1, 1).astype(np.float32)


def write_folder(folder: Path, lengths: dict[str, float]) -> Path:
    """Write WAV files with these lengths in seconds, named by their ids, and a manifest.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed, (name, seconds) in enumerate(lengths.items()):
        soundfile.write(folder / f"{name}.wav", noise(seconds, seed=seed), 16000)
        rows.append({"file": f"{name}.wav", "text": f"text of {name}"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def prepare_clips(folder: Path, lengths: dict[str, float], language: str = "en") -> Path:
    """Write clips with `write_folder` and prepare them; return the prepared folder."""
    from asr_load.audio.clip import Rules
    from asr_load.audio.open import open_source
    from asr_load.audio.prepare import prepare
    from asr_load.audio.prepared import Options
    from asr_load.audio.source import DatasetSpec

    source = write_folder(folder / "set", lengths)
    prepare(open_source(DatasetSpec(str(source))), Options(Rules(), 0, language), folder / "prepared")
    return folder / "prepared"


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty short prepared clips."""
    return prepare_clips(tmp_path_factory.mktemp("clips"), {f"clip{number:02d}": 0.1 for number in range(30)})
