"""Add records to Locust's statistics: a row for requests, and rows for TTFT, ITL, TPOT and the TTFS of sessions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import locust.stats
import numpy as np
from locust.env import Environment
from locust.runners import Runner

from asr_load.load import locust_internals
from asr_load.load.target import Targets
from asr_load.results.metrics import METRICS
from asr_load.stream.record import RealtimeRecord, Record

STREAM_TYPES = ("TTFT", "ITL", "TPOT", "TTFS")

VARYING = re.compile(r"[0-9a-fA-F-]{16,}|\d{9,}")
"""Ids and times, which make a server's error messages unique."""

ERROR_ROWS = 50
"""Maximum rows of failures for an outcome, because Locust keeps all of them until the test ends."""


def bucket(response_time: float) -> float:
    """Round to three significant digits, in ms, and to 0.01 below 1 ms: at most 0.5 % off.

    Locust's buckets (whole ms, two digits above 100) are up to 9 % off for gaps of a few ms.
    """
    if response_time < 1:
        return round(response_time, 2)
    digits = 2 if response_time < 10 else 1 if response_time < 100 else 0 if response_time < 1000 else None
    if digits is None:
        return float(f"{response_time:.3g}")
    return round(response_time, digits)


def buckets(response_times: np.ndarray) -> np.ndarray:
    """The `bucket` of each of several values, shape (n,)."""
    decades = np.floor(np.log10(np.maximum(response_times, 1)))
    # Use only whole powers of 10, so that the results equal those of `bucket`, except for ties.
    finer, coarser = 10.0 ** np.maximum(2 - decades, 0), 10.0 ** np.maximum(decades - 2, 0)
    rounded: np.ndarray = np.rint(response_times * finer / coarser) / finer * coarser
    return rounded


def set_up(environment: Environment) -> None:
    """Install the finer buckets, and exclude the rows of streams from Aggregated, which counts only requests."""
    locust_internals.replace(locust.stats, "bucket_response_time", lambda _: bucket)
    stats: Any = environment.stats

    def with_stream_types(log_request: Callable[..., None]) -> Callable[..., None]:
        def log(method: str, name: str, response_time: float | None, content_length: int) -> None:
            if method in STREAM_TYPES:
                stats.get(name, method).log(response_time, content_length)
            else:
                log_request(method, name, response_time, content_length)

        return log

    locust_internals.replace(stats, "log_request", with_stream_types)


def keep_entries_when_serialised(environment: Environment) -> None:
    """Let `--json` print the entries without emptying them, because the console prints them afterwards."""
    stats: Any = environment.stats

    def serialize() -> list[Any]:
        return [entry.serialize() for entry in stats.entries.values() if entry.num_requests]

    locust_internals.replace(stats, "serialize_stats", lambda _: serialize)


def row_names(targets: Targets) -> dict[str, str]:
    """The row name of each user class: the path of its requests and, if there are several classes, the class's name."""
    return {
        name: target.settings.endpoint.partition("?")[0] + (f" ({name})" if targets.several else "")
        for name, target in targets.items()
    }


def other_failures(runner: Runner, targets: Targets) -> int:
    """The number of failures of the locustfile's other requests that Locust counts, plus exceptions of users."""
    rows = set(row_names(targets).values())
    failed = sum(error.occurrences for error in runner.errors.values() if error.name not in rows)
    return failed + sum(exception["count"] for exception in runner.exceptions.values())


class LocustRows:
    """The rows of one path in Locust's statistics."""

    def __init__(self, environment: Environment, path: str) -> None:
        self._environment, self._path = environment, path
        self._errors: dict[str, set[str]] = {}
        """The messages of failures, by outcome."""

    def add(self, records: Sequence[Record]) -> None:
        """Fire the events of records: one for each request, and for a success its TTFT, each gap, and its TPOT, in ms.

        A failure has no latency: its row only counts it. A request cut off by the end of the test is counted, but not
        as a failure.
        """
        environment, path = self._environment, self._path
        at_once = locust_internals.listens_alone(environment)
        stream: dict[tuple[str, str], list[float]] = {}
        for record in records:
            if not record.ok:
                failed = RequestFailed(self._error(record)) if record.failed else None
                _event(environment, record, _method(record), path, None, exception=failed)
                continue
            _event(environment, record, _method(record), path, record.e2el, response_length=len(record.text.encode()))
            for kind, name, values in (
                ("TTFT", f"{path} time to first token", [record.ttft]),
                ("ITL", f"{path} inter-token latency", record.itl),
                ("TPOT", f"{path} time per output token", [record.tpot]),
                ("TTFS", f"{path} end of speech to final text", METRICS["ttfs"].values_of(record)),
            ):
                measured = [value for value in values if value is not None]
                if at_once:
                    stream.setdefault((kind, name), []).extend(measured)
                else:
                    for value in measured:
                        _event(environment, record, kind, name, value)
        for (kind, name), values in stream.items():
            if values:
                locust_internals.log_all(environment.stats.get(name, kind), np.array(values) * 1000, buckets)

    def _error(self, record: Record) -> str:
        """The outcome and the server's message, without the parts that differ each time. The record has the whole."""
        words = VARYING.sub("…", record.error or "")
        texts = self._errors.setdefault(record.outcome, set())
        if words not in texts and len(texts) == ERROR_ROWS:
            words = "other messages: see records.jsonl"
        else:
            texts.add(words)
        return f"{record.outcome}: {words}"


def _method(record: Record) -> str:
    return "WS" if isinstance(record, RealtimeRecord) else "POST"


def _event(
    environment: Environment, record: Record, kind: str, name: str, value_s: float | None, **more: object
) -> None:
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


class RequestFailed(Exception):
    """The error that Locust shows for a failed request: the outcome and the server's message."""

    def __repr__(self) -> str:
        return str(self)  # without the class's name, which Locust would show
