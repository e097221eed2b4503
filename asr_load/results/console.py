"""Where tables and lines are printed."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

WIDTH = 100
"""Columns where the output is no terminal: what fits a log."""


def console_for(file: TextIO) -> Console:
    """A console that prints to a file as it is: no line is broken, and nothing is coloured by what it looks like."""
    console = Console(file=file, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    return console
