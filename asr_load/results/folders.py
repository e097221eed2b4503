"""The names of results folders."""

from __future__ import annotations

import re
from datetime import datetime

LONGEST_MODEL = 60
"""Maximum characters of a model in a name."""


def folder_name(now: datetime, model: str, load: str) -> str:
    """The name of a run's folder: time, model without its organisation, and load, such as
    20261201-0130-17_moonshine-tiny_4-streams. Names sort by time, and every file system accepts them."""
    parts = (model.rstrip("/").rpartition("/")[2][:LONGEST_MODEL], load)
    safe = (re.sub(r"[^\w.]+", "-", part, flags=re.ASCII).strip("-.") for part in parts)
    return "_".join([now.strftime("%Y%m%d-%H%M-%S"), *filter(None, safe)])
