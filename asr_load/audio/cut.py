"""Long recordings in parts, cut where it is quiet."""

from __future__ import annotations

import re

import numpy as np

QUIET_S = 0.2
"""The stretch in whose middle a recording is cut: the quietest one of the last third before a part is too long."""

_PART = re.compile(r"(.*)~(\d{4,})-of-(\d{4,})", re.DOTALL)


def part_id(parent: str, number: int, of: int) -> str:
    """The id of a part, numbered from 0."""
    return f"{parent}~{number:04d}-of-{of:04d}"


def parent_of(id: str) -> tuple[str, int, int]:
    """The recording that a clip is part of, its number there, and how many parts there are; a whole one is its only."""
    match = _PART.fullmatch(id)
    return (match[1], int(match[2]), int(match[3])) if match else (id, 0, 1)


def cuts(pcm: np.ndarray, sample_rate: int, longest_s: float) -> list[int]:
    """Where 16-bit samples, shape (n,), are cut so that no part is longer: the ends of all parts, n the last."""
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
