"""Read recordings from tar files: streamed WebDataset samples, and files that a NeMo manifest names."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from asr_load.audio.cell import AUDIO_SUFFIXES
from asr_load.decode import decode
from asr_load.errors import InputError

TAR_SUFFIX = ".tar"
TEXTS = (".txt", ".text", ".transcript", ".transcription", ".lab", ".cls", ".id")
"""Suffixes of a sample's files that become text columns."""

SAMPLES_LOOKED_AT = 5
"""Number of samples from which to take the names of columns."""

PARTS = re.compile(r"-sub\d+(?=\.[^.]*$)")
"""NeMo's suffix for all but the first segment of a file, which is in the tar file only once."""


def in_order(files: Iterable[str]) -> list[str]:
    """Sort by name, with 2 before 10, so that the order is the same on each machine."""
    return sorted(files, key=lambda file: [(rest, int(part or 0)) for rest, part in re.findall(r"(\D*)(\d*)", file)])


def samples(file: str) -> Iterator[dict[str, Any]]:
    """Yield the WebDataset samples of a tar file or URL. Raises InputError, and any error of tarfile, files or network.

    Consecutive members with the same base name form a sample; their suffixes are its columns. `audio` is the recording.
    The fields of a JSON object become columns too.
    """
    # Late: `datasets` takes a second to import. It knows the hub's URLs and the user's token.
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
    if suffix not in (*AUDIO_SUFFIXES, *TEXTS, ".json"):
        return
    file = archive.extractfile(member)
    data = file.read() if file else b""
    if suffix in AUDIO_SUFFIXES:
        row["audio"] = {"bytes": data, "path": name}
        return
    try:
        value = decode(data) if suffix == ".json" else data.decode().strip()
    except ValueError as error:
        raise InputError(f"{name} is not {'JSON' if suffix == '.json' else 'text in UTF-8'} ({error})") from None
    if isinstance(value, dict):
        row |= {field: content for field, content in value.items() if field not in row and field != "audio"}
    else:
        row[column] = value


class TarSamples:
    """The samples of several tar files in turn, resumable like an IterableDataset."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = files
        self._begins = self._at = {"file": 0, "taken": 0}

    def decode(self, _enable: bool) -> TarSamples:
        """Do nothing: samples are never decoded here."""
        return self

    @property
    def column_names(self) -> list[str]:
        """The columns of the first samples."""
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
        """The position of the last iteration."""
        return self._at

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a position of `state_dict`."""
        self._begins = self._at = state


class Member(NamedTuple):
    """A file within a local tar file, by the position of its bytes."""

    archive: Path
    at: int
    size: int

    def read(self) -> bytes:
        """Read the file's bytes."""
        with self.archive.open("rb") as data:
            data.seek(self.at)
            return data.read(self.size)


class Members:
    """The files within local tar files, by the names that a NeMo manifest uses. Raises InputError."""

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
        """The file with this name; None if no archive contains it."""
        return self._members.get(name) or self._members.get(PARTS.sub("", name))
