"""Open a data set: local files, or an id on the Hugging Face hub."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from asr_load.audio.source import DatasetSpec, Source
from asr_load.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def open_source(spec: DatasetSpec) -> Source:
    """Open a local folder or file, else an id on the Hugging Face hub. Raises InputError."""
    path = Path(spec.dataset).expanduser()
    source = None
    try:
        here = path.exists()
        if here:
            # Late: the table readers take 0.1 s to import.
            from asr_load.audio.folder import open_folder

            source = open_folder(path, spec)
    except OSError as error:  # such as an unreadable file or a name that is too long
        raise InputError(f"--dataset {spec.dataset} cannot be read: {error.strerror or error}") from error
    if not here:
        if not HUB_ID.fullmatch(spec.dataset):
            raise InputError(f"--dataset {spec.dataset}: there is no such file or folder")
        print(f"no local folder {path}: looking for it on the Hugging Face hub", file=sys.stderr, flush=True)
    if source is None:
        # Late: `datasets` takes a second to import, and folders of audio do not need it.
        from asr_load.audio.hub import open_dataset

        source = open_dataset(path if here else None, spec)
    picked = {what: source.origin[f"{what}_column"] for what in ("audio", "text")}
    if picked["audio"]:
        columns = [f"{what} from the column {name!r}" for what, name in picked.items() if name]
        if segments := source.origin["segment_columns"]:
            columns.append(f"segments of files from the columns {' and '.join(map(repr, segments))}")
        source.notes.append(", ".join(columns))
    return source
