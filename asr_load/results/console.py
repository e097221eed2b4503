"""Consoles for tables and lines."""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console

from asr_load.text import visible

WIDTH = 100
"""Columns of output that is not a terminal, such as a log."""


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
