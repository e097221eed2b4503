"""Cut long recordings into parts at quiet places."""

from __future__ import annotations

import re

import numpy as np

QUIET_S = 0.2
"""Length of the quiet stretch, in seconds. A cut is in the middle of the quietest stretch in the last third of a part's
maximum length."""

_PART = re.compile(r"(.*)~(\d{4,})-of-(\d{4,})", re.DOTALL)


def part_id(parent: str, number: int, of: int) -> str:
    """The id of a part, numbered from 0."""
    return f"{parent}~{number:04d}-of-{of:04d}"


def parent_of(id: str) -> tuple[str, int, int]:
    """A clip's recording, part number and number of parts; a whole recording is part 0 of 1."""
    match = _PART.fullmatch(id)
    return (match[1], int(match[2]), int(match[3])) if match else (id, 0, 1)


def cuts(pcm: np.ndarray, sample_rate: int, longest_s: float) -> list[int]:
    """The ends of all parts of 16-bit samples, shape (n,), cut so that none is longer than `longest_s`; the last is
    n."""
    most, quiet = int(longest_s * sample_rate), max(int(QUIET_S * sample_rate), 1)
    ends: list[int] = []
    begin = 0
    while len(pcm) - begin > most:
        first = begin + most * 2 // 3
        window = pcm[first : begin + most].astype(np.float64)
        energies = np.convolve(window * window, np.ones(min(quiet, len(window))), "valid")
        begin = first + int(np.argmin(energies)) + min(quiet, len(window)) // 2
        ends.append(begin)
    return [*ends, len(pcm)]
