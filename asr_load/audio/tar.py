"""Recordings in tar files: WebDataset's samples, read as a stream, and the files that a NeMo manifest names."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from asr_load.audio.cell import SUFFIXES
from asr_load.decode import decode
from asr_load.errors import InputError

SUFFIX = ".tar"
TEXTS = (".txt", ".text", ".transcript", ".transcription", ".lab", ".cls", ".id")
"""Of files of a sample that are its columns as text."""

SAMPLES_LOOKED_AT = 5
"""For the names of columns."""

PARTS = re.compile(r"-sub\d+(?=\.[^.]*$)")
"""What NeMo adds to the names of all but the first part of a file, which is in the tar file once."""


def in_order(files: Iterable[str]) -> list[str]:
    """By name, in which 2 comes before 10: the same on each machine."""
    return sorted(files, key=lambda file: [(rest, int(part or 0)) for rest, part in re.findall(r"(\D*)(\d*)", file)])


def samples(file: str) -> Iterator[dict[str, Any]]:
    """The samples of a tar file or of the address of one, as WebDataset has them: members in a row that have a name in
    common, which become columns by what is behind it. `audio` is the recording; the fields of a JSON object are columns
    too. Raises whatever tarfile, the file system or the network raise, and InputError."""
    # Late: `datasets` takes a second to import. It knows the hub's addresses, and the person's token.
    from datasets.utils.file_utils import xopen

    key, row = "", dict[str, Any]()
    with xopen(file, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            base = member.name.rpartition("/")[2]
            if not member.isfile() or base.startswith(".") or not Path(base).suffix:
                continue
            if not key or not member.name.startswith(f"{key}."):
                if row:
                    yield row
                key, row = member.name.removesuffix(Path(base).suffix), {}
            _add(row, member.name, member.name[len(key) + 1 :], archive, member)
    if row:
        yield row


def _add(row: dict[str, Any], name: str, column: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    suffix = Path(name).suffix.lower()
    if suffix not in (*SUFFIXES, *TEXTS, ".json"):
        return
    content = archive.extractfile(member)
    data = content.read() if content else b""
    if suffix in SUFFIXES:
        row["audio"] = {"bytes": data, "path": name}
        return
    try:
        value = decode(data) if suffix == ".json" else data.decode().strip()
    except ValueError as error:
        raise InputError(f"{name} is not {'JSON' if suffix == '.json' else 'text in UTF-8'} ({error})") from None
    if isinstance(value, dict):
        row |= {field: each for field, each in value.items() if field not in row and field != "audio"}
    else:
        row[column] = value


class TarSamples:
    """The samples of tar files, one file after the other. It goes on from a state as an IterableDataset does."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = files
        self._begins = self._at = {"file": 0, "taken": 0}

    def decode(self, _enable: bool) -> TarSamples:
        """Nothing is decoded here."""
        return self

    @property
    def column_names(self) -> list[str]:
        """Of the first samples."""
        first = (row for file in self._files[:1] for row in samples(file))
        return list(dict.fromkeys(name for row in islice(first, SAMPLES_LOOKED_AT) for name in row))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        begins = self._begins
        for number in range(begins["file"], len(self._files)):
            taken = begins["taken"] if number == begins["file"] else 0
            for place, row in enumerate(samples(self._files[number])):
                if place >= taken:
                    self._at = {"file": number, "taken": place + 1}
                    yield row

    def state_dict(self) -> dict[str, int]:
        """Where the last iteration stands."""
        return self._at

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self._begins = self._at = state


class Member(NamedTuple):
    """A file in a tar file of this machine: where its bytes are."""

    archive: Path
    at: int
    size: int

    def read(self) -> bytes:
        """Its bytes."""
        with self.archive.open("rb") as data:
            data.seek(self.at)
            return data.read(self.size)


class Members:
    """The files in tar files of this machine, by the names that a NeMo manifest has for them. Raises InputError."""

    def __init__(self, archives: Iterable[Path]) -> None:
        self._members: dict[str, Member] = {}
        for archive in map(Path, in_order(map(str, archives))):
            try:
                with tarfile.open(archive, "r:") as opened:
                    for member in filter(tarfile.TarInfo.isfile, opened):
                        place = Member(archive, member.offset_data, member.size)
                        self._members.setdefault(member.name.removeprefix("./"), place)
            except (OSError, tarfile.TarError) as error:
                raise InputError(f"{archive} cannot be read: {error}") from error

    def find(self, name: str) -> Member | None:
        """The file of a row; None where no archive has it."""
        return self._members.get(name) or self._members.get(PARTS.sub("", name))
