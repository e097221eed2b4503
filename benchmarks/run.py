"""Run all benchmarks: `make bench`. Speeds are ratios to a reference measured in the same run, in alternation."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table

from asr_load import git_state
from asr_load.files import encode_json
from benchmarks import (
    CHECKOUT,
    Row,
    comparison,
    fleet,
    flood,
    memory,
    million,
    prepare,
    read,
    realtime,
    report,
    scale,
    send,
    startup,
    stats,
    truth,
)

SUITE: dict[str, Callable[[], Iterator[Row]]] = {
    module.__name__.rpartition(".")[2]: module.measure
    for module in (
        prepare,
        truth,
        read,
        send,
        realtime,
        flood,
        stats,
        report,
        comparison,
        startup,
        memory,
        scale,
        fleet,
    )
}
LONG = {"million": million.measure}
"""Benchmarks that only run if named."""


def main() -> int:
    """Run the named benchmarks, or all, print the table, and store the results in results/bench/COMMIT.json."""
    parser = argparse.ArgumentParser(description="Run the benchmarks.")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"benchmarks to run, from: {' '.join(SUITE | LONG)} (default: all but {', '.join(LONG)})",
    )
    names = parser.parse_args().names or list(SUITE)
    if unknown := [name for name in names if name not in SUITE | LONG]:
        parser.error(f"there is no benchmark {unknown[0]!r}; use one of: {' '.join(SUITE | LONG)}")
    rows = []
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        rows += list((SUITE | LONG)[name]())
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 150
    table = Table(title="Benchmarks", title_justify="left")
    for column in ("what", "figure", "reference", "ratio or value (spread)", "goal"):
        table.add_column(column)
    for row in rows:
        value = f"{row.value:.3g} {row.unit} ({row.low:.3g} to {row.high:.3g})"
        table.add_row(row.what, row.figure, row.against, value, row.aim)
    console.print(table)
    file = CHECKOUT / "results" / "bench" / f"{git_state() or 'unknown'}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {"machine": platform.platform(), "python": platform.python_version(), "rows": rows}
    file.write_bytes(encode_json(kept))
    print(f"Results: {file.relative_to(CHECKOUT)}. Compare two with: make bench-compare A=FILE B=FILE")
    return 0


if __name__ == "__main__":
    sys.exit(main())
