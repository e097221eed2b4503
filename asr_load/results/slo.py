"""Limits that a run must keep: SLOs over all requests, and goodput, which asks it of each request."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from asr_load.errors import InputError
from asr_load.results.accuracy import measure, spoken
from asr_load.results.metrics import METRICS
from asr_load.results.normalizers import Scoring
from asr_load.stream.record import Record

OF_VALUES = (
    "ttft", "itl", "tpot", "e2el", "lag", "rtf",
    *(metric.name for metric in METRICS.values() if metric.live),
)  # fmt: skip
"""Metrics that have a value or more for each request."""

STATISTICS = {
    **dict.fromkeys(OF_VALUES, "mean, max or a percentile like p95"),
    "wer": "mean",
    "cer": "mean",
    "errors": "rate",
}
GOODPUT = ("ttft", "tpot", "e2el", "ttfs", "rtf_live")

_LIMIT = re.compile(r"([\d.eE+-]+)\s*(ms|s)", re.ASCII)
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)", re.ASCII)


@dataclass(frozen=True)
class Slo:
    """A limit that a statistic of a metric may reach and not pass. In ms for latencies."""

    metric: str
    statistic: str
    limit: float

    @property
    def name(self) -> str:
        return f"{self.metric}:{self.statistic}"

    @property
    def text(self) -> str:
        """As it is given on a command line."""
        return f"{self.name}:{self.limit!r}"

    @property
    def unit(self) -> str:
        unit = _unit(self.metric)
        return f" {unit}" if unit else ""

    @property
    def share(self) -> float | None:
        """Of a percentile, the share of values that it bounds: 0.95 for p95, 1 for max; None for others."""
        if self.statistic == "max":
            return 1.0
        match = _PERCENTILE.fullmatch(self.statistic)
        return float(match[1]) / 100 if match else None

    def __str__(self) -> str:
        return f"{self.name} <= {self.limit:g}{self.unit}"


class SloResult(msgspec.Struct):
    """How an SLO fared. `limit` and `value` in ms for latencies; None where there was nothing to be judged."""

    name: str
    limit: float
    value: float | None
    ok: bool


def parse_slos(texts: Iterable[str]) -> list[Slo]:
    """SLOs as they are given, each METRIC:STATISTIC:LIMIT. Raises InputError."""
    slos = [parse_slo(text) for text in texts]
    for number, slo in enumerate(slos):
        if slo.name in [other.name for other in slos[:number]]:
            raise InputError(f"--slo {slo.name} is given twice")
    return slos


def parse_slo(text: str) -> Slo:
    """`ttft:p95:500`: the 95th percentile of TTFT is at most 500 ms. Raises InputError."""
    metric, _, rest = text.strip().partition(":")
    statistic, colon, word = rest.partition(":")
    if metric not in STATISTICS:
        raise InputError(f"--slo {text!r}: the metric {metric!r} is none of {', '.join(STATISTICS)} (ttft:p95:500)")
    allowed = STATISTICS[metric]
    if not colon and statistic[:1].isdigit():
        usual = allowed if " " not in allowed else "p95"
        raise InputError(f"--slo {text!r} takes METRIC:STATISTIC:LIMIT, as {metric}:{usual}:{statistic}")
    slo = Slo(metric, statistic, parse_limit(f"--slo {text!r}", metric, word))
    if statistic != allowed and not (metric in OF_VALUES and (statistic == "mean" or 0 < (slo.share or 0) <= 1)):
        raise InputError(f"--slo {text!r}: of {metric} there is {allowed}, not {statistic!r}")
    return slo


SMALLEST_MS = 5.0
"""A latency limit below it is likelier to be in seconds, unless its unit says otherwise."""


def parse_limit(what: str, metric: str, word: str) -> float:
    """A limit as its metric has it: latencies in ms, whatever unit they are given in. Raises InputError, which names
    `what` was given."""
    match = _LIMIT.fullmatch(word.strip())
    number, unit = match.groups() if match else (word, "")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    in_ms = _unit(metric) == "ms"
    if not (math.isfinite(limit) and limit >= 0) or (unit and not in_ms):
        units = ", in ms or with a unit: 500, 500ms, 0.5s" if in_ms else ""
        raise InputError(f"{what}: the limit {word!r} is no number from 0 up{units}")
    return limit * 1e3 if unit == "s" else limit


def check_unit(option: str, text: str) -> None:
    """Raise InputError if a limit that was typed, METRIC:…:LIMIT, is a latency below 5 without a unit: seconds may be
    meant. Limits that a run has kept are in ms."""
    metric, word = text.strip().partition(":")[0], text.rpartition(":")[2].strip()
    if _unit(metric) == "ms" and re.fullmatch(r"\d+\.?\d*|\.\d+", word, re.ASCII) and 0 < float(word) < SMALLEST_MS:
        raise InputError(
            f"{option} {text!r}: {word} of which unit? Give {text}s for seconds or {text}ms for milliseconds"
        )


def _unit(metric: str) -> str:
    return METRICS[metric].unit if metric in METRICS else ""


def judge_slos(slos: Sequence[Slo], records: Sequence[Record], scoring: Scoring) -> list[SloResult]:
    """Hold a run's measured records against its SLOs. Percentiles are of all values, linear between two of them."""
    return [_judge(slo, records, scoring) for slo in slos]


