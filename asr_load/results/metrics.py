"""The one table of metrics, which the summary, all tables, the tab, SLOs, the search and docs/metrics.md go by."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from asr_load.stream.record import LiveRecord, Record

AT_ONCE = 10_000
"""Records whose gaps are put together in one go."""


def _from_due(name: str) -> Callable[[Record], float | None]:
    def get(record: Record) -> float | None:
        value: float | None = getattr(record, name)
        return None if value is None or record.lag is None else value + record.lag

    return get


@dataclass(frozen=True)
class Metric:
    """A metric of a request."""

    name: str
    """In files and options."""
    title: str
    """In tables."""
    definition: str
    get: Callable[[Any], Any]
    """What a record has of it, in seconds or without a unit; None: nothing."""
    several: bool = False
    """Whether a record has any number of values, as a sequence."""
    in_seconds: bool = True
    usual: bool = True
    """Whether a run has it, whatever its load is."""
    live: bool = False
    """Whether it is one of realtime sessions, of which those that people wait for are watched while a test runs."""

    def of(self, record: Record) -> Sequence[float]:
        """What a record has of it: one value, several, or none."""
        if self.live and not isinstance(record, LiveRecord):
            return ()
        value = self.get(record)
        if self.several:
            several: Sequence[float] = value
            return several
        return () if value is None else (value,)

    def values(self, records: Iterable[Record]) -> np.ndarray:
        """What all have of it, in turn; shape (n,)."""
        if self.live:
            records = (record for record in records if isinstance(record, LiveRecord))
        got = map(self.get, records)
        if self.several:
            return _joined(list(got))
        there = [value for value in got if value is not None]
        return np.fromiter(there, float, len(there))

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


def _joined(parts: Sequence[Sequence[float]]) -> np.ndarray:
    """All values in turn. A million requests have tens of millions of gaps: no object is made for each."""
    joined, end = np.empty(sum(map(len, parts))), 0
    for first in range(0, len(parts), AT_ONCE):
        some = parts[first : first + AT_ONCE]
        values = np.frombuffer(b"".join(each if isinstance(each, array) else array("d", each) for each in some))
        joined[end : end + values.size] = values
        end += values.size
    return joined


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "ttft",
            "TTFT",
            "start to the first non-empty content or reasoning chunk; the role-only chunk that SGLang sends first does"
            " not count",
            lambda record: record.ttft,
        ),
        Metric(
            "ttft_text",
            "TTFT of text",
            "where a model puts an envelope before its transcript, as Qwen3-ASR does: start to the first character"
            " behind it",
            lambda record: record.ttft_text,
            usual=False,
        ),
        Metric(
            "connect",
            "Connect",
            "where a connection was opened for a request: to connect and to agree on TLS; it is in no other latency",
            lambda record: record.connect,
            usual=False,
        ),
        Metric(
            "itl",
            "ITL",
            "gap between two successive non-empty chunks; an engine may put several tokens into one, so"
            " `tokens_per_chunk` is shown beside it",
            lambda record: record.itl,
            several=True,
        ),
        Metric(
            "tpot",
            "TPOT",
            "(e2el - ttft) / (output tokens - 1); undefined for one token or none, and where the server did not tell"
            " them",
            lambda record: record.tpot,
        ),
        Metric(
            "e2el",
            "E2E",
            "start to the last non-empty chunk; `stream_end`: start to the end of the body",
            lambda record: record.e2el,
        ),
        Metric(
            "rtf",
            "RTF",
            "e2el / length of the clip: below 1 is faster than speech",
            lambda record: record.rtf,
            in_seconds=False,
        ),
        Metric(
            "ttft_due",
            "TTFT from due",
            "open loop: TTFT from when the request was due",
            _from_due("ttft"),
            usual=False,
        ),
        Metric(
            "e2el_due",
            "E2E from due",
            "open loop: E2E from when the request was due",
            _from_due("e2el"),
            usual=False,
        ),
        Metric(
            "lag",
            "Sent after due",
            "open loop: when a request was sent - when it was due (`due_at`)",
            lambda record: record.lag,
            usual=False,
        ),
        *(
            replace(metric, usual=False, live=True)
            for metric in (
                Metric(
                    "ttfs",
                    "TTFS",
                    "realtime: end of speech to the final text, which is what a person waits. Speech ends when its last"
                    " packet is due or, with --trailing-silence, where its loudness ends",
                    lambda record: record.ttfs,
                ),
                Metric(
                    "done_latency",
                    "Done",
                    "realtime: the message that ended the audio to the final text",
                    lambda record: record.done_latency,
                ),
                Metric(
                    "rtf_live",
                    "RTF live",
                    "realtime: first packet to the final text / seconds of audio sent: 1 keeps up, more falls behind",
                    lambda record: record.rtf_live,
                    in_seconds=False,
                ),
                Metric(
                    "partial_lag",
                    "Partial lag",
                    "realtime: for each text whose place in the audio the server tells (omni): when it came, less when"
                    " the audio up to there had been sent",
                    lambda record: record.partial_lag,
                    several=True,
                ),
                Metric(
                    "backlog",
                    "Backlog",
                    "realtime: seconds of audio sent and in no text yet when the audio ended, where the server tells"
                    " (omni)",
                    lambda record: record.backlog,
                ),
                Metric(
                    "revised",
                    "Revised words",
                    "realtime: words that were withdrawn (omni)",
                    lambda record: record.revised,
                    in_seconds=False,
                ),
                Metric(
                    "setup",
                    "Setup",
                    "realtime: TCP, TLS, upgrade, configuration, until audio can be sent; it is in no other latency",
                    lambda record: record.setup,
                ),
                Metric(
                    "send_lag",
                    "Packets late",
                    "realtime: p99 of a session's packets: given to the socket after they were due",
                    lambda record: record.send_lag and record.send_lag["p99"],
                ),
            )
        ),
    )
}


STREAMED = [metric for metric in METRICS.values() if metric.usual or metric.name in ("ttfs", "rtf_live")]
"""Those that are watched while a test runs."""
