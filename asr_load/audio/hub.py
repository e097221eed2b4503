"""Read data sets with Hugging Face `datasets`: from the hub (streamed), and local parquet, Arrow and tar files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from asr_load.audio.cell import check_place, file_name, find_audio, is_inside, segment_of, text_of
from asr_load.audio.clip import Recording
from asr_load.audio.columns import (
    AUDIO_COLUMNS,
    TEXT_COLUMNS,
    no_text,
    pick_column,
    segment_columns,
    unused_times,
    warning_of,
)
from asr_load.audio.download import CURE, Url, fetch, is_refused
from asr_load.audio.source import DatasetSpec, Source, fingerprint, is_saved
from asr_load.audio.tar import TAR_SUFFIX, TarSamples, in_order
from asr_load.errors import InputError
from asr_load.text import striker

ROWS_AT_ONCE = 16
"""Rows to read at once from a parquet file. By default `datasets` reads a whole row group, which is gigabytes if
recordings are long."""

ANSWER_S, RETRY_AFTER_S = 10.0, 1.0
"""Timeout of a request to the hub, and the pause before the only retry, in seconds."""


def open_dataset(path: Path | None, spec: DatasetSpec) -> Source:
    """Open a data set on disk (`path`) or, if `path` is None, on the hub. Raises InputError.

    Streams everything, so that a few clips of a large corpus cost only their own download, and copies nothing into a
    cache. Reads audio undecoded, so that neither torchcodec nor FFmpeg is needed.
    """
    datasets.disable_progress_bars()
    if path is not None and spec.revision is not None:
        raise InputError(f"--revision {spec.revision} applies only to the hub, but {path} is a local file or folder")
    try:
        if path is not None:
            return _open_files(path, spec) if path.is_file() or is_saved(path) else _open_configured(path, spec, None)
        info = _ask(spec.dataset, spec.revision)
        if spec.revision == CONVERTED:
            return _open_converted(spec, [])
        if info is not None and _has_script(info):
            return _open_converted(spec, [f"{spec.dataset} has a loading script; using the hub's {CONVERTED}"])
        return _open_configured(None, spec, info.sha if info is not None else None)
    except InputError:
        raise
    except Exception as error:  # pyarrow, fsspec, YAML and refused scripts each raise different ones
        raise _cannot_be_read(spec.dataset, error) from error


def _ask(name: str, revision: str | None) -> huggingface_hub.DatasetInfo | None:
    """The hub's description of a data set; None offline. Raises InputError if it does not exist.

    Fails faster than `datasets`, which retries for half a minute.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None  # `datasets` reads its cached files
    for last in (False, True):
        try:
            return huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=ANSWER_S)
        except huggingface_hub.errors.RevisionNotFoundError as error:
            raise InputError(f"--dataset {name} has no revision {revision!r}") from error
        except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as error:
            # The hub hides data sets without access, so "not found" may mean that.
            cure = f" ({CURE})" if is_refused(error) else ""
            raise InputError(
                f"--dataset {name}: there is no such local folder, and the Hugging Face hub responded:"
                f" {_first_line(error)}{cure}"
            ) from error
        except Exception as error:  # any network error, from any library
            if last:
                raise InputError(
                    f"--dataset {name}: there is no such local folder, and the Hugging Face hub cannot be reached"
                    f" ({_first_line(error)})"
                ) from error
            time.sleep(RETRY_AFTER_S)
    raise AssertionError


def _has_script(info: huggingface_hub.DatasetInfo) -> bool:
    """Whether a data set has a loading script, which `datasets` 4 and later do not run."""
    script = f"{info.id.rpartition('/')[2]}.py"
    return any(file.rfilename == script for file in info.siblings or ())


def _open_configured(path: Path | None, spec: DatasetSpec, commit: str | None) -> Source:
    """Open a data set by its configurations. `commit` pins a data set on the hub; None offline and for a folder."""
    name = spec.dataset if path is None else str(path)
    revision = commit or spec.revision
    configs: list[str] = datasets.get_dataset_config_names(name, revision=revision)
    default = datasets.get_dataset_default_config_name(name, revision=revision)

    def splits_of(config: str) -> list[str]:
        return [str(split) for split in datasets.get_dataset_split_names(name, config, revision=revision)]

    def splits_of_tars(config: str) -> list[str]:
        # To list them, `datasets` would read samples, and refuse data sets whose samples differ.
        return list(map(str, datasets.load_dataset_builder(name, config, revision=revision).config.data_files or {}))

    in_tars = isinstance(datasets.load_dataset_builder(name, default or configs[0], revision=revision), WebDataset)
    config, splits, notes = _choose(
        configs, default, splits_of_tars if in_tars else splits_of, spec, local=path is not None
    )
    builder = datasets.load_dataset_builder(name, config, revision=revision)
    files = builder.config.data_files or {}
    words: dict[str, Any] = {"batch_size": ROWS_AT_ONCE} if isinstance(builder, Parquet) else {}
    words |= {"revision": revision, "streaming": True}
    parts: list[Any] = (
        [TarSamples([str(file) for file in in_order(files[split])]) for split in splits]
        if in_tars
        else [datasets.load_dataset(name, config, split=split, **words) for split in splits]
    )
    # The name of a file on the hub contains the commit.
    state = [
        str(file) if path is None else (Path(file).name, fingerprint(Path(file)))
        for split in splits
        for file in files.get(split, [])
    ]
    which: dict[str, Any] = {"subset": config, "split": "+".join(splits), "state": _digest(state)}
    if path is None:
        which |= {"revision": spec.revision, "commit": commit}
    return _source(parts, path, spec, which, notes)


