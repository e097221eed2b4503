"""The folder of a run: its name, and its creation."""

from __future__ import annotations

import itertools
import re
from datetime import datetime
from pathlib import Path

from asr_load.results.record_file import RECORDS
from asr_load.text import count_of

RESULTS = Path("results")
"""Default parent of the runs' folders."""

LONGEST_PART = 60
"""Maximum characters of the model and of the load in a name."""


def folder_name(model: str, load: str) -> str:
    """The name of the folder of a run that begins now: time, model without its organisation, and load, such as
    20261201-0130-17_moonshine-tiny_4-streams. Names sort by time, and every file system accepts them."""
    parts = (model.rstrip("/").rpartition("/")[2], load)
    safe = (re.sub(r"[^\w.]+", "-", part, flags=re.ASCII)[:LONGEST_PART].strip("-.") for part in parts)
    return "_".join([datetime.now().astimezone().strftime("%Y%m%d-%H%M-%S"), *filter(None, safe)])


def load_name(users: int, rate: float | None = None, *, realtime: bool = False) -> str:
    """The load in a folder's name, such as 4 streams, or the rate of an open loop in requests per second."""
    if rate is not None:
        return f"{rate:g} requests per s"
    return count_of(users, "session" if realtime else "stream").replace(",", "")


def new_folder(base: Path) -> Path:
    """Create a folder for a run: the named one, then NAME-2, NAME-3, for further tests of the web UI and for tests
    that begin in the same second."""
    for number in itertools.count(1):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / RECORDS).touch(exist_ok=False)
        except FileExistsError:
            continue
        break
    return folder
