"""A folder of audio files, with a manifest (jsonl, csv, tsv, NeMo's json) or without."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from asr_load.audio.clip import Recording, is_file
from asr_load.audio.convert import SHORTEST_S
from asr_load.audio.source import AUDIO_COLUMNS, TEXT_COLUMNS, Request, Source, fingerprint, pick_column
from asr_load.errors import InputError

MANIFEST_SUFFIXES = (".jsonl", ".csv", ".tsv")
JSON_SUFFIX = ".json"
"""NeMo's name for JSON lines; other things are called so too, and the content decides."""

LONGEST_ROW = 1 << 20
AUDIO_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aiff", ".aif", ".au", ".w64", ".caf"}


def find_manifest(path: Path, split: str | None) -> Path | None:
    """The manifest that `path` is or holds; None if there is none. Raises InputError if it could be several.

    Looked for in this order: SPLIT.* (Common Voice's test.tsv), manifest.*, metadata.*, the only one there is.
    """
    if path.is_file():
        return path if path.suffix in MANIFEST_SUFFIXES or _is_json_manifest(path) else None
    found = sorted(file for file in path.iterdir() if file.suffix in MANIFEST_SUFFIXES and file.is_file())
    for stem in (split, "manifest", "metadata"):
        named = [file for file in found if file.stem == stem]
        if len(named) == 1:
            return named[0]
        if len(named) > 1:
            found = named
            break
    if not found:
        found = sorted(file for file in path.iterdir() if file.is_file() and _is_json_manifest(file))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"{path} holds several manifests ({names}): name one of them with --dataset")
    return found[0] if found else None


def _is_json_manifest(file: Path) -> bool:
    """Whether a .json file has an object on its first line that names an audio file, as NeMo's manifests have."""
    if file.suffix != JSON_SUFFIX:
        return False
    with file.open("rb") as lines:
        try:
            row = msgspec.json.decode(lines.readline(LONGEST_ROW))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
    return isinstance(row, dict) and any(name in row for name in AUDIO_COLUMNS)


def has_bare_audio(path: Path) -> bool:
    """Whether the folder itself holds audio files (a `datasets` folder keeps them in parquet or Arrow files)."""
    return any(file.suffix.lower() in AUDIO_SUFFIXES for file in path.iterdir())


def open_manifest(manifest: Path, request: Request) -> Source:
    """Rows of a manifest. Raises InputError if it cannot be read, names no audio, or lacks a named column."""
    _refuse_subset(request, manifest)
    rows = list(_read_rows(manifest))
    if not rows:
        raise InputError(f"{manifest} has no rows")
    # A CSV row with more cells than the header has them under no name.
    columns = list(dict.fromkeys(name for row in rows for name in row if name is not None))
    audio_column = pick_column(request.audio_column, AUDIO_COLUMNS, columns, "audio")
    if audio_column is None:
        raise InputError(
            f"{manifest} names no audio file: no column {', '.join(AUDIO_COLUMNS)}, but {', '.join(columns)};"
            " name the right one with --audio-column"
        )
    text_column = pick_column(request.text_column, TEXT_COLUMNS, columns, "text")
    if request.split is not None and request.split != manifest.stem:
        if "split" not in columns:
            raise InputError(f"{manifest} has no column 'split', so --split {request.split} says nothing: leave it out")
        splits = sorted({str(row.get("split")) for row in rows})
        rows = [row for row in rows if row.get("split") == request.split]
        if not rows:
            raise InputError(f"{manifest} has no split {request.split!r}; it has: {', '.join(splits)}")

    recordings = []
    for number, row in enumerate(rows):
        name = row.get(audio_column)
        file = _locate(manifest.parent, str(name)) if name else None
        wanted = row.get("id")
        if wanted in (None, ""):
            wanted = file.stem if file else f"row-{number:06d}"
        text = row.get(text_column) if text_column else None
        offset_s, length_s = _segment(manifest, number, row)
        recordings.append(Recording(str(wanted), "" if text is None else str(text), file, offset_s, length_s))
    return _source(manifest.parent, recordings, request, text_column, audio_column)


def _segment(manifest: Path, number: int, row: dict[str, Any]) -> tuple[float, float | None]:
    """Which part of its file a row is: NeMo's `offset` and, beside that, `duration`, in seconds. Without an offset, a
    duration is no more than a statement. Raises InputError."""
    if row.get("offset") in (None, ""):
        return 0.0, None
    values = []
    for name, least in (("offset", 0.0), ("duration", SHORTEST_S)):
        value = row.get(name)
        try:
            seconds = None if value in (None, "") else float(str(value))
        except ValueError:
            seconds = math.nan
        if seconds is not None and not least <= seconds < math.inf:
            raise InputError(f"{manifest}, row {number + 1}: {name} {value!r} is no number of seconds")
        values.append(seconds)
    return values[0] or 0.0, values[1]


def open_bare(path: Path, request: Request) -> Source:
    """Every audio file of a folder and of those below it, by name, without transcripts."""
    _refuse_subset(request, path)
    if request.split is not None:
        raise InputError(f"{path} is a folder of audio without a manifest: it has no splits, leave --split out")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
    source = _source(path, [Recording(file.stem, "", file) for file in files], request, None, None)
    source.notes.append("no manifest: the clips have no transcripts, so there will be no WER")
    return source


class _Rows:
    def __init__(self, recordings: list[Recording], state: dict[str, Any] | None) -> None:
        self._recordings = recordings
        self._taken = state["taken"] if state else 0

    def __iter__(self) -> Iterator[Recording]:
        while self._taken < len(self._recordings):
            self._taken += 1
            yield self._recordings[self._taken - 1]

    def state(self) -> dict[str, Any]:
        return {"taken": self._taken}


def _source(
    folder: Path, recordings: list[Recording], request: Request, text_column: str | None, audio_column: str | None
) -> Source:
    # The same wherever the folder lies, and another when a row or a file of it changes.
    state = hashlib.sha256()
    for row in recordings:
        file = fingerprint(row.audio) if isinstance(row.audio, Path) and is_file(row.audio) else None
        state.update(repr((row.id, row.text, file, row.offset_s, row.length_s)).encode())
    origin = {
        "dataset": folder.resolve().name,
        "kind": "folder",
        "subset": None,
        "split": request.split,
        "text_column": text_column,
        "audio_column": audio_column,
        "state": state.hexdigest(),
    }
    return Source(origin, lambda state: _Rows(recordings, state), len(recordings))


def _refuse_subset(request: Request, path: Path) -> None:
    if request.subset is not None:
        raise InputError(f"{path} is a folder of audio: it has no subsets, leave --subset {request.subset} out")


def _locate(folder: Path, name: str) -> Path:
    # Common Voice keeps its files in clips/ and names them without it.
    file, beside = folder / name, folder / "clips" / name
    return beside if not is_file(file) and is_file(beside) else file


def _read_rows(manifest: Path) -> Iterator[dict[str, Any]]:
    try:
        if manifest.suffix in (".jsonl", JSON_SUFFIX):
            with manifest.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _row(manifest, number, line)
            return
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            if manifest.suffix == ".tsv":
                yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            else:
                yield from csv.DictReader(file)
    except UnicodeDecodeError as error:
        raise InputError(f"{manifest} is not UTF-8: {error.reason} at byte {error.start}") from error
    except csv.Error as error:
        raise InputError(f"{manifest} cannot be read: {error}") from error


def _row(manifest: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{manifest}, line {number}: not a JSON object ({error})") from error
