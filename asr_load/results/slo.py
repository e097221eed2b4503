"""Limits that a run must meet: SLOs over all requests, and goodput for each request."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from asr_load.errors import InputError
from asr_load.results.metrics import METRICS
from asr_load.stream.record import Record

OF_VALUES = (
    "ttft", "itl", "tpot", "e2el", "lag", "rtf",
    *(metric.name for metric in METRICS.values() if metric.is_realtime),
)  # fmt: skip
"""Metrics with one or more values per request."""

SLO_STATISTICS = {
    **dict.fromkeys(OF_VALUES, "mean, max or a percentile such as p95"),
    "wer": "mean",
    "cer": "mean",
    "errors": "rate",
}
GOODPUT = ("ttft", "tpot", "e2el", "ttfs", "rtf_live")

_LIMIT = re.compile(r"([\d.eE+-]+)\s*(ms|s)", re.ASCII)
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)", re.ASCII)


@dataclass(frozen=True)
class Slo:
    """An upper limit, inclusive, for a statistic of a metric; in ms for latencies."""

    metric: str
    statistic: str
    limit: float

    @property
    def name(self) -> str:
        return f"{self.metric}:{self.statistic}"

    @property
    def text(self) -> str:
        """The SLO as typed on a command line."""
        return f"{self.name}:{self.limit!r}"

    @property
    def unit(self) -> str:
        """The unit with a space before it; empty without one."""
        return f" {_unit(self.metric)}".rstrip()

    @property
    def share(self) -> float | None:
        """For a percentile, the share of values that it bounds: 0.95 for p95, 1 for max; else None."""
        if self.statistic == "max":
            return 1.0
        match = _PERCENTILE.fullmatch(self.statistic)
        return float(match[1]) / 100 if match else None

    def __str__(self) -> str:
        return f"{self.name} <= {self.limit:g}{self.unit}"


class SloResult(msgspec.Struct):
    """The result of an SLO. `limit` and `value` are in ms for latencies; `value` is None if nothing was measured."""

    name: str
    limit: float
    value: float | None
    ok: bool

    @property
    def slo(self) -> Slo:
        metric, _, statistic = self.name.partition(":")
        return Slo(metric, statistic, self.limit)

    @property
    def value_text(self) -> str:
        """The value with its unit."""
        return "no value" if self.value is None else f"{self.value:.4g}{self.slo.unit}"


def parse_slos(texts: Iterable[str]) -> list[Slo]:
    """Parse SLOs, each METRIC:STATISTIC:LIMIT. Raises InputError."""
    slos = [parse_slo(text) for text in texts]
    for number, slo in enumerate(slos):
        if slo.name in [other.name for other in slos[:number]]:
            raise InputError(f"--slo {slo.name} is given twice")
    return slos


def parse_slo(text: str) -> Slo:
    """Parse `ttft:p95:500`: the 95th percentile of TTFT is at most 500 ms. Raises InputError."""
    metric, _, rest = text.strip().partition(":")
    statistic, colon, word = rest.partition(":")
    if metric not in SLO_STATISTICS:
        known = ", ".join(SLO_STATISTICS)
        raise InputError(f"--slo {text!r}: the metric {metric!r} is unknown; use one of {known} (ttft:p95:500)")
    allowed = SLO_STATISTICS[metric]
    if not colon and statistic[:1].isdigit():
        usual = allowed if " " not in allowed else "p95"
        raise InputError(f"--slo {text!r}: use METRIC:STATISTIC:LIMIT, such as {metric}:{usual}:{statistic}")
    slo = Slo(metric, statistic, parse_limit(f"--slo {text!r}", metric, word))
    if statistic != allowed and not (metric in OF_VALUES and (statistic == "mean" or 0 < (slo.share or 0) <= 1)):
        raise InputError(f"--slo {text!r}: the statistic of {metric} is {allowed}, not {statistic!r}")
    return slo


SMALLEST_MS = 5.0
"""A latency limit below this is probably in seconds, unless it has a unit."""


def parse_limit(what: str, metric: str, word: str) -> float:
    """Parse a limit; latencies come out in ms, whatever their unit. Raises InputError, which begins with `what`."""
    match = _LIMIT.fullmatch(word.strip())
    number, unit = match.groups() if match else (word, "")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    in_ms = _unit(metric) == "ms"
    if not (math.isfinite(limit) and limit >= 0) or (unit and not in_ms):
        units = ", in ms or with a unit: 500, 500ms, 0.5s" if in_ms else ""
        problem = f"the limit {word!r} is not a number of at least 0" if word else "the limit is missing"
        raise InputError(f"{what}: {problem}{units}")
    return limit * 1e3 if unit == "s" else limit


def check_unit(option: str, text: str) -> None:
    """Raise InputError if a typed limit, METRIC:…:LIMIT, is a latency below 5 without a unit, because it may be in
    seconds. Limits that a run stores are in ms."""
    metric, word = text.strip().partition(":")[0], text.rpartition(":")[2].strip()
    if _unit(metric) == "ms" and re.fullmatch(r"\d+\.?\d*|\.\d+", word, re.ASCII) and 0 < float(word) < SMALLEST_MS:
        raise InputError(f"{option} {text!r}: {word} has no unit. Use {text}s for seconds or {text}ms for milliseconds")


def _unit(metric: str) -> str:
    return METRICS[metric].unit if metric in METRICS else ""


def miss_line(result: SloResult) -> str:
    """Describe how an SLO was missed."""
    value = "has no value" if result.value is None else f"is {result.value_text}"
    return f"{result.name} {value} (limit {result.slo.limit:g}{result.slo.unit})"


def slo_lines(results: Iterable[SloResult]) -> list[str]:
    """One line for each SLO: limit, value, pass or FAIL."""
    return [f"SLO {result.slo}: {result.value_text}, {'pass' if result.ok else 'FAIL'}" for result in results]


class Goodput:
    """Limits for each request, in ms, in the form of vLLM's and SGLang's serving benchmarks: `ttft:500 tpot:40`.

    A request without a TPOT (fewer than two tokens) meets any limit on it; a failure meets none.
    """

    def __init__(self, text: str) -> None:
        """Raises InputError."""
        self.limits: dict[str, float] = {}
        for word in text.split():
            metric, _, limit = word.partition(":")
            if metric not in GOODPUT:
                known = ", ".join(GOODPUT)
                raise InputError(f"--goodput {text!r}: use one of {known}, not {metric!r}, such as ttft:500")
            if metric in self.limits:
                raise InputError(f"--goodput {text!r}: {metric} is given twice")
            self.limits[metric] = parse_limit(f"--goodput {text!r}", metric, limit)
        if not self.limits:
            raise InputError("--goodput needs limits in ms, such as 'ttft:500 tpot:40 e2el:3000'")

    def meets(self, record: Record) -> bool:
        """Whether a request met all limits."""
        return record.ok and all(
            value <= limit for metric, limit in self.limits.items() for value in METRICS[metric].shown(record)
        )
