"""Read local folders of audio in the layouts common for speech data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from asr_load.audio import kaldi, tar
from asr_load.audio.cell import check_place, file_name, find_audio, is_audio, is_inside, segment_of, text_of
from asr_load.audio.clip import Recording, is_file
from asr_load.audio.columns import (
    AUDIO_COLUMNS,
    TEXT_COLUMNS,
    no_text,
    pick_column,
    segment_columns,
    unused_times,
    warning_of,
)
from asr_load.audio.download import Url, fetch
from asr_load.audio.manifest import is_manifest, read_rows, read_text
from asr_load.audio.source import DatasetSpec, Source, fingerprint, is_saved
from asr_load.errors import InputError

DATASETS_SUFFIXES = (".parquet", ".arrow", tar.TAR_SUFFIX)
"""Suffixes of files that Hugging Face `datasets` stores rows in."""

ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
TRANSCRIPTS = ".trans.txt"

ROWS_LOOKED_AT = 100
"""Rows of a table to search for columns that look like times."""


@dataclass(frozen=True)
class _Row:
    """A recording. If `cell` is set, its audio is still to be made from that table cell."""

    recording: Recording
    cell: Any = None
    beside: dict[str, Any] | None = None
    """The whole table row, if `cell` is set."""


@dataclass
class _Found:
    rows: list[_Row]
    notes: list[str]
    audio_column: str | None = None
    text_column: str | None = None
    segment_columns: list[str] = field(default_factory=list)
    """Columns that define the rows' segments of their files."""
    warnings: list[str] = field(default_factory=list)
    roots: Sequence[Path] = ()
    """Folders, in addition to the data set's, in which its audio may be."""


def open_folder(path: Path, spec: DatasetSpec) -> Source | None:
    """Open a folder, a manifest or one audio file; returns None if only `datasets` can read it. Raises InputError.

    Searches the folder and then its subfolders, in this order, for Kaldi's wav.scp, a manifest (SPLIT.*, such as Common
    Voice's test.tsv; manifest.*; metadata.*; the only one there), LibriSpeech's *.trans.txt, and audio files.
    """
    if is_saved(path):
        return None
    if path.is_file():
        found = _one_file(path, spec)
        where = path.parent
    else:
        folders = _walk(path)
        found = _kaldi(path, folders, spec) or _manifests(path, folders, spec)
        if found is None and any(
            file.suffix.lower() in DATASETS_SUFFIXES for files in folders.values() for file in files
        ):
            return None
        found = found or _transcripts(path, folders, spec) or _bare(path, folders, spec)
        where = path
    if found is None:
        return None
    if spec.subset is not None:
        raise InputError(f"{path} is a folder of audio and has no subsets; remove --subset {spec.subset}")
    for column, option in ((spec.audio_column, "audio"), (spec.text_column, "text")):
        if column is not None and found.audio_column is None:
            raise InputError(f"{path} has no table with columns; remove --{option}-column {column}")
    return _source(where, found, spec)


def _walk(top: Path) -> dict[Path, list[Path]]:
    """List the folders from `top` down with their files, sorted by name. Skips hidden files, because macOS writes a
    ._NAME.wav next to each file. Follows links, but lists no folder twice."""
    folders: dict[Path, list[Path]] = {}
    seen = set()
    for name, below, files in os.walk(top, followlinks=True):
        stat = Path(name).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            below.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        below[:] = sorted(child for child in below if not child.startswith((".", "__MACOSX")))
        folder = Path(name)
        folders[folder] = sorted(folder / file for file in files if not file.startswith("."))
    return dict(sorted(folders.items()))


def _one_file(path: Path, spec: DatasetSpec) -> _Found | None:
    if is_manifest(path):
        return _table(path, spec, path.stem)
    suffix = path.suffix.lower()
    if is_audio(path):
        return _of_files(path, [path], spec)
    if suffix in DATASETS_SUFFIXES:
        return None
    if suffix in ARCHIVES:
        raise InputError(f"{path} is an archive: unpack it, and give the folder as --dataset")
    raise InputError(
        f"{path} is not a data set: give a folder, a manifest (.jsonl, .json, .csv, .tsv), a .parquet or .tar file, or"
        " an audio file"
    )


