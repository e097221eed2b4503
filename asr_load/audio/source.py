"""Data sets: which one to open, and its rows of encoded recordings."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from asr_load.audio.clip import Recording

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