CONVERTED = "refs/convert/parquet"
"""The branch with the hub's own conversion of each data set, as CONFIG/SPLIT/NUMBER.parquet."""


def _open_converted(spec: DatasetSpec, notes: list[str]) -> Source:
    """Open the hub's parquet conversion of a data set. Raises InputError if the hub has not converted it."""
    api = huggingface_hub.HfApi()
    try:
        commit = api.dataset_info(spec.dataset, revision=CONVERTED, timeout=ANSWER_S).sha
        files = api.list_repo_files(spec.dataset, repo_type="dataset", revision=commit)
    except huggingface_hub.errors.HfHubHTTPError as error:
        raise InputError(
            f"--dataset {spec.dataset} has a loading script, which `datasets` does not run, and no parquet conversion"
            f" ({CONVERTED}) on the hub: {_first_line(error)}"
        ) from error
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(files):
        config, _, rest = file.partition("/")
        split, _, name = rest.partition("/")
        if name.endswith(".parquet"):
            # The hub converts only the first 5 GB of a large split, under this name.
            found.setdefault(config, {}).setdefault(split.removeprefix("partial-"), []).append(file)
    if not found:
        raise InputError(f"--dataset {spec.dataset}: {CONVERTED} holds no parquet files")
    config, splits, choice = _choose(list(found), None, lambda config: list(found[config]), spec, local=False)
    parts = [
        datasets.load_dataset(
            "parquet",
            data_files=[f"hf://datasets/{spec.dataset}@{commit}/{file}" for file in found[config][split]],
            split="train",
            streaming=True,
            batch_size=ROWS_AT_ONCE,
        )
        for split in splits
    ]
    if any(file.split("/")[1].startswith("partial-") for split in splits for file in found[config][split]):
        choice.append(f"{CONVERTED} contains only the first 5 GB of the data set")
    state = [commit, *(file for split in splits for file in found[config][split])]
    which: dict[str, Any] = {"subset": config, "split": "+".join(splits), "state": _digest(state)}
    which |= {"revision": spec.revision, "commit": commit}
    return _source(parts, None, spec, which, [*notes, *choice])


def _choose(
    configs: list[str],
    usual: str | None,
    splits_of: Callable[[str], list[str]],
    spec: DatasetSpec,
    *,
    local: bool,
) -> tuple[str, list[str], list[str]]:
    """Choose a configuration and its splits. Returns them with notes for the user. Raises InputError."""
    if spec.subset is not None and spec.subset not in configs:
        raise InputError(f"{spec.dataset} has no subset {spec.subset!r}; it has: {', '.join(configs)}")
    default = spec.subset or usual or configs[0]
    # Prefer the default configuration; otherwise take the first one that has the split.
    candidates = [default] if spec.subset else [default, *(config for config in configs if config != default)]
    if spec.split is None:
        splits = splits_of(default)
        if len(splits) > 1 and not local:
            raise InputError(f"{spec.dataset} ({default}) has several splits: set --split to {', '.join(splits)}")
        return default, splits, []
    seen = {}
    for config in candidates:
        seen[config] = splits_of(config)
        if spec.split not in seen[config]:
            continue
        others = [other for other in configs if other != config]
        chosen = f"no --subset given: using {config!r}, which has the split {spec.split!r}; other subsets: "
        notes = [chosen + ", ".join(others)] if others and spec.subset is None else []
        return config, [spec.split], notes
    possible = "; ".join(f"{config}: {', '.join(splits)}" for config, splits in seen.items())
    raise InputError(f"{spec.dataset} has no split {spec.split!r}; it has: {possible}")


def _open_files(path: Path, spec: DatasetSpec) -> Source:
    """Open a parquet, Arrow or tar file, or a folder that save_to_disk wrote."""
    if spec.subset is not None:
        raise InputError(f"{path} has no subsets; remove --subset {spec.subset}")
    if path.is_dir():
        saved = datasets.load_from_disk(str(path))
        by_split = saved if isinstance(saved, datasets.DatasetDict) else {"all": saved}
        if spec.split is not None and spec.split not in by_split:
            raise InputError(f"{path} has no split {spec.split!r}; it has: {', '.join(by_split)}")
        chosen = [spec.split] if spec.split is not None else list(by_split)
        parts = [by_split[split].to_iterable_dataset() for split in chosen]
        state: list[Any] = [by_split[split]._fingerprint for split in chosen]
    else:
        if spec.split is not None:
            raise InputError(f"{path} is one file and has no splits; remove --split {spec.split}")
        parts = [_open_file(path)]
        state = [path.name, fingerprint(path)]
    base = path if path.is_dir() else path.parent
    return _source(parts, base, spec, {"subset": None, "split": spec.split, "state": _digest(state)}, [])


