"""Where tables and lines are printed."""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console

from asr_load.text import visible

WIDTH = 100
"""Columns where the output is no terminal: what fits a log."""


class _Console(Console):
    def out(self, *objects: Any, **options: Any) -> None:
        """Print lines as they are, but for what a terminal would obey."""
        super().out(*("\n".join(map(visible, str(each).split("\n"))) for each in objects), **options)


def console_for(file: TextIO) -> Console:
    """A console that prints to a file as it is: no line is broken, and nothing is coloured by what it looks like."""
    console = _Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    return console