def _in_split(top: Path, folders: list[Path], spec: DatasetSpec, also: Callable[[Path], str | None]) -> list[Path]:
    """The folders that belong to the split: those with the split's name in their path, and those for which `also`
    returns it. Raises InputError, listing the splits."""
    if spec.split is None:
        return folders
    kept = [folder for folder in folders if spec.split in folder.relative_to(top).parts or also(folder) == spec.split]
    if not kept:
        parts = {folder.relative_to(top).parts for folder in folders}
        first = sorted({names[0] for names in parts if names})
        has = f"it has: {', '.join(first)}" if first else f"it has no splits; remove --split {spec.split}"
        raise InputError(f"{top} has no split {spec.split!r}; {has}")
    return kept


def _manifests(top: Path, folders: dict[Path, list[Path]], spec: DatasetSpec) -> _Found | None:
    """Read the manifest of the folder, or the manifests of the topmost subfolders that have one, such as splits."""
    chosen: dict[Path, Path] = {}
    for folder, files in folders.items():
        if not any(above in chosen for above in folder.parents):
            manifest = _choose(folder, files, spec)
            if manifest is not None:
                chosen[folder] = manifest
    if not chosen:
        return None
    if top in chosen:
        return _table(chosen[top], spec, chosen[top].stem)
    kept = _in_split(top, list(chosen), spec, lambda folder: chosen[folder].stem)
    tables = [_table(chosen[folder], spec, spec.split) for folder in kept]
    first = tables[0]
    for other, folder in zip(tables, kept, strict=True):
        if (other.audio_column, other.text_column) != (first.audio_column, first.text_column):
            raise InputError(
                f"{chosen[kept[0]]} and {chosen[folder]} have their text or audio in different columns: give one of the"
                " two files as --dataset"
            )
    names = ", ".join(str(chosen[folder].relative_to(top)) for folder in kept[:3])
    more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
    return _Found(
        [row for table in tables for row in table.rows],
        [f"read {names}{more}", *first.notes],
        first.audio_column,
        first.text_column,
        first.segment_columns,
        first.warnings,
    )


def _choose(folder: Path, files: list[Path], spec: DatasetSpec) -> Path | None:
    """The manifest of a folder, if it has one. Raises InputError if several files could be the manifest."""
    found = [file for file in files if file.suffix.lower() != ".json" and is_manifest(file)]
    # Ignore a table of speakers next to a manifest. Take a single table, so that its wrong columns are reported.
    for stem in (spec.split, "manifest", "metadata"):
        named = [file for file in found if file.stem == stem]
        if len(named) == 1:
            return named[0]
        if len(named) > 1:
            found = named
            break
    if not found:
        clips = {file.stem for file in files if is_audio(file)}
        found = [file for file in files if file.stem not in clips and is_manifest(file)]
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:5]) + (", …" if len(found) > 5 else "")
        raise InputError(f"{folder} holds several manifests ({names}): choose one with --dataset or --split")
    return found[0] if found else None


def _table(manifest: Path, spec: DatasetSpec, is_split: str | None) -> _Found:
    """Read the rows of a manifest. Raises InputError if it is unreadable, or lacks an audio or wanted column."""
    rows = read_rows(manifest)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    audio_column = pick_column(spec.audio_column, AUDIO_COLUMNS, columns, "audio")
    if audio_column is None:
        raise InputError(
            f"{manifest} has no audio column among {', '.join(columns)}: choose one with --audio-column"
            f" (known names: {', '.join(AUDIO_COLUMNS)})"
        )
    text_column = pick_column(spec.text_column, TEXT_COLUMNS, columns, "text")
    notes = [] if text_column else [no_text(columns)]
    if spec.split is not None and spec.split != is_split:
        if "split" not in columns:
            raise InputError(f"{manifest} has no column 'split', so --split {spec.split} has no effect; remove it")
        splits = sorted({str(row.get("split")) for row in rows})
        rows = [row for row in rows if row.get("split") == spec.split]
        if not rows:
            raise InputError(f"{manifest} has no split {spec.split!r}; it has: {', '.join(splits)}")
    of_files = [row for row in rows if not is_inside(row.get(audio_column))]
    segments = segment_columns(tuple(columns))
    if segments and not any(map(segments.cut, of_files)):
        segments = None
    return _Found(
        _in_tars(
            [_of_row(manifest, number, row, audio_column, text_column) for number, row in enumerate(rows)],
            [file_name(row.get(audio_column)) for row in rows],
            manifest.parent,
        ),
        notes,
        audio_column,
        text_column,
        segments.names if segments else [],
        warning_of(name for row in of_files[:ROWS_LOOKED_AT] for name in unused_times(row)),
    )


