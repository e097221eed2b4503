"""Compare two runs; the older one is the baseline."""

from __future__ import annotations

from asr_load.errors import InputError, OneLineParser
from asr_load.report.main import report
from asr_load.report.runs import COMPARISON_PAGE, find_run
from asr_load.results.runfile import read_run


def main() -> int:
    """Command line of asr-load compare: scripts/report.py with a --baseline. Raises InputError."""
    parser = OneLineParser(
        "Compare two runs. The older one is the baseline, whichever comes first.",
        "For other baselines and several runs a side: asr-load report RESULTS --baseline RESULTS",
    )
    add = parser.add_argument
    add(
        "runs",
        nargs=2,
        metavar="RUN",
        help="results folder, its name in results/, or last, last-1 and so on: a finished run there, counted back",
    )
    for name in ("--min-change", "--fail-on"):
        add(name, action="append", default=[], metavar="LIMIT", help="as in asr-load report")
    args = parser.parse_args()
    first, second = map(find_run, args.runs)
    if first.samefile(second):
        raise InputError(f"{args.runs[0]} and {args.runs[1]} are the same run: name two")
    older, newer = sorted((first, second), key=lambda folder: read_run(folder).began_at)
    print(f"Comparing {newer} with the baseline {older}, which is the older run", flush=True)
    words = [str(newer), "--baseline", str(older)]
    for name, values in (("--min-change", args.min_change), ("--fail-on", args.fail_on)):
        words += [word for value in values for word in (name, value)]
    code = report(words)
    print(f"Comparison: {newer / COMPARISON_PAGE}")
    return code
