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
"""What Locust costs by itself: a user that posts a clip's shell and reads the answer away."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    figure: str
    against: str
    """What it is held against in the same run, with its figure."""
    value: float
    """What two runs are compared by: the ratio to that, where there is one."""
    low: float
    high: float
    """The spread of `value` over the rounds."""
    unit: str
    """Of `value`: times, ms, …"""
    aim: str = ""
    better: str = "less"
    """less or more."""


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float | str]:
    """The fields of a row for a ratio, from the rounds of a run: the median, and the lowest and the highest."""
    ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True))
    return {"value": statistics.median(ratios), "low": ratios[0], "high": ratios[-1], "unit": "times"}


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of a piece of work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
