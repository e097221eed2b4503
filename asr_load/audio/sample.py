"""The sample: the data set for a first test."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from asr_load.shipped import CHECKOUT, SAMPLE, cache, shipped


def sample() -> Path:
    """The prepared sample. An installed package prepares it once, in the cache. Raises InputError."""
    if CHECKOUT is not None:
        return CHECKOUT / SAMPLE
    from asr_load import __version__

    folder = cache() / f"sample-{__version__}"
    if not (folder / "manifest.json").exists():
        _prepare(folder)
    return folder


def _prepare(folder: Path) -> None:
    # Late: these imports are slow, and few processes need them.
    from asr_load.audio.clip import Rules
    from asr_load.audio.open import open_source
    from asr_load.audio.prepare import prepare
    from asr_load.audio.prepared import Options
    from asr_load.audio.source import DatasetSpec

    folder.parent.mkdir(parents=True, exist_ok=True)
    # A separate draft for each process: all processes of a fleet may start at once.
    draft = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        prepare(open_source(DatasetSpec(str(shipped(SAMPLE)))), Options(Rules(), 0, "en"), draft / "sample")
        with contextlib.suppress(OSError):  # another process was faster
            (draft / "sample").rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
