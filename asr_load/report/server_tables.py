"""What the server reported about itself, next to what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from asr_load.engine.families import COUNTERS, GAUGES, HISTOGRAMS
from asr_load.report.tables import Table
from asr_load.report.words import ms, number, percent
from asr_load.results.metrics import METRICS
from asr_load.results.server_view import Bucket, Gauge, ServerView
from asr_load.results.summary import Summary
from asr_load.text import count_of

Row = Sequence[str]


def server_tables(summary: Summary) -> Iterator[Table]:
    """A table for each metrics page that had figures."""
    for view in summary.server:
        if view.seconds:
            yield Table(
                f"{view.engine or 'Server'} about itself",
                ("", "server", "measured"),
                list(_rows(view, summary)),
                _note(view),
            )


def _note(view: ServerView) -> str:
    polls = count_of(view.polls, "poll")
    failed = f", of which {view.failed} failed ({view.error})" if view.failed else ""
    note = f"{view.url}: {polls}{failed}, over {view.seconds:.1f} s"
    return f"{note}. The server restarted, so counts are unknown." if view.restarted else f"{note}."


def _rows(view: ServerView, summary: Summary) -> Iterator[Row]:
    if view.requests is not None:
        yield "requests", f"{view.requests:,}", f"{view.sent:,}"
    ours = {
        "prompt_tokens": summary.prompt_tokens,
        "output_tokens": summary.output_tokens,
        "cached_tokens": summary.cached_tokens,
    }
    for meaning in COUNTERS:
        if (change := view.counters.get(meaning.name)) is not None:
            measured = ours.get(meaning.name)
            value = f"{number(change, 0)}{f' {meaning.unit}' if meaning.unit else ''}"
            yield meaning.title.lower(), value, "" if measured is None else f"{measured:,}"
    for meaning in GAUGES:
        if (gauge := view.gauges.get(meaning.name)) is not None:
            yield f"{meaning.title}, mean and maximum", _gauge(gauge, meaning.unit), ""
    for meaning in HISTOGRAMS:
        if (timing := view.timings.get(meaning.name)) is None:
            continue
        measured = getattr(summary, meaning.name) if meaning.name in METRICS else None
        yield f"{meaning.title} mean, ms", ms(timing.mean), "" if measured is None else ms(measured.mean)
        if timing.p95 is not None:
            yield f"{meaning.title} p95, ms", _bucket(timing.p95), "" if measured is None else ms(measured.p95)


def _gauge(gauge: Gauge, unit: str) -> str:
    match unit:
        case "share":
            return f"{percent(gauge.mean)}, {percent(gauge.max)}"
        case "bytes":
            return f"{gauge.mean / 2**30:.1f}, {gauge.max / 2**30:.1f} GiB"
    return f"{gauge.mean:.1f}, {gauge.max:g}{f' {unit}' if unit else ''}"


def _bucket(bucket: Bucket) -> str:
    """A bucket's bounds, in ms: nothing is known of the values between them."""
    if bucket.high is None:
        return f"> {bucket.low * 1e3:g}"
    return f"{bucket.low * 1e3:g} to {bucket.high * 1e3:g}" if bucket.low else f"≤ {bucket.high * 1e3:g}"