def _open_file(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == TAR_SUFFIX:
        return TarSamples([str(path)])
    kind, at_once = ("parquet", {"batch_size": ROWS_AT_ONCE}) if suffix == ".parquet" else ("arrow", {})
    return datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True, **at_once)


def _digest(state: list[Any]) -> str:
    return hashlib.sha256(repr(state).encode()).hexdigest()


def _source(parts: list[Any], base: Path | None, spec: DatasetSpec, which: dict[str, Any], notes: list[str]) -> Source:
    # Turn off decoding first: finding the columns may read a row.
    parts = [part.decode(False) for part in parts]
    columns = list(parts[0].column_names or next(iter(parts[0]), {}))
    audio_column = pick_column(spec.audio_column, AUDIO_COLUMNS, columns, "audio")
    if audio_column is None:
        raise InputError(f"no audio column among {', '.join(columns) or 'none'}: choose one with --audio-column")
    text_column = pick_column(spec.text_column, TEXT_COLUMNS, columns, "text")
    if text_column is None:
        notes.append(no_text(columns))
    segments, warnings = _times(parts[0], columns, audio_column)

    def recording(row: dict[str, Any], number: int) -> Recording:
        cell = row.get(audio_column)
        audio, name = find_audio(cell, row, base), file_name(cell)
        if base is None and isinstance(audio, Path) and not audio.is_absolute() and ".." not in audio.parts:
            # A file in the data set's repository, as in Earnings22-Cleaned.
            revision = which["commit"] or spec.revision or "main"
            audio = Url(f"hf://datasets/{spec.dataset}@{revision}/{audio.as_posix()}")
        if not spec.allow_outside:
            # `datasets` downloads files from the hub to this folder.
            check_place(audio, [Path(datasets.config.HF_CACHE_HOME) if base is None else base])
        stem = Path(name).stem if name else row.get("id")
        return Recording(
            str(stem or f"row-{number:06d}"),
            text_of(row, text_column),
            fetch(audio) if isinstance(audio, Url) else audio,
            *segment_of(row, cell),
        )

    origin = {
        "dataset": spec.dataset if base is None else base.resolve().name,
        "kind": "datasets",
        **which,
        "text_column": text_column,
        "audio_column": audio_column,
        "segment_columns": segments,
    }
    return Source(origin, lambda state: _Recordings(spec.dataset, parts, recording, state), None, notes, warnings)


def _times(part: Any, columns: list[str], audio_column: str) -> tuple[list[str], list[str]]:
    """The columns that define segments of files, and a warning about others that look like times. Reads the first row
    if the names of the columns require it."""
    segments = segment_columns(tuple(columns))
    if segments is None and not unused_times(dict.fromkeys(columns, 0)):
        return [], []
    row: dict[str, Any] = next(iter(part), {})
    if is_inside(row.get(audio_column)):
        return [], []
    return segments.names if segments and segments.cut(row) else [], warning_of(unused_times(row))


class _Recordings:
    """Rows of several data sets in turn. Uses the state of `datasets`, so that resuming does not read files again."""

    def __init__(
        self,
        name: str,
        parts: list[Any],
        recording: Callable[[dict[str, Any], int], Recording],
        state: dict[str, Any] | None,
    ) -> None:
        self._name, self._parts, self._recording = name, parts, recording
        self._part, self._number = 0, 0
        if state is not None:
            self._part, self._number = state["part"], state["number"]
            parts[self._part].load_state_dict(state["inner"])

    def __iter__(self) -> Iterator[Recording]:
        for part in range(self._part, len(self._parts)):
            self._part = part
            rows = iter(self._parts[part])
            while (row := self._next(rows)) is not None:
                self._number += 1
                try:
                    yield self._recording(row, self._number - 1)
                except InputError as error:
                    raise InputError(f"--dataset {self._name}, row {self._number}: {error}") from None

    def _next(self, rows: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        try:
            return next(rows, None)
        except Exception as error:  # pyarrow, fsspec, zstd and the network each raise different ones
            raise _cannot_be_read(f"{self._name}, row {self._number + 1}", error) from error

    def state(self) -> dict[str, Any]:
        return {"part": self._part, "number": self._number, "inner": self._parts[self._part].state_dict()}


def _cannot_be_read(what: str, error: Exception) -> InputError:
    # The data set is known to exist. `datasets` reports refused access as "not found" and drops the cause.
    refused = isinstance(error, datasets.exceptions.DatasetNotFoundError) or is_refused(error)
    reason = _first_line(error) + (f" ({CURE})" if refused else "")
    return InputError(f"--dataset {what}: cannot be read: {reason}")


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return striker(filter(None, [huggingface_hub.get_token()]))(line)
