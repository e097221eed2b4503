"""Data sets: which one to open, and its rows of encoded recordings. Local files, or an id on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from asr_load.audio.clip import Recording
from asr_load.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

FINGERPRINT_BYTES = 65536


@dataclass(frozen=True)
class DatasetSpec:
    """A data set and the rows to take from it, as given on the command line. None: not given."""

    dataset: str
    subset: str | None = None
    split: str | None = None
    text_column: str | None = None
    audio_column: str | None = None
    allow_outside: bool = False
    """Whether the data set may refer to files outside of its folder, and to URLs."""
    revision: str | None = None
    """Branch, tag or commit of a data set on the hub."""


class Recordings(Protocol):
    """Recordings in order, from the start or from an earlier `state`. Ids may repeat: see UniqueIds."""

    def __iter__(self) -> Iterator[Recording]: ...

    def state(self) -> dict[str, Any]:
        """The position of the iteration after the rows taken so far, as plain JSON."""
        ...


@dataclass
class Source:
    """The rows of a data set. `origin` identifies them in the manifest: the same rows give the same `origin`.

    `rows(state)` continues from a `state` of Recordings, or starts at the first row for None.
    """

    origin: dict[str, Any]
    rows: Callable[[dict[str, Any] | None], Recordings]
    total: int | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


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


def is_saved(path: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def fingerprint(file: Path) -> str:
    """Identify a file's content without reading all of it, by its size, beginning and end."""
    digest = hashlib.sha256()
    with file.open("rb") as data:
        digest.update(data.read(FINGERPRINT_BYTES))
        size = data.seek(0, os.SEEK_END)
        data.seek(max(0, size - FINGERPRINT_BYTES))
        digest.update(data.read())
    return f"{size}-{digest.hexdigest()}"


class UniqueIds:
    """Makes each id unique in its set: the second `a` becomes `a-2`."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        """Each assigned id, and the last number tried as its suffix."""

    def __call__(self, wanted: str) -> str:
        name = wanted
        while name in self._seen:
            self._seen[wanted] += 1
            name = f"{wanted}-{self._seen[wanted]}"
        self._seen[name] = 1
        return name
