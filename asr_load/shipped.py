"""Files shipped with the modules: the locustfiles and the sample. A checkout has them at its top level, an installed
package in its `shipped` folder (see setup.py)."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None
"""None for an installed package."""

SAMPLE = "asr_data/sample"

LOCUST_COMMAND = (sys.executable, "-m", "asr_load.cli.main", "locust")
"""The command that runs Locust in a new process, in which signals are caught from the first line on."""


def shipped(name: str) -> Path:
    """The path of a shipped file or folder, by its path in a checkout."""
    return (CHECKOUT or PACKAGE / "shipped") / name


def command(verb: str) -> str:
    """The command to type for a verb, in the form in which this program was started: a script or Locust in a checkout,
    else asr-load."""
    here, script = Path("scripts"), f"{verb}.py"
    in_checkout = CHECKOUT is not None and here.is_dir() and here.samefile(CHECKOUT / "scripts")
    if in_checkout and not sys.argv[0].startswith("asr-load"):
        if verb in ("run", "capacity"):
            return "locust" if verb == "run" else "locust -f locustfiles/capacity.py"
        if (here / script).is_file():
            return f"python scripts/{script}"
    return f"asr-load {verb}"


def locust_command(locustfile: str) -> str:
    """The command that starts another process of a test with this -f."""
    files = [Path(file).resolve() for file in locustfile.split(",")]
    if not all(file.parent == shipped("locustfiles").resolve() for file in files):
        return f"locust -f {shlex.quote(locustfile)}"
    return command("capacity" if files[0].stem == "capacity" else "run")


def cache() -> Path:
    """The cache folder of this user: XDG_CACHE_HOME/asr-load."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "asr-load"
