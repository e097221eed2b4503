"""List the runs of a results folder, each with its sentence."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from asr_load.errors import InputError, OneLineParser
from asr_load.report.console import console_for
from asr_load.report.runs import INDEX, listed_runs, write_index
from asr_load.results.folders import RESULTS
from asr_load.results.runfile import RUN


def main() -> int:
    """Command line of asr-load list. Raises InputError, OSError."""
    parser = OneLineParser(
        "List runs, the newest first, each with its result in a sentence, and write RESULTS/index.html.",
        "last, last-1 and so on are the names of finished runs for asr-load compare.",
    )
    parser.add_argument(
        "results", nargs="?", type=Path, default=RESULTS, metavar="RESULTS", help="folder of runs (default: results)"
    )
    results = parser.parse_args().results
    if not results.is_dir():
        raise InputError(f"{results} is not a folder of runs: run a test first, or name another folder")
    if (results / RUN).exists():
        raise InputError(f"{results} is one run: name the folder that contains it, or use asr-load report {results}")
    runs = listed_runs(results)
    out = console_for(sys.stdout).out
    if not runs:
        out(f"{results} holds no runs")
        return 0
    places = itertools.count()
    for run in runs:
        place = next(places) if run.finished else None
        name = "" if place is None else "last" if place == 0 else f"last-{place}"
        out(f"{name:8} {run.folder.name}\n         {run.text}")
    try:
        page = write_index(results)
    except OSError as error:
        out(f"The page was not written: {results / INDEX}: {error.strerror}")
        return 0
    out(f"Page: {page}" if page else f"The page was not written: another program made {results / INDEX}")
    return 0
