"""A folder of audio on this machine, in any layout that people who work on speech keep theirs."""

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
from asr_load.audio.cell import SUFFIXES, Url, check_place, fetch, file_name, find_audio, is_inside, segment_of, text_of
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
from asr_load.audio.manifest import is_manifest, read_rows, read_text
from asr_load.audio.source import DatasetSpec, Source, fingerprint, is_saved
from asr_load.errors import InputError

DATASETS_SUFFIXES = (".parquet", ".arrow", tar.SUFFIX)
"""Of files that Hugging Face `datasets` keeps rows in."""

ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
TRANSCRIPTS = ".trans.txt"

ROWS_LOOKED_AT = 100
"""Of a table, for columns that look like times."""


@dataclass(frozen=True)
class _Row:
    """A recording whose audio, if that is no file, is still to be made out of a table's cell."""

    recording: Recording
    cell: Any = None
    beside: dict[str, Any] | None = None
    """The table's other columns, where `cell` says something."""


@dataclass
class _Found:
    rows: list[_Row]
    notes: list[str]
    audio_column: str | None = None
    text_column: str | None = None
    segment_columns: list[str] = field(default_factory=list)
    """Those that say which parts of their files the rows are."""
    warnings: list[str] = field(default_factory=list)
    roots: Sequence[Path] = ()
    """Other folders that its audio may lie in than the one that was named."""