def _judge(slo: Slo, records: Sequence[Record], scoring: Scoring) -> SloResult:
    good = [record for record in records if record.ok]
    value: float | None
    if slo.metric == "errors":
        failed = sum(record.failed for record in records)
        value = failed / (failed + len(good)) if failed or good else None
    elif slo.metric in ("wer", "cer"):
        value = getattr(measure(spoken(good, scoring), scoring), slo.metric)
    else:
        values = [value for record in good for value in METRICS[slo.metric].shown(record)]
        if not values:
            value = None
        elif slo.share is None:
            value = float(np.mean(values))
        else:
            value = float(np.percentile(values, slo.share * 100))
    return SloResult(slo.name, slo.limit, value, ok=value is not None and value <= slo.limit)


def miss_line(result: SloResult) -> str:
    """How an SLO was missed, in words."""
    slo = _slo_of(result)
    value = "has no value" if result.value is None else f"is {result.value:.4g}{slo.unit}"
    return f"{result.name} {value} (limit {slo.limit:g}{slo.unit})"


def _slo_of(result: SloResult) -> Slo:
    metric, _, statistic = result.name.partition(":")
    return Slo(metric, statistic, result.limit)


def slo_lines(results: Iterable[SloResult]) -> list[str]:
    """One line for each: limit, value, pass or FAIL."""
    lines = []
    for result in results:
        slo = _slo_of(result)
        value = "no value" if result.value is None else f"{result.value:.4g}{slo.unit}"
        lines.append(f"SLO {slo}: {value}, {'pass' if result.ok else 'FAIL'}")
    return lines


class Goodput:
    """Limits for each request, in ms, as the serving benchmarks of vLLM and SGLang take them: `ttft:500 tpot:40`.

    A request that has no TPOT (one token or none) breaks no limit on it; a failure meets nothing.
    """

    def __init__(self, text: str) -> None:
        """Raises InputError."""
        self.limits: dict[str, float] = {}
        for word in text.split():
            metric, _, limit = word.partition(":")
            if metric not in GOODPUT:
                raise InputError(f"--goodput {text!r}: {metric!r} is none of {', '.join(GOODPUT)} (ttft:500 tpot:40)")
            if metric in self.limits:
                raise InputError(f"--goodput {text!r}: {metric} is given twice")
            self.limits[metric] = parse_limit(f"--goodput {text!r}", metric, limit)
        if not self.limits:
            raise InputError("--goodput takes limits in ms like 'ttft:500 tpot:40 e2el:3000'")

    def meets(self, record: Record) -> bool:
        """Whether a request met all limits."""
        return record.ok and all(
            value <= limit for metric, limit in self.limits.items() for value in METRICS[metric].shown(record)
        )
