"""A mix of clip lengths by weight, so that a load resembles production."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

from asr_load.errors import InputError

_CLASS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)?\s*:\s*(\d+)\s*")

MOST_WEIGHT = 10_000
"""Maximum sum of all weights, after which the pattern repeats."""


@dataclass(frozen=True)
class LengthClass:
    """Clips from `low` up to, but excluding, `high` seconds, and their weight."""

    low: float
    high: float
    weight: int

    def __str__(self) -> str:
        return f"{self.low:g}-{'' if math.isinf(self.high) else f'{self.high:g}'}"


def parse_mix(text: str) -> list[LengthClass]:
    """Parse a mix such as `0-5:70,5-15:25,15-:5`: seconds and weights. Raises InputError."""
    classes = []
    for word in text.split(","):
        match = _CLASS.fullmatch(word)
        low, high = (float(match[1]), float(match[2] or "inf")) if match else (0.0, 0.0)
        if match is None or low >= high or int(match[3]) == 0:
            raise InputError(
                f"--mix must be ranges of seconds with weights, such as 0-5:70,5-15:25,15-:5, not {word.strip()!r}"
            )
        classes.append(LengthClass(low, high, int(match[3])))
    classes.sort(key=lambda length: length.low)
    for one, other in pairwise(classes):
        if one.high > other.low:
            raise InputError(f"--mix: {one} and {other} overlap")
    if sum(length.weight for length in classes) > MOST_WEIGHT:
        raise InputError(f"--mix: the sum of the weights must be at most {MOST_WEIGHT}")
    return classes
