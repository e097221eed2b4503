"""The runs of a results folder, each with its sentence, and index.html, which lists them."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from asr_load.errors import InputError
from asr_load.files import alone_in, read_json, write_atomically
from asr_load.report.page import REPORT, asset, policy, templates
from asr_load.report.sentence import sentence
from asr_load.report.view import view_finished
from asr_load.results.capacity import CAPACITY, read_capacity
from asr_load.results.compare import COMPARISON
from asr_load.results.folders import RESULTS
from asr_load.results.runfile import RUN, RunInfo, read_run
from asr_load.results.summary import SUMMARY, read_summary
from asr_load.shipped import command
from asr_load.text import count_of, visible

INDEX = "index.html"
COMPARISON_PAGE = "comparison.html"

MARK = b'<meta name="generator" content="asr-load">'
"""Marks each index.html that asr-load wrote."""

MARK_WITHIN = 1000
"""Bytes at the beginning of index.html that contain the mark."""

MOST_RUNS = 100
"""Maximum number of runs in index.html, the newest, because each test rewrites it at its end."""

TURNS, TURN_S = 20, 0.05
"""Number of attempts to be the only writer of index.html, and seconds between them."""


class ListedRun(NamedTuple):
    """A run and its `text`: its sentence, or why it has no figures."""

    folder: Path
    began_at: float
    """Seconds since the epoch; when run.json was written, if it cannot be read."""
    text: str
    finished: bool
    """Whether there is a sentence, so that the run can be compared."""

    @property
    def began(self) -> str:
        return datetime.fromtimestamp(self.began_at).astimezone().strftime("%Y-%m-%d %H:%M")


def listed_runs(results: Path) -> list[ListedRun]:
    """The runs in a folder, the newest first. A folder that cannot be read is listed with the reason. Raises OSError if
    `results` cannot be read."""
    return _listed_runs(_dated(results))


def _listed_runs(dated: Iterable[tuple[float, Path]]) -> list[ListedRun]:
    return sorted((_listed(folder, at) for at, folder in dated), key=lambda run: run.began_at, reverse=True)


def _dated(results: Path) -> Iterator[tuple[float, Path]]:
    """The folders that hold a run.json, and when it was written."""
    for folder in results.iterdir():
        try:
            yield (folder / RUN).lstat().st_mtime, folder
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            yield 0.0, folder


def _listed(folder: Path, written_at: float) -> ListedRun:
    try:
        info = read_run(folder)
        finished = (folder / SUMMARY).exists()
        text = _finished_text(folder, info) if finished else _unfinished_text(folder)
        return ListedRun(folder, info.began_at, visible(text), finished)
    except (InputError, OSError) as error:
        return ListedRun(folder, written_at, f"Unreadable: {visible(str(error))}", False)


def _finished_text(folder: Path, info: RunInfo) -> str:
    search = read_capacity(folder) if (folder / CAPACITY).exists() else None
    if search is not None and search.answer is None and not search.unknown:
        steps = count_of(len(search.steps), "step")
        return f"The search stopped after {steps}, before its answer. Continue it with --resume {folder}."
    return sentence(info, view_finished(read_summary(folder)))


def _unfinished_text(folder: Path) -> str:
    running = "Unfinished: it is still running, or it was killed."
    if (folder / CAPACITY).exists():
        return f"{running} --resume {folder} continues the search."
    return f"{running} {command('report')} {folder} computes its figures so far."


def find_run(name: str) -> Path:
    """The folder of a run by its path, its name in results/, or its place among the finished runs there: last, last-1
    for the one before, and so on. Raises InputError."""
    word, _, back = name.partition("-")
    if word == "last" and (not back or back.isdecimal()):
        finished = [run for run in listed_runs(RESULTS) if run.finished] if RESULTS.is_dir() else []
        if int(back or 0) >= len(finished):
            raise InputError(f"{name}: {RESULTS}/ has {count_of(len(finished), 'finished run')}")
        return finished[int(back or 0)].folder
    for folder in (Path(name), RESULTS / name):
        if (folder / RUN).exists():
            return folder
    raise InputError(f"{name} is neither a results folder nor a name in {RESULTS}/: asr-load list shows the names")


class _Compared(msgspec.Struct):
    """The field of comparison.json that names the folders of both sides."""

    runs: dict[str, list[str]]


def _baseline(folder: Path) -> str:
    """The name of the run that a run was compared with; empty without a comparison of two runs."""
    with contextlib.suppress(InputError):
        sides = read_json(folder / COMPARISON, _Compared, "", "report").runs
        if [len(sides.get(side, ())) for side in ("value", "baseline")] == [1, 1]:
            return Path(sides["baseline"][0]).name
    return ""


def update_index(results: Path) -> None:
    """Write index.html again, in results/ and in folders where asr-load list wrote one. Does nothing elsewhere. Raises
    OSError."""
    if results.resolve() == RESULTS.resolve() or _is_ours(results / INDEX):
        write_index(results)


def write_index(results: Path) -> Path | None:
    """Write index.html into a folder of runs, and return its path; None if another program made the file there. Raises
    OSError."""
    path = results / INDEX
    if path.exists() and not _is_ours(path):
        return None
    with contextlib.ExitStack() as lock:
        # Otherwise a test that ends at the same time could replace the page by one without this test.
        for _ in range(TURNS):
            with contextlib.suppress(BlockingIOError):
                lock.enter_context(alone_in(results))
                break
            time.sleep(TURN_S)
        write_atomically(path, index_page(results).encode("utf-8", "replace"))
    return path


def _is_ours(index: Path) -> bool:
    try:
        with index.open("rb") as file:
            return MARK in file.read(MARK_WITHIN)
    except OSError:
        return False


def index_page(results: Path) -> str:
    """The HTML of index.html, which shows the command that compares two selected runs. Raises OSError."""
    dated = sorted(_dated(results), reverse=True)
    in_results = results.resolve() == RESULTS.resolve()
    shown = [
        {
            "name": visible(run.folder.name),
            "began": run.began,
            "text": run.text,
            "finished": run.finished,
            "word": _word(run.folder, in_results) if run.finished else "",
            "report": _link(run.folder, REPORT),
            "comparison": _link(run.folder, COMPARISON_PAGE),
            "baseline": visible(_baseline(run.folder)),
        }
        for run in _listed_runs(dated[:MOST_RUNS])
    ]
    script = asset("index.js")
    return (
        templates()
        .get_template("index.html.j2")
        .render(
            policy=policy((script,)),
            mark=MARK.decode(),
            css=asset("page.css") + asset("index.css"),
            script=script,
            title=f"Runs in {visible(str(results.resolve().name))}",
            runs=shown,
            older=len(dated) - len(shown),
        )
    )


def _word(folder: Path, in_results: bool) -> str:
    """A run as a word of a command, its name in results/ or else its path; empty if a terminal would obey it."""
    word = folder.name if in_results else str(folder.resolve())
    return shlex.quote(word) if word.isprintable() else ""


def _link(folder: Path, name: str) -> str:
    """The relative address of a run's page; empty if the file is missing."""
    return f"./{quote(os.fsencode(folder.name))}/{name}" if (folder / name).is_file() else ""
