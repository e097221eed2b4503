"""The one table of metrics, which the summary, all tables, the tab, SLOs, the search and docs/metrics.md go by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from asr_load.stream.record import LiveRecord, Record


def _from_due(value: float | None, record: Record) -> Sequence[float]:
    return _one(None if value is None or record.lag is None else value + record.lag)


def _one(value: float | None) -> Sequence[float]:
    return () if value is None else (value,)


def _live(name: str, title: str, definition: str, *, in_seconds: bool = True) -> Metric:
    """A metric that records of realtime sessions alone have, by the name of its field."""

    def of(record: Record) -> Sequence[float]:
        if not isinstance(record, LiveRecord):
            return ()
        value = getattr(record, name)
        if isinstance(value, dict):
            value = value["p99"]
        return value if isinstance(value, list) else _one(value)

    return Metric(name, title, definition, of, in_seconds=in_seconds, usual=False, live=True)


@dataclass(frozen=True)
class Metric:
    """A metric of a request. `of` gives what a record has of it, in seconds or without a unit: one value, several, or
    none."""

    name: str
    """In files and options."""
    title: str
    """In tables."""
    definition: str
    of: Callable[[Record], Sequence[float]]
    in_seconds: bool = True
    usual: bool = True
    """Whether a run has it, whatever its load is."""
    live: bool = False
    """Whether it is one of realtime sessions, of which those that people wait for are watched while a test runs."""

    @property
    def unit(self) -> str:
        """That people see, as the limits of SLOs have it."""
        return "ms" if self.in_seconds else ""

    @property
    def scale(self) -> float:
        """What makes a value one of that unit."""
        return 1e3 if self.in_seconds else 1.0

    @property
    def heading(self) -> str:
        """The title with the unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def shown(self, record: Record) -> Sequence[float]:
        """What a record has of it, in the unit."""
        return [value * self.scale for value in self.of(record)]


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "ttft",
            "TTFT",
            "start to the first non-empty content or reasoning chunk; the role-only chunk that SGLang sends first does"
            " not count",
            lambda record: _one(record.ttft),
        ),
        Metric(
            "ttft_text",
            "TTFT of text",
            "where a model puts an envelope before its transcript, as Qwen3-ASR does: start to the first character"
            " behind it",
            lambda record: _one(record.ttft_text),
            usual=False,
        ),
        Metric(
            "connect",
            "Connect",
            "where a connection was opened for a request: to connect and to agree on TLS; it is in no other latency",
            lambda record: _one(record.connect),
            usual=False,
        ),
        Metric(
            "itl",
            "ITL",
            "gap between two successive non-empty chunks; an engine may put several tokens into one, so"
            " `tokens_per_chunk` is shown beside it",
            lambda record: record.itl,
        ),
        Metric(
            "tpot",
            "TPOT",
            "(e2el - ttft) / (output tokens - 1); undefined for one token or none, and where the server did not tell"
            " them",
            lambda record: _one(record.tpot),
        ),
        Metric(
            "e2el",
            "E2E",
            "start to the last non-empty chunk; `stream_end`: start to the end of the body",
            lambda record: _one(record.e2el),
        ),
        Metric(
            "rtf",
            "RTF",
            "e2el / length of the clip: below 1 is faster than speech",
            lambda record: _one(record.rtf),
            in_seconds=False,
        ),
        Metric(
            "ttft_due",
            "TTFT from due",
            "open loop: TTFT from when the request was due",
            lambda record: _from_due(record.ttft, record),
            usual=False,
        ),
        Metric(
            "e2el_due",
            "E2E from due",
            "open loop: E2E from when the request was due",
            lambda record: _from_due(record.e2el, record),
            usual=False,
        ),
        Metric(
            "lag",
            "Sent after due",
            "open loop: when a request was sent - when it was due (`due_at`)",
            lambda record: _one(record.lag),
            usual=False,
        ),
        _live(
            "ttfs",
            "TTFS",
            "realtime: end of speech to the final text, which is what a person waits. Speech ends when its last packet"
            " is due or, with --trailing-silence, where its loudness ends",
        ),
        _live("done_latency", "Done", "realtime: the message that ended the audio to the final text"),
        _live(
            "rtf_live",
            "RTF live",
            "realtime: first packet to the final text / seconds of audio sent: 1 keeps up, more falls behind",
            in_seconds=False,
        ),
        _live(
            "partial_lag",
            "Partial lag",
            "realtime: for each text whose place in the audio the server tells (omni): when it came, less when the"
            " audio up to there had been sent",
        ),
        _live(
            "backlog",
            "Backlog",
            "realtime: seconds of audio sent and in no text yet when the audio ended, where the server tells (omni)",
        ),
        _live("revised", "Revised words", "realtime: words that were withdrawn (omni)", in_seconds=False),
        _live(
            "setup",
            "Setup",
            "realtime: TCP, TLS, upgrade, configuration, until audio can be sent; it is in no other latency",
        ),
        _live(
            "send_lag", "Packets late", "realtime: p99 of a session's packets: given to the socket after they were due"
        ),
    )
}


def values_of(metric: str, records: Iterable[Record]) -> np.ndarray:
    """All values of a metric, in seconds or without a unit; shape (n,)."""
    return np.fromiter(chain.from_iterable(map(METRICS[metric].of, records)), float)


STREAMED = [metric for metric in METRICS.values() if metric.usual or metric.name in ("ttfs", "rtf_live")]
"""Those that are watched while a test runs."""
