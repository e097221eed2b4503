"""What Hugging Face `datasets` reads: ids on the hub (streamed), and folders of parquet, Arrow and tar files here."""

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

from asr_load.audio.access import CURE, is_refused
from asr_load.audio.cell import Url, check_place, fetch, file_name, find_audio, is_inside, segment_of, text_of
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
from asr_load.audio.source import DatasetSpec, Source, fingerprint, is_saved
from asr_load.audio.tar import SUFFIX, TarSamples, in_order
from asr_load.errors import InputError
from asr_load.text import striker

ROWS_AT_ONCE = 16
"""Of a parquet file. `datasets` would take a whole row group, which is gigabytes where recordings are long."""

ANSWER_S, RETRY_AFTER_S = 10.0, 1.0
"""How long the hub may take to say whether it has a data set, and after how long it is asked once more."""


def open_dataset(path: Path | None, spec: DatasetSpec) -> Source:
    """Rows of a data set on disk (`path`) or, where that is None, on the hub. Raises InputError.

    Everything is streamed, so that a few clips of a large corpus cost a few clips' download, and nothing is copied
    into a cache. Audio is taken undecoded: neither torchcodec nor FFmpeg is needed.
    """
    datasets.disable_progress_bars()
    if path is not None and spec.revision is not None:
        raise InputError(f"--revision {spec.revision} is for the hub, and {path} is a file or folder here")
    try:
        if path is not None:
            return _open_files(path, spec) if path.is_file() or is_saved(path) else _open_configured(path, spec, None)
        info = _ask(spec.dataset, spec.revision)
        if spec.revision == CONVERTED:
            return _open_converted(spec, [])
        if info is not None and _has_script(info):
            return _open_converted(spec, [f"{spec.dataset} has a loading script: took the hub's parquet ({CONVERTED})"])
        return _open_configured(None, spec, info.sha if info is not None else None)
    except InputError:
        raise
    except Exception as error:  # of pyarrow, fsspec, YAML, scripts that it refuses: each has its own
        raise _cannot_be_read(spec.dataset, error) from error


def _ask(name: str, revision: str | None) -> huggingface_hub.DatasetInfo | None:
    """The hub's description of a data set; None offline. `datasets` asks too, after half a minute of tries. Raises
    InputError where there is none."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None  # what it has kept of it is read
    for last in (False, True):
        try:
            return huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=ANSWER_S)
        except huggingface_hub.errors.RevisionNotFoundError as error:
            raise InputError(f"--dataset {name} has no revision {revision!r}") from error
        except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as error:
            # It hides what one may not see.
            cure = f" ({CURE})" if is_refused(error) else ""
            raise InputError(
                f"--dataset {name}: there is no such folder here, and the Hugging Face hub says:"
                f" {_first_line(error)}{cure}"
            ) from error
        except Exception as error:  # the network's, by whatever library it goes
            if last:
                raise InputError(
                    f"--dataset {name}: there is no such folder here, and the Hugging Face hub cannot be reached"
                    f" ({_first_line(error)})"
                ) from error
            time.sleep(RETRY_AFTER_S)
    raise AssertionError


def _has_script(info: huggingface_hub.DatasetInfo) -> bool:
    """Whether a data set is read by a script of its name. `datasets` runs none from its fourth version on."""
    script = f"{info.id.rpartition('/')[2]}.py"
    return any(file.rfilename == script for file in info.siblings or ())


def _open_configured(path: Path | None, spec: DatasetSpec, commit: str | None) -> Source:
    """`commit`: of a data set on the hub, which stays the same while it is read; None offline and for a folder."""
    name = spec.dataset if path is None else str(path)
    revision = commit or spec.revision
    configs: list[str] = datasets.get_dataset_config_names(name, revision=revision)
    default = datasets.get_dataset_default_config_name(name, revision=revision)

    def splits_of(config: str) -> list[str]:
        return [str(split) for split in datasets.get_dataset_split_names(name, config, revision=revision)]

    def splits_of_tars(config: str) -> list[str]:
        # `datasets` would read samples to find them out, and refuse those that differ.
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
    # A hub file's name carries the commit.
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
"""The branch of every data set on which the hub keeps what it made of it, as CONFIG/SPLIT/NUMBER.parquet."""


def _open_converted(spec: DatasetSpec, notes: list[str]) -> Source:
    """The hub's own parquet files of a data set. Raises InputError where there are none."""
    api = huggingface_hub.HfApi()
    try:
        commit = api.dataset_info(spec.dataset, revision=CONVERTED, timeout=ANSWER_S).sha
        files = api.list_repo_files(spec.dataset, repo_type="dataset", revision=commit)
    except huggingface_hub.errors.HfHubHTTPError as error:
        raise InputError(
            f"--dataset {spec.dataset} has a loading script, which `datasets` does not run, and the hub has no"
            f" {CONVERTED} of it: {_first_line(error)}"
        ) from error
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(files):
        config, _, rest = file.partition("/")
        split, _, name = rest.partition("/")
        if name.endswith(".parquet"):
            # Of a large one it keeps the first 5 GB, under this name.
            found.setdefault(config, {}).setdefault(split.removeprefix("partial-"), []).append(file)
    if not found:
        raise InputError(f"--dataset {spec.dataset}: {CONVERTED} holds no parquet files")
    config, splits, said = _choose(list(found), None, lambda config: list(found[config]), spec, local=False)
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
        said.append(f"{CONVERTED} has the first 5 GB of it")
    state = [commit, *(file for split in splits for file in found[config][split])]
    which: dict[str, Any] = {"subset": config, "split": "+".join(splits), "state": _digest(state)}
    which |= {"revision": spec.revision, "commit": commit}
    return _source(parts, None, spec, which, [*notes, *said])


