"""Report on a million requests. Needs 2 GB of disk, and a few minutes to generate the records."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import Row
from benchmarks.report import page


def measure() -> Iterator[Row]:
    """Measure the time and the peak memory."""
    yield page(1_000_000, "60 s and 2 GB or less")
