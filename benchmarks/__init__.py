"""Benchmarks: see `make bench`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

NAIVE = """
from locust import HttpUser, task

class User(HttpUser):
    @task
    def ask(self):
        url = "data:audio/wav;base64,UklGRiQAAABXQVZFZm10IBAAAAABAAEAgD4AAAB9AAACABAAZGF0YQAAAAA="
        content = [{"type": "audio_url", "audio_url": {"url": url}}]
        body = {"messages": [{"role": "user", "content": content}], "stream": True}
        with self.client.post("/v1/chat/completions", json=body, stream=True, catch_response=True) as response:
            for _ in response.iter_content(None):
                pass
"""
"""A minimal Locust user, for the cost of Locust itself: it posts an empty clip and discards the response."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    figure: str
    against: str
    """Reference measured in the same run, with its figure."""
    value: float
    """Value to compare between runs: the ratio to the reference, if there is one."""
    low: float
    high: float
    """Spread of `value` over the rounds, from `low` to `high`."""
    unit: str
    """Unit of `value`: times, ms, …"""
    aim: str = ""
    better: str = "less"
    """Whether less or more is better."""


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float | str]:
    """Fields of a row for a ratio over the rounds of a run: median, lowest and highest."""
    ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True))
    return {"value": statistics.median(ratios), "low": ratios[0], "high": ratios[-1], "unit": "times"}


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of a function call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
