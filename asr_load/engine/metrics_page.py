"""What a metrics page says, and how to read one in Prometheus' text format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from asr_load.engine.families import COUNTERS, ENGINES, GAUGES, HISTOGRAMS, RANKS, Family, Meaning

Samples = Sequence[tuple[Mapping[str, str], float]]
"""Samples of one name: labels and value."""


class Distribution(msgspec.Struct):
    """A histogram of seconds."""

    sum: float
    count: float
    buckets: list[tuple[float, float]] = []
    """Upper bound, and the number of values up to it; the last bound, infinity, is left out."""


class Page(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a page says, by the names of meanings (families.py)."""

    engine: str = ""
    """Name of the engine; empty if the page has metrics of none."""
    gauges: dict[str, float] = {}
    counters: dict[str, float] = {}
    requests: dict[str, float] = {}
    """Requests that the HTTP layer counted, by path."""
    histograms: dict[str, Distribution] = {}

    def __bool__(self) -> bool:
        """Whether the page has any metric with a known meaning."""
        return bool(self.gauges or self.counters or self.requests or self.histograms)


class Poll(Page, kw_only=True):
    """One look at a page: what it said, or the error."""

    url: str
    """Name of the source."""
    t: float
    """Time of the request, in seconds since the epoch."""
    took: float
    """Seconds until the response was complete."""
    error: str = ""


POLLS = "server.jsonl"
"""The file of a run that holds its polls."""

_OF_HISTOGRAM = ("_sum", "_count", "_bucket")
_WANTED = {family.name for meaning in (*GAUGES, *COUNTERS) for family in meaning.families} | {
    family.name + part for meaning in HISTOGRAMS for family in meaning.families for part in _OF_HISTOGRAM
}


def read_page(text: str) -> Page:
    """Read a page. Samples that are not a number are left out. Raises ValueError if it is not in Prometheus' format."""
    from prometheus_client.parser import text_string_to_metric_families  # late: most commands read no page

    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    engine = ""
    for metric in text_string_to_metric_families(text):
        engine = engine or next((name for prefix, name in ENGINES.items() if metric.name.startswith(prefix)), "")
        for sample in metric.samples:
            if sample.name in _WANTED and not math.isnan(sample.value):
                key = tuple(sorted((name, value) for name, value in sample.labels.items() if name not in RANKS))
                samples.setdefault(sample.name, {})[key] = float(sample.value)
    known: dict[str, Samples] = {
        name: [(dict(key), value) for key, value in each.items()] for name, each in samples.items()
    }
    page = Page(engine=engine)
    for meaning in GAUGES:
        if (found := _first(meaning, known)) is not None:
            page.gauges[meaning.name] = _combined(meaning, *found)
    for meaning in COUNTERS:
        if (found := _first(meaning, known)) is None:
            continue
        family, values = found
        if family.path:
            for labels, value in values:
                path = labels.get(family.path, "")
                page.requests[path] = page.requests.get(path, 0.0) + value
        else:
            page.counters[meaning.name] = _combined(meaning, family, values)
    for meaning in HISTOGRAMS:
        if (distribution := _distribution(meaning, known)) is not None:
            page.histograms[meaning.name] = distribution
    return page


def _first(meaning: Meaning, known: Mapping[str, Samples]) -> tuple[Family, Samples] | None:
    """The first family of a meaning that the page has, and its samples; None without one."""
    for family in meaning.families:
        wanted = family.only.items()
        if values := [each for each in known.get(family.name, ()) if wanted <= each[0].items()]:
            return family, values
    return None


def _combined(meaning: Meaning, family: Family, samples: Samples) -> float:
    return meaning.over_engines([value for _, value in samples]) * family.scale


def _distribution(meaning: Meaning, known: Mapping[str, Samples]) -> Distribution | None:
    """The histogram of a meaning over all engines of the page; None without one."""
    for family in meaning.families:
        total, count = (known.get(family.name + part) for part in ("_sum", "_count"))
        if total is None or count is None:
            continue
        below: dict[float, float] = {}
        for labels, value in known.get(f"{family.name}_bucket", ()):
            bound = _number(labels.get("le", ""))
            if math.isfinite(bound):
                below[bound] = below.get(bound, 0.0) + value
        return Distribution(_total(total), _total(count), sorted(below.items()))
    return None


def _total(samples: Iterable[tuple[Mapping[str, str], float]]) -> float:
    return sum(value for _, value in samples)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
