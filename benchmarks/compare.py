"""Compare two stored benchmark results row by row: `make bench-compare A=FILE B=FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from asr_load.errors import OneLineParser, exits_on_bad_input
from asr_load.files import read_json
from benchmarks import Row


class Kept(msgspec.Struct):
    """Results stored by `make bench`."""

    machine: str
    python: str
    rows: list[Row]


def read(path: Path) -> Kept:
    """Read a stored result. Raises InputError."""
    return read_json(path, Kept, "not a benchmark result", "make bench")


def verdict(before: Row, after: Row) -> str:
    """How a row changed. A value within the spread of the other run is the same."""
    if before.low <= after.value <= before.high or after.low <= before.value <= after.high:
        return "same"
    return "better" if (after.value < before.value) == (after.better == "less") else "WORSE"


@exits_on_bad_input
def main() -> int:
    """Print the comparison. The exit code is 1 if a row became worse."""
    parser = OneLineParser("Compare two results of the benchmarks.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    old, new = read(args.before), read(args.after)
    if old.machine != new.machine:
        print(f"note: the machines differ ({old.machine}, {new.machine}): compare only ratios, not values")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    table = Table(title=f"{args.before.stem} → {args.after.stem}", title_justify="left")
    for name in ("what", "before", "after", ""):
        table.add_column(name)
    known = {row.what: row for row in old.rows}
    verdicts = []
    for row in new.rows:
        before = known.pop(row.what, None)
        verdicts.append("new" if before is None else verdict(before, row))
        table.add_row(row.what, "" if before is None else _cell(before), _cell(row), verdicts[-1])
    for row in known.values():
        table.add_row(row.what, _cell(row), "", "not run")
    console.print(table)
    return 1 if "WORSE" in verdicts else 0


def _cell(row: Row) -> str:
    return f"{row.value:.3g} {row.unit} ({row.low:.3g} to {row.high:.3g})"


if __name__ == "__main__":
    sys.exit(main())