def _in_tars(rows: list[_Row], names: list[str | None], folder: Path) -> list[_Row]:
    """Find missing audio files in the folder's tar files, as in NeMo's tarred data sets."""

    def is_missing(row: _Row) -> bool:
        audio = row.recording.audio
        return isinstance(audio, Path) and not is_file(audio)

    archives = [file for file in folder.iterdir() if file.suffix.lower() == tar.TAR_SUFFIX]
    if not archives or not any(map(is_missing, rows)):
        return rows
    members, placed = tar.Members(archives), []
    for row, name in zip(rows, names, strict=True):
        member = members.find(name or "") if is_missing(row) else None
        placed.append(_Row(replace(row.recording, audio=None), member) if member else row)
    return placed


def _of_row(manifest: Path, number: int, row: dict[str, Any], audio_column: str, text_column: str | None) -> _Row:
    cell = row.get(audio_column)
    name = file_name(cell)
    try:
        text, (offset_s, length_s) = text_of(row, text_column), segment_of(row, cell)
        # Audio inside the table is read when its row is converted, because it takes memory.
        audio = None if is_inside(cell) else find_audio(cell, row, manifest.parent)
    except InputError as error:
        raise InputError(f"{manifest}, row {number + 1}: {error}") from None
    wanted = row.get("id")
    if wanted in (None, ""):
        wanted = Path(name).stem if name else f"row-{number:06d}"
    file = audio if isinstance(audio, Path) else None
    recording = Recording(str(wanted), text, file, offset_s, length_s)
    waits = is_inside(cell) or isinstance(audio, Url)
    return _Row(recording, cell, row) if waits else _Row(recording)


def _kaldi(top: Path, folders: dict[Path, list[Path]], spec: DatasetSpec) -> _Found | None:
    found = [folder for folder, files in folders.items() if folder / kaldi.SCP in files]
    if not found:
        return None
    kept = _in_split(top, found, spec, lambda folder: top.name if folder == top else None)
    rows = [_Row(recording) for folder in kept for recording in kaldi.read_folder(folder)]
    # A recipe's file names are relative to the recipe, which is in the folder above its data/.
    absolute = top.absolute()
    roots = [place.parent for place in (absolute, absolute.parent) if place.name == "data"]
    text = any(row.recording.text for row in rows)
    return _Found(rows, ["Kaldi's wav.scp" + ("" if text else " without a file 'text', so no WER")], roots=roots)


def _transcripts(top: Path, folders: dict[Path, list[Path]], spec: DatasetSpec) -> _Found | None:
    """Read LibriSpeech: each chapter has a file of `UTTERANCE TEXT` lines next to its audio."""
    found = [folder for folder, files in folders.items() if any(file.name.endswith(TRANSCRIPTS) for file in files)]
    if not found:
        return None
    rows = []
    for folder in _in_split(top, found, spec, lambda _: None):
        audio = {file.stem: file for file in folders[folder] if is_audio(file)}
        for file in folders[folder]:
            if file.name.endswith(TRANSCRIPTS):
                for line in filter(str.strip, read_text(file).splitlines()):
                    name, _, text = line.strip().partition(" ")
                    rows.append(_Row(Recording(name, text.strip(), audio.get(name))))
    return _Found(rows, ["LibriSpeech's *.trans.txt"])