def open_folder(path: Path, spec: DatasetSpec) -> Source | None:
    """The recordings of a folder, a manifest or one file of audio; None where only `datasets` can read it. Raises
    InputError.

    Looked for in this order, in the folder itself and then in all below it: Kaldi's wav.scp, a manifest (SPLIT.*, as
    Common Voice's test.tsv; manifest.*; metadata.*; the only one there is), LibriSpeech's *.trans.txt, files of audio.
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
        raise InputError(f"{path} is a folder of audio: it has no subsets, leave --subset {spec.subset} out")
    for asked, option in ((spec.audio_column, "audio"), (spec.text_column, "text")):
        if asked is not None and found.audio_column is None:
            raise InputError(f"{path} has no table with columns: leave --{option}-column {asked} out")
    return _source(where, found, spec)


def _walk(top: Path) -> dict[Path, list[Path]]:
    """The folders from `top` down and the files of each, in the order of their names. Hidden ones are left out: macOS
    writes a ._NAME.wav beside each file. Links are followed, and no folder is taken twice."""
    folders: dict[Path, list[Path]] = {}
    seen = set()
    for name, below, files in os.walk(top, followlinks=True):
        stat = Path(name).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            below.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        below[:] = sorted(each for each in below if not each.startswith((".", "__MACOSX")))
        folder = Path(name)
        folders[folder] = sorted(folder / file for file in files if not file.startswith("."))
    return dict(sorted(folders.items()))


def _one_file(path: Path, spec: DatasetSpec) -> _Found | None:
    if is_manifest(path):
        return _table(path, spec, path.stem)
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return _of_files(path, [path], spec)
    if suffix in DATASETS_SUFFIXES:
        return None
    if suffix in ARCHIVES:
        raise InputError(f"{path} is an archive: unpack it, and name the folder")
    raise InputError(
        f"{path} is no data set: a folder, a manifest (.jsonl, .json, .csv, .tsv), a .parquet or .tar file or audio is"
    )


def _in_split(top: Path, folders: list[Path], spec: DatasetSpec, also: Callable[[Path], str | None]) -> list[Path]:
    """Those of the folders that belong to the split: a folder on the way has its name, or `also` says that it does.
    Raises InputError, with the splits that there are."""
    if spec.split is None:
        return folders
    kept = [folder for folder in folders if spec.split in folder.relative_to(top).parts or also(folder) == spec.split]
    if not kept:
        parts = {folder.relative_to(top).parts for folder in folders}
        first = sorted({each[0] for each in parts if each})
        has = f"it has: {', '.join(first)}" if first else f"it has none, leave --split {spec.split} out"
        raise InputError(f"{top} has no split {spec.split!r}; {has}")
    return kept


def _manifests(top: Path, folders: dict[Path, list[Path]], spec: DatasetSpec) -> _Found | None:
    """Manifests of the topmost folders that have one each: of the folder itself, or of splits below it."""
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
                f"{chosen[kept[0]]} and {chosen[folder]} have their text or audio in different columns: name one of the"
                " two files with --dataset"
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
    """The manifest of a folder. Raises InputError if it could be several."""
    found = [file for file in files if file.suffix.lower() != ".json" and is_manifest(file)]
    # A table of speakers beside others is no manifest; one alone is, so that its wrong columns are said.
    for stem in (spec.split, "manifest", "metadata"):
        named = [file for file in found if file.stem == stem]
        if len(named) == 1:
            return named[0]
        if len(named) > 1:
            found = named
            break
    if not found:
        clips = {file.stem for file in files if file.suffix.lower() in SUFFIXES}
        found = [file for file in files if file.stem not in clips and is_manifest(file)]
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:5]) + (", …" if len(found) > 5 else "")
        raise InputError(f"{folder} holds several manifests ({names}): name one of them with --dataset or --split")
    return found[0] if found else None


def _table(manifest: Path, spec: DatasetSpec, is_split: str | None) -> _Found:
    """Rows of a manifest. Raises InputError if it cannot be read, names no audio, or lacks a named column."""
    rows = read_rows(manifest)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    audio_column = pick_column(spec.audio_column, AUDIO_COLUMNS, columns, "audio")
    if audio_column is None:
        raise InputError(
            f"{manifest} names no audio file: no column {', '.join(AUDIO_COLUMNS)}, but {', '.join(columns)};"
            " name the right one with --audio-column"
        )
    text_column = pick_column(spec.text_column, TEXT_COLUMNS, columns, "text")
    notes = [] if text_column else [no_text(columns)]
    if spec.split is not None and spec.split != is_split:
        if "split" not in columns:
            raise InputError(f"{manifest} has no column 'split', so --split {spec.split} says nothing: leave it out")
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
    """Rows whose files are not there, with those that the folder's tar files have, as in NeMo's tarred sets."""

    def is_missing(row: _Row) -> bool:
        audio = row.recording.audio
        return isinstance(audio, Path) and not is_file(audio)

    archives = [file for file in folder.iterdir() if file.suffix.lower() == tar.SUFFIX]
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
        # Audio in the table itself waits for its turn, which takes memory.
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
    # A recipe names its files from where it lies: the folder above its data/.
    absolute = top.absolute()
    roots = [place.parent for place in (absolute, absolute.parent) if place.name == "data"]
    text = any(row.recording.text for row in rows)
    return _Found(rows, ["Kaldi's wav.scp" + ("" if text else "; no file 'text' beside it: no WER")], roots=roots)


def _transcripts(top: Path, folders: dict[Path, list[Path]], spec: DatasetSpec) -> _Found | None:
    """LibriSpeech: a file of `UTTERANCE TEXT` for each chapter, with the audio beside it."""
    found = [folder for folder, files in folders.items() if any(file.name.endswith(TRANSCRIPTS) for file in files)]
    if not found:
        return None
    rows = []
    for folder in _in_split(top, found, spec, lambda _: None):
        audio = {file.stem: file for file in folders[folder] if file.suffix.lower() in SUFFIXES}
        for file in folders[folder]:
            if file.name.endswith(TRANSCRIPTS):
                for line in filter(str.strip, read_text(file).splitlines()):
                    name, _, text = line.strip().partition(" ")
                    rows.append(_Row(Recording(name, text.strip(), audio.get(name))))
    return _Found(rows, ["LibriSpeech's *.trans.txt"])


def _bare(top: Path, folders: dict[Path, list[Path]], spec: DatasetSpec) -> _Found | None:
    """Every file of audio, by name, with the text of the .txt file beside it, if there is one."""
    with_audio = [folder for folder, files in folders.items() if any(file.suffix.lower() in SUFFIXES for file in files)]
    if not with_audio:
        what = "files of audio, a manifest (.jsonl, .json, .csv, .tsv), Kaldi's wav.scp, parquet or tar files"
        archive = next((file for files in folders.values() for file in files if file.suffix.lower() in ARCHIVES), None)
        also = f"; unpack {archive.name} first" if archive else ""
        raise InputError(f"{top} is no data set: it has no {what}, nor has a folder below it{also}")
    kept = _in_split(top, with_audio, spec, lambda _: None)
    return _of_files(
        top, [file for folder in kept for file in folders[folder] if file.suffix.lower() in SUFFIXES], spec
    )


def _of_files(top: Path, files: list[Path], spec: DatasetSpec) -> _Found:
    if spec.split is not None and top.is_file():
        raise InputError(f"{top} is one file: it has no splits, leave --split {spec.split} out")
    rows = []
    for file in files:
        beside = file.with_suffix(".txt")
        rows.append(_Row(Recording(file.stem, read_text(beside).strip() if is_file(beside) else "", file)))
    texts = sum(bool(row.recording.text) for row in rows)
    notes = [f"no manifest: the text of {texts} of {len(rows)} files is in a .txt beside them"]
    return _Found(rows, notes if texts else ["no manifest, and no .txt beside the audio: no transcripts, no WER"])


class _Rows:
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
    # The same wherever the folder lies, and another when a row or a file of it changes.
    state = hashlib.sha256()
    archive = cache(fingerprint)
    for row in found.rows:
        of = row.recording
        if not spec.allow_outside:
            try:
                check_place(of.audio, [folder if folder.is_dir() else folder.parent, *found.roots])
            except InputError as error:
                raise InputError(f"--dataset {spec.dataset}: {error}") from None
        file = fingerprint(of.audio) if isinstance(of.audio, Path) and is_file(of.audio) else None
        state.update(repr((of.id, of.text, file, of.offset_s, of.length_s)).encode())
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
        origin, lambda state: _Rows(found.rows, state, spec.allow_outside), len(found.rows), found.notes, found.warnings
    )
