"""Everything that Hugging Face `datasets` reads: hub ids (streamed), local folders, parquet files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets.utils.file_utils import xopen

from asr_load.audio.clip import Recording
from asr_load.audio.source import AUDIO_COLUMNS, TEXT_COLUMNS, Request, Source, fingerprint, pick_column
from asr_load.errors import InputError


def open_dataset(path: Path | None, request: Request) -> Source:
    """Rows of a data set on disk (`path`) or, where that is None, on the hub. Raises InputError.

    Everything is streamed, so that a few clips of a large corpus cost a few clips' download, and nothing is copied
    into a cache. Audio is taken undecoded: neither torchcodec nor FFmpeg is needed.
    """
    datasets.disable_progress_bars()
    try:
        if path is not None and (path.is_file() or _is_saved(path)):
            return _open_files(path, request)
        return _open_configured(path, request)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        where = "" if path is not None else " (no such folder here, so it was looked for on the Hugging Face hub)"
        raise InputError(f"--dataset {request.dataset} cannot be read{where}: {_first_line(error)}") from error


def _open_configured(path: Path | None, request: Request) -> Source:
    name = request.dataset if path is None else str(path)
    configs: list[str] = datasets.get_dataset_config_names(name)
    if request.subset is not None and request.subset not in configs:
        raise InputError(f"{request.dataset} has no subset {request.subset!r}; it has: {', '.join(configs)}")
    config, splits, notes = _choose(name, configs, request, local=path is not None)
    parts = [datasets.load_dataset(name, config, split=split, streaming=True) for split in splits]
    files = datasets.load_dataset_builder(name, config).config.data_files or {}
    # A hub file's name carries the commit.
    state = [
        str(file) if path is None else (Path(file).name, fingerprint(Path(file)))
        for split in splits
        for file in files.get(split, [])
    ]
    which = {"subset": config, "split": "+".join(splits), "state": _digest(state)}
    return _source(parts, path, request, which, notes)


def _choose(name: str, configs: list[str], request: Request, local: bool) -> tuple[str, list[str], list[str]]:
    """The config, its splits, and what to tell the person about the choice."""

    def splits_of(config: str) -> list[str]:
        return [str(split) for split in datasets.get_dataset_split_names(name, config)]

    default = request.subset or datasets.get_dataset_default_config_name(name) or configs[0]
    # The default first: a split that it has is taken from it, else from the first config that has it.
    candidates = [default] if request.subset else [default, *(config for config in configs if config != default)]
    if request.split is None:
        splits = splits_of(default)
        if len(splits) > 1 and not local:
            raise InputError(f"{request.dataset} ({default}) has several splits: name one of {', '.join(splits)}")
        return default, splits, []
    seen = {}
    for config in candidates:
        seen[config] = splits_of(config)
        if request.split not in seen[config]:
            continue
        others = [other for other in configs if other != config]
        chosen = f"no --subset was given: took {config!r}, which has the split {request.split!r}; there are also: "
        notes = [chosen + ", ".join(others)] if others and request.subset is None else []
        return config, [request.split], notes
    possible = "; ".join(f"{config}: {', '.join(splits)}" for config, splits in seen.items())
    raise InputError(f"{request.dataset} has no split {request.split!r}; it has: {possible}")


def _is_saved(path: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _open_files(path: Path, request: Request) -> Source:
    """A parquet file, or a folder that save_to_disk wrote."""
    if request.subset is not None:
        raise InputError(f"{path} has no subsets: leave --subset {request.subset} out")
    if path.is_dir():
        saved = datasets.load_from_disk(str(path))
        by_split = saved if isinstance(saved, datasets.DatasetDict) else {"all": saved}
        if request.split is not None and request.split not in by_split:
            raise InputError(f"{path} has no split {request.split!r}; it has: {', '.join(by_split)}")
        chosen = [request.split] if request.split is not None else list(by_split)
        parts = [by_split[split].to_iterable_dataset() for split in chosen]
        state: list[Any] = [by_split[split]._fingerprint for split in chosen]
    elif path.suffix == ".parquet":
        if request.split is not None:
            raise InputError(f"{path} is one parquet file: it has no splits, leave --split {request.split} out")
        parts = [datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)]
        state = [path.name, fingerprint(path)]
    else:
        raise InputError(f"{path} is no data set: a folder, a .parquet file, or a .jsonl, .csv or .tsv manifest is")
    base = path if path.is_dir() else path.parent
    return _source(parts, base, request, {"subset": None, "split": request.split, "state": _digest(state)}, [])


def _digest(state: list[Any]) -> str:
    return hashlib.sha256(repr(state).encode()).hexdigest()


def _source(parts: list[Any], base: Path | None, request: Request, which: dict[str, Any], notes: list[str]) -> Source:
    columns = list(parts[0].column_names or next(iter(parts[0])))
    audio_column = pick_column(request.audio_column, AUDIO_COLUMNS, columns, "audio")
    if audio_column is None:
        raise InputError(f"no column of audio among {', '.join(columns)}: name it with --audio-column")
    text_column = pick_column(request.text_column, TEXT_COLUMNS, columns, "text")
    if text_column is None:
        notes.append(f"no transcripts found among {', '.join(columns)}: there will be no WER (see --text-column)")
    parts = [_undecoded(part, audio_column) for part in parts]

    def recording(row: dict[str, Any], number: int) -> Recording:
        audio, file = _audio(row[audio_column], base)
        stem = Path(file).stem if file else row.get("id")
        text = row[text_column] if text_column else None
        return Recording(str(stem or f"row-{number:06d}"), "" if text is None else str(text), audio)

    origin = {
        "dataset": request.dataset if base is None else base.resolve().name,
        "kind": "datasets",
        **which,
        "text_column": text_column,
        "audio_column": audio_column,
    }
    return Source(origin, lambda state: _Rows(parts, recording, state), notes=notes)


class _Rows:
    """Rows of one data set after the other. Its state is that of `datasets`: files read before are not read again."""

    def __init__(
        self, parts: list[Any], recording: Callable[[dict[str, Any], int], Recording], state: dict[str, Any] | None
    ) -> None:
        self._parts, self._recording = parts, recording
        self._part, self._number = 0, 0
        if state is not None:
            self._part, self._number = state["part"], state["number"]
            parts[self._part].load_state_dict(state["inner"])

    def __iter__(self) -> Iterator[Recording]:
        for part in range(self._part, len(self._parts)):
            self._part = part
            for row in self._parts[part]:
                self._number += 1
                yield self._recording(row, self._number - 1)

    def state(self) -> dict[str, Any]:
        return {"part": self._part, "number": self._number, "inner": self._parts[self._part].state_dict()}


def _undecoded(part: Any, audio_column: str) -> Any:
    features = part.features
    if features is not None and isinstance(features.get(audio_column), datasets.Audio):
        return part.cast_column(audio_column, datasets.Audio(decode=False))
    return part


def _audio(value: Any, base: Path | None) -> tuple[bytes | Path | None, str | None]:
    """The encoded audio of a cell and the name of its file: {bytes, path}, bytes, or a path."""
    if isinstance(value, dict):
        data, name = value.get("bytes"), value.get("path")
        if data is not None:
            return data, name
        value = name
    if isinstance(value, bytes):
        return value, None
    if isinstance(value, str) and "://" in value:
        with xopen(value, "rb") as remote:
            return remote.read(), value.split("::")[0]
    if isinstance(value, str) and value:
        file = Path(value)
        return (file if base is None or file.is_absolute() else base / file), value
    return None, None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