def _bare(top: Path, folders: dict[Path, list[Path]], spec: DatasetSpec) -> _Found | None:
    """Read every audio file, by name, with the text of the .txt file next to it, if there is one."""
    with_audio = [folder for folder, files in folders.items() if any(is_audio(file) for file in files)]
    if not with_audio:
        what = "audio files, manifest (.jsonl, .json, .csv, .tsv), Kaldi wav.scp, parquet or tar files"
        archive = next((file for files in folders.values() for file in files if file.suffix.lower() in ARCHIVES), None)
        also = f"; unpack {archive.name} first" if archive else ""
        raise InputError(f"{top} is not a data set: it and its subfolders have no {what}{also}")
    kept = _in_split(top, with_audio, spec, lambda _: None)
    return _of_files(top, [file for folder in kept for file in folders[folder] if is_audio(file)], spec)


def _of_files(top: Path, files: list[Path], spec: DatasetSpec) -> _Found:
    if spec.split is not None and top.is_file():
        raise InputError(f"{top} is one file and has no splits; remove --split {spec.split}")
    rows = []
    for file in files:
        text = file.with_suffix(".txt")
        rows.append(_Row(Recording(file.stem, read_text(text).strip() if is_file(text) else "", file)))
    texts = sum(bool(row.recording.text) for row in rows)
    notes = [f"no manifest; read the text of {texts} of {len(rows)} files from the .txt next to each"]
    return _Found(rows, notes if texts else ["no manifest and no .txt next to the audio: no transcripts, so no WER"])


class _Recordings:
    def __init__(self, rows: list[_Row], state: dict[str, Any] | None, allow_outside: bool) -> None:
        self._rows, self._allow_outside = rows, allow_outside
        self._taken = state["taken"] if state else 0

    def __iter__(self) -> Iterator[Recording]:
        while self._taken < len(self._rows):
            row = self._rows[self._taken]
            self._taken += 1
            yield row.recording if row.cell is None else self._make(row)

    def _make(self, row: _Row) -> Recording:
        if isinstance(row.cell, tar.Member):
            return replace(row.recording, audio=row.cell.read())
        try:
            audio = find_audio(row.cell, row.beside or {}, None)
            if not self._allow_outside:
                check_place(audio, [])
            return replace(row.recording, audio=fetch(audio) if isinstance(audio, Url) else audio)
        except InputError as error:
            raise InputError(f"row {self._taken}: {error}") from None

    def state(self) -> dict[str, Any]:
        return {"taken": self._taken}


def _source(folder: Path, found: _Found, spec: DatasetSpec) -> Source:
    # The hash depends on the rows and the files' content, not on the folder's location.
    state = hashlib.sha256()
    archive = cache(fingerprint)
    for row in found.rows:
        recording = row.recording
        if not spec.allow_outside:
            try:
                check_place(recording.audio, [folder if folder.is_dir() else folder.parent, *found.roots])
            except InputError as error:
                raise InputError(f"--dataset {spec.dataset}: {error}") from None
        file = fingerprint(recording.audio) if isinstance(recording.audio, Path) and is_file(recording.audio) else None
        state.update(repr((recording.id, recording.text, file, recording.offset_s, recording.length_s)).encode())
        if isinstance(row.cell, tar.Member):
            state.update(repr((archive(row.cell.archive), row.cell.at, row.cell.size)).encode())
        elif row.cell is not None:
            state.update(msgspec.json.encode(row.cell, enc_hook=repr))
    origin = {
        "dataset": folder.resolve().name,
        "kind": "folder",
        "subset": None,
        "split": spec.split,
        "text_column": found.text_column,
        "audio_column": found.audio_column,
        "segment_columns": found.segment_columns,
        "state": state.hexdigest(),
    }
    return Source(
        origin,
        lambda state: _Recordings(found.rows, state, spec.allow_outside),
        len(found.rows),
        found.notes,
        found.warnings,
    )
