"""Compute latencies, in seconds, from the times of a stream's chunks, in integer nanoseconds.

docs/metrics.md has the definitions. Integers keep `ttft + sum(itl) == e2el` to the nanosecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

NS = 1_000_000_000


class Timing(msgspec.Struct, frozen=True):
    """Latencies of one response, in seconds. Without a chunk, `ttft` and `e2el` are None."""

    ttft: float | None
    itl: list[float]
    e2el: float | None


def seconds(start: int, end: int | None) -> float | None:
    """The seconds from one stamp to another; None without a second stamp."""
    return None if end is None else (end - start) / NS


def latencies(start: int, chunks: Sequence[int]) -> Timing:
    """TTFT, inter-token gaps and end-to-end latency of chunks that arrived at the times `chunks`, shape (n,)."""
    if not chunks:
        return Timing(None, [], None)
    gaps = [(later - earlier) / NS for earlier, later in pairwise(chunks)]
    return Timing((chunks[0] - start) / NS, gaps, (chunks[-1] - start) / NS)


def tpot(ttft: float | None, e2el: float | None, output_tokens: int | None) -> float | None:
    """Time per output token after the first, in seconds: (e2el - ttft) / (tokens - 1). None for at most one token."""
    if ttft is None or e2el is None or output_tokens is None or output_tokens <= 1:
        return None
    return (e2el - ttft) / (output_tokens - 1)
