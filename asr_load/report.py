"""A run's summary, its page and its comparison with others, made again from its folder."""

from __future__ import annotations

import sys
from pathlib import Path

from asr_load.errors import InputError, OneLineParser, exits_on_bad_input
from asr_load.results.capacity import CAPACITY, read_capacity
from asr_load.results.capacity_report import print_search
from asr_load.results.summary import read_finished, write_summary
from asr_load.results.summary_report import print_summary
from asr_load.web.report import write_report


@exits_on_bad_input
def main() -> int:
    """Command line of scripts/report.py."""
    parser = OneLineParser("Print runs' summaries again, and make their summary.json and report.html anew.")
    parser.add_argument("results", type=Path, nargs="+", help="folder of a run")
    parser.add_argument("--slice", type=_seconds, metavar="S", help="of a row in the page's table over time: 60s")
    args = parser.parse_args()
    for folder in args.results:
        finished = read_finished(folder)
        write_summary(folder, finished.summary)
        write_report(folder, finished, args.slice)
        if (folder / CAPACITY).exists():
            print_search(folder, read_capacity(folder), sys.stdout)
        else:
            print_summary(folder, finished.summary, sys.stdout)
    return 0


def _seconds(text: str) -> float:
    from locust.util.timespan import parse_timespan

    try:
        seconds = float(parse_timespan(text))
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise InputError(f"--slice takes a time like 60s or 5m, not {text!r}")
    return seconds
