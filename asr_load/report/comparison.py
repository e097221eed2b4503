"""Format a comparison as text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from asr_load.report.console import console_for, rich_table
from asr_load.report.tables import Table
from asr_load.report.words import number
from asr_load.results.compare import NO_DIFFERENCE, Compared, Comparison

HEADINGS = ("", "baseline", "value", "difference", "95 % interval", "relative", "")


def comparison_table(comparison: Comparison) -> Table:
    """A table of the figures that both sides have."""
    rows = [_row(figure) for figure in comparison.figures if figure.difference is not None]
    return Table("Comparison", HEADINGS, rows, comparison.method)


def _row(figure: Compared) -> tuple[str, ...]:
    digits = 1 if figure.unit == "ms" else 4 if figure.name in ("wer", "cer", "error_rate") else 3
    interval = "" if figure.low is None else f"{_signed(figure.low, digits)} to {_signed(figure.high, digits)}"
    relative = "" if figure.relative is None else f"{figure.relative:+.1%}"
    name = f"{figure.name}, {figure.unit}" if figure.unit else figure.name
    both = number(figure.baseline, digits), number(figure.value, digits)
    return name, *both, _signed(figure.difference, digits), interval, relative, figure.word


def _signed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:+,.{digits}f}"


def print_comparison(comparison: Comparison, file: TextIO) -> None:
    """Print the warnings first, then the figures."""
    console = console_for(file)
    console.out("\n=== Comparison ===")
    for line in _sides(comparison):
        console.out(line)
    for warning in comparison.warnings:
        console.out(f"  - {warning}")
    console.print(rich_table(comparison_table(comparison)))
    words = [figure for figure in comparison.figures if figure.word != NO_DIFFERENCE]
    console.out(f"Differences beyond chance: {len(words)} of {len(comparison.figures)} figures ({comparison.method})")


def _sides(comparison: Comparison) -> Iterator[str]:
    for side in ("value", "baseline"):
        yield f"{side}: {', '.join(comparison.runs[side])}"


def markdown_table(table: Table) -> str:
    """Format a table as GitHub Markdown."""

    def line(cells: tuple[str, ...] | list[str]) -> str:
        return (
            "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in cells) + " |"
        )

    ends = ["---" if not number else "---:" for number in range(len(table.headings))]
    return "\n".join(
        [f"### {table.title}", "", line(list(table.headings)), line(ends), *(line(list(row)) for row in table.rows)]
    )


def markdown(comparison: Comparison) -> str:
    """Format the comparison as a Markdown page."""
    warnings = "\n".join(f"- {warning}" for warning in comparison.warnings)
    sides = "\n".join(f"- {line}" for line in _sides(comparison))
    return f"{markdown_table(comparison_table(comparison))}\n\n{comparison.method}\n\n{sides}\n\n{warnings}\n"
