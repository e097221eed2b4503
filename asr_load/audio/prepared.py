"""A prepared folder and its manifest. Format: asr_data/README.md; `shard.py` reads and writes the clips."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path
from typing import Any

import msgspec

from asr_load.audio.clip import Rules
from asr_load.decode import Malformed, decode
from asr_load.errors import InputError
from asr_load.files import open_regular
from asr_load.languages import language_code
from asr_load.shipped import command

FORMAT = 3
READABLE = (2, FORMAT)
"""Format 2 has one dither place per clip instead of a list."""

MANIFEST = "manifest.json"
PARTIAL = ".partial"
"""Folder next to the manifest during preparation."""

SHARD_NAME = re.compile(r"shard-[0-9]{5,}-of-[0-9]{5,}\.arrow")


class Options(msgspec.Struct, frozen=True):
    """The options of a prepared folder. `limit` 0 sets no limit. `language` is a code of languages.py, also if an
    earlier version wrote a name; it decides how words are compared."""

    rules: Rules
    limit: int
    language: str

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "language", language_code(self.language))


class ShardInfo(msgspec.Struct, frozen=True):
    """A shard's entry in the manifest."""

    file: str
    rows: int
    sha256: str


class SkippedClips(msgspec.Struct):
    """Clips that share a reason for skipping them, or a note."""

    count: int = 0
    ids: list[str] = msgspec.field(default_factory=list)

    def add(self, id: str) -> None:
        self.count += 1
        self.ids.append(id)


class Manifest(msgspec.Struct):
    """manifest.json. It exists only in a complete folder and contains no times, so that it is reproducible."""

    format: int
    source: dict[str, Any]
    options: Options
    clips: int
    clips_with_text: int
    audio_s: float
    skipped: dict[str, SkippedClips]
    shards: list[ShardInfo]
    noted: dict[str, SkippedClips] = {}
    """Kept clips that prepare reports, by note."""


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a complete prepared folder. Raises InputError for anything else."""
    path = folder / MANIFEST
    hint = _how_to_prepare(folder)
    if not folder.exists():
        raise InputError(f"--data {folder}: there is no such folder; {hint}")
    if not folder.is_dir():
        raise InputError(f"--data {folder} is a file, not a prepared folder; {hint}")
    try:
        with open_regular(path) as file:
            manifest = decode(file.read(), Manifest)
    except FileNotFoundError:
        if inner := sorted(str(first.parent) for first in folder.glob("*/shard-00000-of-*.arrow")):
            raise InputError(
                f"--data {folder} is not a prepared folder, but contains some: {', '.join(inner[:5])}"
            ) from None
        raise InputError(f"--data {folder} is not a prepared folder (it has no {MANIFEST}); {hint}") from None
    except OSError as error:
        raise InputError(f"--data {folder}: {MANIFEST} cannot be read ({error.strerror})") from None
    except Malformed as error:
        raise InputError(f"--data {folder}: {MANIFEST} is not the output of prepare ({error}); {hint}") from None
    if manifest.format not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise InputError(f"--data {folder} has format {manifest.format}, but this version reads {known}; {hint}")
    for shard in manifest.shards:
        if not SHARD_NAME.fullmatch(shard.file):
            raise InputError(f"--data {folder}: {MANIFEST} names {shard.file!r}, which is not a shard; {hint}")
    return manifest


def _how_to_prepare(folder: Path) -> str:
    """The command that prepares the folder, or the data set if --data names one."""
    named = str(folder)
    raw = folder.exists() and not ((folder / MANIFEST).exists() or (folder / PARTIAL).exists())
    on_hub = not folder.parent.exists() and not folder.is_absolute()
    if not (raw or on_hub or named.startswith("preset:")):
        return f"prepare it: {command('prepare')} --dataset DATASET --out {shlex.quote(named)}"
    # Never suggest writing into a folder of recordings.
    base = folder.resolve().stem if folder.is_file() else folder.resolve().name.removeprefix("preset:")
    name = re.sub(r"[^\w.-]+", "-", base) or "NAME"
    return f"prepare it: {command('prepare')} --dataset {shlex.quote(named)} --out asr_data/{name}"
