"""Benchmarks: see `make bench`."""

Row = tuple[str, str, str, str, str]
"""What was measured, the figure, what it is held against, their ratio with its spread, and what is aimed at."""
