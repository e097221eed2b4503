"""Rewrite a run's summary and report from its results folder, and compare it with other runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from asr_load.errors import InputError, OneLineParser, exits_on_bad_input
from asr_load.files import write_atomically
from asr_load.report.breakdown import Breakdown
from asr_load.report.capacity import print_search
from asr_load.report.comparison import comparison_view, gate_line, markdown, print_comparison
from asr_load.report.exports import FORMS, export
from asr_load.report.page import comparison_page, write_report
from asr_load.report.runs import COMPARISON_PAGE, update_index
from asr_load.report.summary import print_summary
from asr_load.results.compare import broken_gates, live_accuracy, parse_gate, write_comparison
from asr_load.results.parts import values_of
from asr_load.results.summary import read_finished, write_summary


@exits_on_bad_input
def main() -> int:
    """Command line of scripts/report.py."""
    return report(sys.argv[1:])


def report(words: Sequence[str]) -> int:
    """Run the command with these arguments. Returns its exit code. Raises InputError, OSError."""
    parser = OneLineParser(
        "Print the summaries of runs, rewrite their summary.json and report.html, and compare them with a baseline."
    )
    parser.add_argument("results", type=Path, nargs="+", help="results folder of a run")
    parser.add_argument(
        "--slice", type=_seconds, metavar="S", help="length of a row in the report's table over time, for example 60s"
    )
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="COLUMN",
        help="add a table with a row for each value of this column of --manifest, for example speaker; repeatable",
    )
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE", help="table of the data set's clips, with the columns for --by"
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        nargs="+",
        default=[],
        metavar="RESULTS",
        help="results folders of the runs to compare with",
    )
    parser.add_argument(
        "--min-change",
        default="0",
        metavar="SHARE",
        help="report smaller relative differences as no change, for example 2%%",
    )
    parser.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="METRIC:STAT:LIMIT",
        help="exit with 1 if a metric is certainly worse by more than this (ttft:p95:10%%, wer:mean:0.005); repeatable",
    )
    parser.add_argument(
        "--export",
        action="append",
        default=[],
        choices=FORMS,
        help="also write this format to the results folder; repeatable",
    )
    args = parser.parse_args(words)
    gates, min_change = [parse_gate(text) for text in args.fail_on], _share(args.min_change)
    if not args.baseline and (gates or min_change):
        raise InputError("--fail-on and --min-change need a --baseline: name the runs to compare with")
    if bool(args.by) != bool(args.manifest):
        raise InputError("--by and --manifest belong together: name a column, and the table that has it")
    columns = {column: values_of(args.manifest, column) for column in args.by}
    runs = []
    baselines = [read_finished(folder) for folder in args.baseline]
    for folder in args.results:
        finished = read_finished(folder)
        runs.append(finished)
        if len(args.results) == len(baselines) == 1:
            finished.summary.live_accuracy = live_accuracy(finished, baselines[0])
        write_summary(folder, finished)
        by_column = [Breakdown(finished).by_column(column, values) for column, values in columns.items()]
        write_report(folder, finished, args.slice, by_column)
        for form in args.export:
            export(folder, finished, form)
        if finished.search is not None:
            print_search(folder, finished.info, finished.summary, finished.search, sys.stdout)
        else:
            print_summary(folder, finished.info, finished.summary, finished.records, sys.stdout, more=by_column)
    if not args.baseline:
        _update_indexes(args.results)
        return 0
    view = comparison_view(runs, baselines, min_change)
    write_comparison(args.results[0], view.comparison)
    page = comparison_page(view, runs, baselines)
    write_atomically(args.results[0] / COMPARISON_PAGE, page.encode("utf-8", "replace"))
    if "markdown" in args.export:
        write_atomically(args.results[0] / "comparison.md", markdown(view).encode("utf-8", "replace"))
    _update_indexes(args.results)
    print_comparison(view, sys.stdout)
    broken = list(broken_gates(view.comparison, gates))
    for gate in broken:
        print(gate_line(gate))
    return 1 if broken else 0


def _update_indexes(folders: Iterable[Path]) -> None:
    for results in {folder.resolve().parent for folder in folders}:
        try:
            update_index(results)
        except OSError as error:  # the runs' own files are complete
            print(f"note: {results}/index.html was not written: {error.strerror}", file=sys.stderr)


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise InputError(f"--min-change must be a share such as 2% or 0.02, not {text!r}")
    return share


def _seconds(text: str) -> float:
    from locust.util.timespan import parse_timespan

    try:
        seconds = float(parse_timespan(text))
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise InputError(f"--slice must be a time such as 60s or 5m, not {text!r}")
    return seconds
