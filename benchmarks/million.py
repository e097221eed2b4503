"""A report of a million requests: 2 GB of disk, and a few minutes to make them up."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import Row
from benchmarks.report import page


def measure() -> Iterator[Row]:
    """How long it takes, and the most memory that it has."""
    yield page(1_000_000, "60 s and 2 GB or less")
