"""What comes along with the modules: the locustfiles and the sample. A checkout has them where people see them, an
installed package inside of itself (see setup.py)."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None
"""None where the package is installed."""

SAMPLE = "asr_data/sample"


def shipped(name: str) -> Path:
    """A file or folder by its path in a checkout."""
    return (CHECKOUT or PACKAGE / "shipped") / name


def cache() -> Path:
    """Where this user's machine keeps what can be made again: XDG_CACHE_HOME/asr-load."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "asr-load"


def sample() -> Path:
    """The prepared sample. Where there is no checkout, it is prepared once, in the cache. Raises InputError."""
    if CHECKOUT is not None:
        return CHECKOUT / SAMPLE
    from asr_load import __version__

    folder = cache() / f"sample-{__version__}"
    if not (folder / "manifest.json").exists():
        _prepare(folder)
    return folder


def _prepare(folder: Path) -> None:
    # Late: it takes more imports than any other start.
    from asr_load.audio.clip import Rules
    from asr_load.audio.open import open_source
    from asr_load.audio.prepare import prepare
    from asr_load.audio.shard import Options
    from asr_load.audio.source import DatasetSpec

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Each in a folder of its own: the processes of a fleet may all be the first.
    draft = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        prepare(open_source(DatasetSpec(str(shipped(SAMPLE)))), Options(Rules(), 0, "en"), draft / "sample")
        with contextlib.suppress(OSError):  # another process was quicker
            (draft / "sample").rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
