"""Consoles for tables and lines."""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console
from rich.table import Table as RichTable

from asr_load.report.tables import Table
from asr_load.text import visible

WIDTH = 100
"""Columns of output that is not a terminal, such as a log."""

CONSOLE_ROWS = 200
"""Maximum number of rows in a table, because rich takes milliseconds for each."""

LONGEST_NAME = 24
"""Longest name of a table row that stays on one line."""


class _Console(Console):
    def out(self, *objects: Any, **options: Any) -> None:
        """Print lines unchanged, except for control characters."""
        super().out(*("\n".join(map(visible, str(each).split("\n"))) for each in objects), **options)


def console_for(file: TextIO) -> Console:
    """A console that prints text to a file unchanged: it neither wraps lines nor highlights words."""
    console = _Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    return console


def rich_table(table: Table) -> RichTable:
    """A table for the console."""
    shown = RichTable(title=table.title, title_justify="left")
    rows = table.rows[:CONSOLE_ROWS]
    for column, heading in enumerate(table.headings):
        if column == 0 and not table.numbers:
            # Never cut the first column, which tells rows apart.
            longest = max((len(row[0]) for row in rows), default=0)
            shown.add_column(heading, overflow="fold", min_width=min(longest, LONGEST_NAME))
        else:
            shown.add_column(heading, justify="left" if column in table.names else "right")
    for row in rows:
        shown.add_row(*row)
    if len(table.rows) > len(rows):
        shown.add_row(f"… {len(table.rows) - len(rows)} more")
    return shown
