"""Read a file of arrival times to replay."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from asr_load.decode import Malformed, decode
from asr_load.errors import InputError

COLUMNS = ("at", "timestamp")
ALLOWED = "jsonl (numbers, or objects with `at` or `timestamp`) or csv (a column `at` or `timestamp`, or only one)"


def read_trace(path: Path) -> list[float]:
    """The times of a trace in seconds, in order, at least one. Raises InputError."""
    times: list[float] = []
    if path.exists() and not path.is_file():
        raise InputError(f"--arrival-trace {path} is not a file; use {ALLOWED}")  # /dev/zero would never end
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, value in _csv(file) if path.suffix == ".csv" else _jsonl(file):
                try:
                    time = float(value)  # type: ignore[arg-type]
                except (TypeError, ValueError):
                    raise InputError(f"--arrival-trace {path}, line {number}: no time; use {ALLOWED}") from None
                if isinstance(value, bool) or not math.isfinite(time) or time < 0:
                    raise InputError(f"--arrival-trace {path}, line {number}: {value} is not a time in seconds")
                if times and time < times[-1]:
                    order = f"{time:g} comes after {times[-1]:g}; times must be in order"
                    raise InputError(f"--arrival-trace {path}, line {number}: {order}")
                times.append(time)
    except OSError as error:
        raise InputError(f"--arrival-trace {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--arrival-trace {path} is not text; use {ALLOWED}") from error
    if not times:
        raise InputError(f"--arrival-trace {path} contains no arrivals; use {ALLOWED}")
    return times


def _jsonl(lines: Iterator[str]) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = decode(line)
        except Malformed:
            row = None
        yield number, next((row[name] for name in COLUMNS if name in row), None) if isinstance(row, dict) else row


def _csv(lines: Iterator[str]) -> Iterator[tuple[int, object]]:
    rows = csv.reader(lines)
    column = 0
    for number, row in enumerate(rows, 1):
        if number == 1 and any(not _is_number(cell) for cell in row):
            names = [cell.strip() for cell in row]
            column = next((names.index(name) for name in COLUMNS if name in names), 0 if len(row) == 1 else -1)
            continue
        if row:
            yield number, row[column] if 0 <= column < len(row) else None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
