"""All benchmarks, one table: `make bench`. Speeds are ratios to something measured in the same run, interleaved."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from benchmarks import prepare, truth


def main() -> int:
    """Run them all and print the table."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    table = Table(title="Benchmarks", title_justify="left")
    for name in ("what", "figure", "held against", "ratio (spread)", "aim"):
        table.add_column(name)
    for bench in (prepare.measure, truth.measure):
        for row in bench():
            table.add_row(*row)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
