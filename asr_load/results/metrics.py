"""The table of metrics, shared by the summary, all tables, the tab, SLOs, the search and docs/metrics.md."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from asr_load.stream.record import RealtimeRecord, Record

if TYPE_CHECKING:
    import numpy as np

JOINED_RECORDS = 10_000
"""Number of records whose gaps are joined at a time."""


class Figures(msgspec.Struct):
    """Statistics of a latency, in seconds, or of `rtf`, a ratio. All None if n is 0."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None
    n: int

    def scaled(self, factor: float) -> Figures:
        """The figures in another unit."""
        names = [name for name in self.__struct_fields__ if name != "n" and getattr(self, name) is not None]
        return msgspec.structs.replace(self, **{name: getattr(self, name) * factor for name in names})


def figures(values: Iterable[float]) -> Figures:
    """Mean, percentiles (linear interpolation, as numpy's default) and maximum."""
    import numpy as np  # late: see "Start" in docs/architecture.md

    return _figures(np.fromiter(values, dtype=float))


def _figures(values: np.ndarray) -> Figures:
    """Like `figures`, but reorders `values`, because a copy of a long run's gaps would take half a gigabyte."""
    if values.size == 0:
        return Figures(None, None, None, None, None, None, 0)
    import numpy as np

    mean, highest = float(values.mean()), float(values.max())
    p50, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99], overwrite_input=True).tolist()
    return Figures(mean, p50, p90, p95, p99, highest, values.size)


def figures_of(metric: str, records: Iterable[Record]) -> Figures:
    """Figures of a metric in METRICS over records."""
    return _figures(METRICS[metric].values(records))


@dataclass(frozen=True)
class Metric:
    """A metric of a request."""

    name: str
    """Name in files and options."""
    title: str
    """Name in tables."""
    definition: str
    from_record: Callable[[Any], Any] | None = None
    """Get a record's value, in seconds or without a unit; None without one. By default the field of this name."""
    several: bool = False
    """Whether a record has a sequence of values."""
    in_seconds: bool = True
    usual: bool = True
    """Whether every run has the metric, whatever its load."""
    is_realtime: bool = False
    """Whether only realtime sessions have the metric."""
    of_failures: bool = False
    """Whether failed requests have the metric too."""

    @cached_property
    def get(self) -> Callable[[Any], Any]:
        """A function that returns a record's value, or None."""
        return self.from_record or attrgetter(self.name)

    def values_of(self, record: Record) -> Sequence[float]:
        """A record's values: none, one or several."""
        if self.is_realtime and not isinstance(record, RealtimeRecord):
            return ()
        value = self.get(record)
        if self.several:
            several: Sequence[float] = value
            return several
        return () if value is None else (value,)

    def values(self, records: Iterable[Record]) -> np.ndarray:
        """The values of all records, in order; shape (n,)."""
        import numpy as np

        if self.is_realtime:
            records = (record for record in records if isinstance(record, RealtimeRecord))
        got = map(self.get, records)
        if self.several:
            return _joined(list(got))
        there = [value for value in got if value is not None]
        return np.fromiter(there, float, len(there))

    @property
    def unit(self) -> str:
        """Unit in tables and in the limits of SLOs."""
        return "ms" if self.in_seconds else ""

    @property
    def scale(self) -> float:
        """Factor from the stored unit to `unit`."""
        return 1e3 if self.in_seconds else 1.0

    @property
    def heading(self) -> str:
        """Title with unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def shown(self, record: Record) -> Sequence[float]:
        """A record's values in `unit`."""
        return [value * self.scale for value in self.values_of(record)]


def _joined(parts: Sequence[Sequence[float]]) -> np.ndarray:
    """Join all values in order without an object for each: a million requests have tens of millions of gaps."""
    import numpy as np

    joined, end = np.empty(sum(map(len, parts))), 0
    for first in range(0, len(parts), JOINED_RECORDS):
        several = parts[first : first + JOINED_RECORDS]
        values = np.frombuffer(b"".join(one if isinstance(one, array) else array("d", one) for one in several))
        joined[end : end + values.size] = values
        end += values.size
    return joined


def _from_due(name: str) -> Callable[[Record], float | None]:
    def get(record: Record) -> float | None:
        value: float | None = getattr(record, name)
        return None if value is None or record.lag is None else value + record.lag

    return get


_ALL = [
    Metric(
        "ttft",
        "TTFT",
        "start to the first non-empty content or reasoning chunk; the role-only chunk that SGLang sends first does not"
        " count",
    ),
    Metric(
        "ttft_text",
        "TTFT of text",
        "start to the first character of the transcript, for a model that puts an envelope around it (Qwen3-ASR)",
        usual=False,
    ),
    Metric(
        "connect",
        "Connect",
        "time to open a connection for a request, including TLS; not part of other latencies",
        usual=False,
        of_failures=True,
    ),
    Metric(
        "itl",
        "ITL",
        "gap between two successive non-empty chunks; an engine may put several tokens into one chunk (see"
        " `tokens_per_chunk`)",
        several=True,
    ),
    Metric(
        "tpot",
        "TPOT",
        "(e2el - ttft) / (output tokens - 1); undefined for fewer than two tokens, and without the server's token"
        " count",
    ),
    Metric("e2el", "E2E", "start to the last non-empty chunk; `stream_end`: start to the end of the body"),
    Metric("rtf", "RTF", "e2el / clip length: below 1 is faster than real time", in_seconds=False),
    Metric(
        "ttft_due",
        "TTFT from due",
        "open loop: TTFT measured from when the request was due",
        _from_due("ttft"),
        usual=False,
    ),
    Metric(
        "e2el_due",
        "E2E from due",
        "open loop: E2E measured from when the request was due",
        _from_due("e2el"),
        usual=False,
    ),
    Metric(
        "lag",
        "Sent after due",
        "open loop: time from when a request was due (`due_at`) until it was sent",
        usual=False,
        of_failures=True,
    ),
]

_REALTIME = [
    Metric(
        "ttfs",
        "TTFS",
        "realtime: time to final segment: end of speech to the final text, how long a person waits. Speech ends when"
        " its last packet is due or, with --trailing-silence, where the clip falls silent",
    ),
    Metric("done_latency", "Done", "realtime: from the message that ends the audio to the final text"),
    Metric(
        "rtf_live",
        "RTF live",
        "realtime: (first packet to the final text) / seconds of audio sent; above 1: too slow",
        in_seconds=False,
    ),
    Metric(
        "partial_lag",
        "Partial lag",
        "realtime: for each partial text with a position in the audio (omni): time from sending that audio to receiving"
        " the text",
        several=True,
    ),
    Metric(
        "backlog",
        "Backlog",
        "realtime: seconds of audio that were sent but not in any text when the audio ended, if the server reports"
        " positions (omni)",
    ),
    Metric("revised", "Revised words", "realtime: words that the server withdrew (omni)", in_seconds=False),
    Metric(
        "setup",
        "Setup",
        "realtime: TCP, TLS, upgrade, configuration, until audio can be sent; not part of other latencies",
    ),
    Metric(
        "send_lag",
        "Packets late",
        "realtime: how late packets were sent, p99 of each session (Packets late)",
        lambda record: record.send_lag and record.send_lag["p99"],
    ),
]

METRICS = {
    metric.name: metric for metric in (*_ALL, *(replace(metric, usual=False, is_realtime=True) for metric in _REALTIME))
}

STREAMED = [metric for metric in METRICS.values() if metric.usual or metric.name in ("ttfs", "rtf_live")]
"""Metrics that the tab shows while a test runs."""