def _choose(
    configs: list[str],
    usual: str | None,
    splits_of: Callable[[str], list[str]],
    spec: DatasetSpec,
    *,
    local: bool,
) -> tuple[str, list[str], list[str]]:
    """The config, its splits, and what to tell the person about the choice. Raises InputError."""
    if spec.subset is not None and spec.subset not in configs:
        raise InputError(f"{spec.dataset} has no subset {spec.subset!r}; it has: {', '.join(configs)}")
    default = spec.subset or usual or configs[0]
    # The default first: a split that it has is taken from it, else from the first config that has it.
    candidates = [default] if spec.subset else [default, *(config for config in configs if config != default)]
    if spec.split is None:
        splits = splits_of(default)
        if len(splits) > 1 and not local:
            raise InputError(f"{spec.dataset} ({default}) has several splits: name one of {', '.join(splits)}")
        return default, splits, []
    seen = {}
    for config in candidates:
        seen[config] = splits_of(config)
        if spec.split not in seen[config]:
            continue
        others = [other for other in configs if other != config]
        chosen = f"no --subset was given: took {config!r}, which has the split {spec.split!r}; there are also: "
        notes = [chosen + ", ".join(others)] if others and spec.subset is None else []
        return config, [spec.split], notes
    possible = "; ".join(f"{config}: {', '.join(splits)}" for config, splits in seen.items())
    raise InputError(f"{spec.dataset} has no split {spec.split!r}; it has: {possible}")


def _open_files(path: Path, spec: DatasetSpec) -> Source:
    """A parquet, Arrow or tar file, or a folder that save_to_disk wrote."""
    if spec.subset is not None:
        raise InputError(f"{path} has no subsets: leave --subset {spec.subset} out")
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
            raise InputError(f"{path} is one file: it has no splits, leave --split {spec.split} out")
        parts = [_open_file(path)]
        state = [path.name, fingerprint(path)]
    base = path if path.is_dir() else path.parent
    return _source(parts, base, spec, {"subset": None, "split": spec.split, "state": _digest(state)}, [])


def _open_file(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == SUFFIX:
        return TarSamples([str(path)])
    kind, at_once = ("parquet", {"batch_size": ROWS_AT_ONCE}) if suffix == ".parquet" else ("arrow", {})
    return datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True, **at_once)


def _digest(state: list[Any]) -> str:
    return hashlib.sha256(repr(state).encode()).hexdigest()


def _source(parts: list[Any], base: Path | None, spec: DatasetSpec, which: dict[str, Any], notes: list[str]) -> Source:
    # Undecoded first: to know the columns may take a row.
    parts = [part.decode(False) for part in parts]
    columns = list(parts[0].column_names or next(iter(parts[0]), {}))
    audio_column = pick_column(spec.audio_column, AUDIO_COLUMNS, columns, "audio")
    if audio_column is None:
        raise InputError(f"no column of audio among {', '.join(columns) or 'none'}: name it with --audio-column")
    text_column = pick_column(spec.text_column, TEXT_COLUMNS, columns, "text")
    if text_column is None:
        notes.append(no_text(columns))
    segments, warnings = _times(parts[0], columns, audio_column)

    def recording(row: dict[str, Any], number: int) -> Recording:
        cell = row.get(audio_column)
        audio, name = find_audio(cell, row, base), file_name(cell)
        if base is None and isinstance(audio, Path) and not audio.is_absolute() and ".." not in audio.parts:
            # A file of the data set's own repository, as Earnings22-Cleaned has them.
            revision = which["commit"] or spec.revision or "main"
            audio = Url(f"hf://datasets/{spec.dataset}@{revision}/{audio.as_posix()}")
        if not spec.allow_outside:
            # What `datasets` has fetched from the hub lies in its own folder.
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
    return Source(origin, lambda state: _Rows(spec.dataset, parts, recording, state), None, notes, warnings)


def _times(part: Any, columns: list[str], audio_column: str) -> tuple[list[str], list[str]]:
    """The columns that say which parts of files the rows are, and a warning of others that look like times: by the
    first row, which is read where the names of columns ask for it."""
    segments = segment_columns(tuple(columns))
    if segments is None and not unused_times(dict.fromkeys(columns, 0)):
        return [], []
    row: dict[str, Any] = next(iter(part), {})
    if is_inside(row.get(audio_column)):
        return [], []
    return segments.names if segments and segments.cut(row) else [], warning_of(unused_times(row))


class _Rows:
    """Rows of one data set after the other. Its state is that of `datasets`: files read before are not read again."""

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
        except Exception as error:  # of pyarrow, fsspec, zstd, the network: each has its own
            raise _cannot_be_read(f"{self._name}, row {self._number + 1}", error) from error

    def state(self) -> dict[str, Any]:
        return {"part": self._part, "number": self._number, "inner": self._parts[self._part].state_dict()}


def _cannot_be_read(what: str, error: Exception) -> InputError:
    # That a data set exists was asked before: `datasets` does not find what it may not read, and drops the cause.
    refused = isinstance(error, datasets.exceptions.DatasetNotFoundError) or is_refused(error)
    said = _first_line(error) + (f" ({CURE})" if refused else "")
    return InputError(f"--dataset {what}: cannot be read: {said}")


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return striker(filter(None, [huggingface_hub.get_token()]))(line)
