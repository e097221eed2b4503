"""A record as rows of Locust's statistics: the request itself, and TTFT, ITL and TPOT beside it."""

from __future__ import annotations

import time
from typing import Any

import locust.stats
from locust.env import Environment
from locust.stats import StatsEntry

from asr_load.stream.record import Record

STREAM_TYPES = ("TTFT", "ITL", "TPOT")


def bucket(response_time: float) -> float:
    """Round to three significant digits, in ms, and to 0.01 below 1 ms: at most 0.5 % off.

    Locust's own buckets (whole ms, two digits above 100) are up to 9 % off for gaps of a few ms.
    """
    if response_time < 1:
        return round(response_time, 2)
    digits = 2 if response_time < 10 else 1 if response_time < 100 else 0 if response_time < 1000 else None
    if digits is None:
        return float(f"{response_time:.3g}")
    return round(response_time, digits)


def set_up(environment: Environment) -> None:
    """Install the finer buckets, and keep the stream's rows out of Aggregated, which counts requests alone."""
    locust.stats.bucket_response_time = bucket  # type: ignore[assignment]
    stats: Any = environment.stats
    log_request = stats.log_request

    def log(method: str, name: str, response_time: float | None, content_length: int) -> None:
        if method in STREAM_TYPES:
            stats.get(name, method).log(response_time, content_length)
        else:
            log_request(method, name, response_time, content_length)

    stats.log_request = log


def keep_entries_when_serialised(environment: Environment) -> None:
    """Let `--json` print the entries without emptying them: the console's rows after it would all be zero."""
    stats: Any = environment.stats
    stats.serialize_stats = lambda: [entry.serialize() for entry in stats.entries.values() if entry.num_requests]


def fire(environment: Environment, record: Record, path: str) -> None:
    """Fire a record's events: one request, and for a success its TTFT, each of its gaps, and its TPOT, in ms.

    A failure has no latency: its row counts it and nothing else.
    """

    def event(kind: str, name: str, value_s: float | None, **more: Any) -> None:
        environment.events.request.fire(
            **{
                "request_type": kind,
                "name": name,
                "response_time": None if value_s is None else value_s * 1000,
                "response_length": 0,
                "exception": None,
                "context": {},
                "start_time": record.started_at,
                **more,
            }
        )

    if not record.ok:
        event("POST", path, None, exception=RequestFailed(f"{record.outcome}: {record.error}"))
        return
    event("POST", path, record.e2el, response_length=len(record.text.encode()))
    event("TTFT", f"{path} time to first token", record.ttft)
    name = f"{path} inter-token latency"
    if len(environment.events.request._handlers) == 1:
        # Nobody but Locust's own statistics listens: 63 events would take them a fifth of a millisecond.
        _log_all(environment.stats.get(name, "ITL"), [gap * 1000 for gap in record.itl])
    else:
        for gap in record.itl:
            event("ITL", name, gap)
    if record.tpot is not None:
        event("TPOT", f"{path} time per output token", record.tpot)


def _log_all(entry: StatsEntry, values: list[float]) -> None:
    """What `entry.log` does for each of several values, in ms, at once."""
    if not values:
        return
    *others, last = values
    entry.num_requests += len(others)
    entry.total_response_time += sum(others)  # type: ignore[assignment]  # Locust's annotations say int throughout
    if others:
        low, high = min(others), max(others)
        known = entry.min_response_time
        entry.min_response_time = low if known is None else min(known, low)  # type: ignore[assignment]
        entry.max_response_time = max(entry.max_response_time, high)  # type: ignore[assignment]
        for value in others:
            entry.response_times[bucket(value)] += 1  # type: ignore[index]
        entry.num_reqs_per_sec[int(time.time())] += len(others)
    # The last one as Locust does it, with all else that belongs to a request.
    entry.log(last, 0)  # type: ignore[arg-type]


class RequestFailed(Exception):
    """What Locust shows for a failed request: the outcome and the server's words."""
