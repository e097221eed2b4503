"""What comes along with the modules: the locustfiles and the sample. A checkout has them where people see them, an
installed package inside of itself (see setup.py)."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None
"""None where the package is installed."""

SAMPLE = "asr_data/sample"


def shipped(name: str) -> Path:
    """A file or folder by its path in a checkout."""
    return (CHECKOUT or PACKAGE / "shipped") / name


def command(verb: str) -> str:
    """The command to type for a verb of asr-load, as this program was started: in the checkout its script or Locust,
    else asr-load itself."""
    here, script = Path("scripts"), f"{verb}.py"
    in_checkout = CHECKOUT is not None and here.is_dir() and here.samefile(CHECKOUT / "scripts")
    if in_checkout and not sys.argv[0].startswith("asr-load"):
        if verb in ("run", "capacity"):
            return "locust" if verb == "run" else "locust -f locustfiles/capacity.py"
        if (here / script).is_file():
            return f"python scripts/{script}"
    return f"asr-load {verb}"


def locust_command(locustfile: str) -> str:
    """The command to type for another process of a test with this -f."""
    files = [Path(file).resolve() for file in locustfile.split(",")]
    if not all(file.parent == shipped("locustfiles").resolve() for file in files):
        return f"locust -f {shlex.quote(locustfile)}"
    return command("capacity" if files[0].stem == "capacity" else "run")


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
