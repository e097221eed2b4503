"""The Streaming tab's headline and table, during a test and after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from asr_load.report.tables import FEW
from asr_load.report.words import ms, number, percent
from asr_load.results.live import PERCENTILES, WINDOW_S, Live
from asr_load.results.metrics import METRICS, STREAMED, Metric
from asr_load.results.pass_fail import Kind, Verdict
from asr_load.results.slo import Slo, SloResult
from asr_load.results.summary import Summary
from asr_load.results.verdict import Validity
from asr_load.text import count_of

COLUMNS = (*(f"p{share}" for share in PERCENTILES), "max", "n")
BLOCKS = (f"last {WINDOW_S} s", "whole test")
MANY = 0.05
"""Share of failed requests above which the server counts as failing."""


class Tile(NamedTuple):
    """A headline figure. `look` is good, bad, or empty."""

    name: str
    value: str
    unit: str
    more: str = ""
    look: str = ""


class Word(NamedTuple):
    """A short statement about the verdict, the server or the client, with reasons."""

    name: str
    said: str
    look: str
    reasons: Sequence[str] = ()


CLIENT_LOOK = {"valid": "good", "suspect": "doubt"}


def words(summary: Summary | None, live: Live, validity: Validity, verdict: Verdict | None = None) -> list[Word]:
    """The verdict, and statements about the server and the client, the latter with reasons. `verdict` is that of a
    running test; a finished one's is in its summary. A search has none until it ends."""
    verdict, running = (verdict, True) if summary is None else (summary.verdict, False)
    client = Word("Client", validity.client, CLIENT_LOOK.get(validity.verdict, "bad"), validity.reasons)
    if summary is not None:
        failing, said = summary.error_rate, summary.server
    else:
        failed, judged = live.failures.total(), live.successes + live.failures.total()
        failing = failed / judged if judged else None
        errors = "no response yet" if failing is None else f"errors {failing:.1%}"
        said = f"{verdict.slos_met} so far, {errors}" if verdict and verdict.slos else errors
    server = Word("Server", said, _server_look(verdict, failing))
    if verdict is None or not (failing is not None or verdict.reasons or verdict.answer):
        return [server, client]
    return [Word("Verdict", verdict.said(running=running), _verdict_look(verdict)), server, client]


def _server_look(verdict: Verdict | None, failing: float | None) -> str:
    if failing is None:
        return ""
    if failing > MANY or (verdict and verdict.has(Kind.SLO)):
        return "bad"
    if failing or (verdict and not verdict.proven):
        return "doubt"
    return "good"


def _verdict_look(verdict: Verdict) -> str:
    if not verdict.passed:
        return "bad"
    return "good" if verdict.slos or verdict.answer else ""


def now(stages: Sequence[tuple[float, str]], live: Live, lost: Sequence[str]) -> list[str]:
    """The current stage, the numbers of users and requests in flight, and a line for each lost worker."""
    last = live.recent()[-1:]
    said = [stages[-1][1]] if stages else []
    said += [
        f"{count_of(point['users'], 'user')}, {count_of(point['in_flight'], 'request')} in flight" for point in last
    ]
    return [*said, *lost]


Rows = Mapping[str, Mapping[str, Any]]
"""Rows of `Live.table` by name."""


def tiles(summary: Summary | None, live: Live, slos: Sequence[Slo], rows: Rows) -> list[Tile]:
    """The headline figures: exact ones of a finished test, or those of the last seconds."""
    if summary is not None:
        return list(tiles_of(summary))
    points = live.recent()
    seconds = max(len(points), 1)
    good = sum(point["successes_per_s"] for point in points)
    failed = sum((Counter(point["failures_per_s"]) for point in points), Counter[str]()).total()
    ended = good + failed
    rtfx = sum(point["rtfx"] or 0.0 for point in points) / seconds

    judged = {result.name: result for result in live.slo_results(slos)}
    limits = {slo.name: slo for slo in slos}

    def limited(tile: Tile, name: str) -> Tile:
        """The tile with its SLO's limit, which applies to the whole test."""
        slo = limits.pop(name, None)
        return tile if slo is None else _limited_so_far(tile, slo, judged.get(name))

    def latency(name: str, statistic: str, more: str = "") -> Tile:
        metric = METRICS[name]
        value = rows.get(f"{metric.heading}, {BLOCKS[0]}", {}).get(statistic)
        tile = Tile(f"{metric.title} {statistic}", number(value, _digits(metric)), metric.unit, more)
        return limited(tile, f"{name}:{statistic}")

    share = failed / ended if ended else None
    rtf = rows[f"{METRICS['rtf'].heading}, {BLOCKS[0]}"]["p95"]
    wait = "ttfs" if f"{METRICS['ttfs'].heading}, whole run" in rows else "e2el"
    shown = [
        latency("ttft", "p95"),
        latency(wait, "p95", f"RTF p95 {number(rtf, 3)}" if wait == "e2el" else "end of speech to final text"),
        Tile("Requests/s", number(good / seconds, 2), "", f"RTFx {number(rtfx, 1)}"),
        limited(Tile("Errors", percent(share), "", f"{failed} of {ended}"), "errors:rate"),
    ]
    if points and points[-1]["goodput_per_s"] is not None:
        met = sum(point["goodput_per_s"] for point in points)
        shown.append(Tile("Goodput", number(met / seconds, 2), "requests/s"))
    if live.accuracy is not None and live.accuracy.references:
        name, share = live.accuracy.name, live.accuracy.rate
        tile = Tile(name.upper(), percent(share), "", f"of {count_of(live.accuracy.references, 'transcript')} so far")
        shown.append(limited(tile, f"{name}:mean"))
    watched = {f"{metric.name}:{statistic}" for metric in STREAMED for statistic in COLUMNS[:-1]}
    for name, slo in list(limits.items()):
        if name in watched:
            shown.append(latency(slo.metric, slo.statistic))
        else:
            whole = _shown(judged[name].value, slo) if name in judged else "…"
            shown.append(limited(Tile(f"{_title(slo.metric)} {slo.statistic}, whole test", whole, ""), name))
    return shown


def _title(metric: str) -> str:
    return METRICS[metric].title if metric in METRICS else metric.upper()


def _limited(tile: Tile, limit: str, held: bool) -> Tile:
    """The tile with the limit of an SLO, and whether it is met."""
    return tile._replace(more=f"limit {limit}{'' if held else ', missed'}", look="good" if held else "bad")


def _limited_so_far(tile: Tile, slo: Slo, result: SloResult | None) -> Tile:
    """The tile with the limit of an SLO, judged over the whole test so far; `result` is None if it is judged at the
    end."""
    limit = _shown(slo.limit, slo)
    if result is None:
        return tile._replace(more=f"limit {limit}, not judged yet")
    tile = _limited(tile, limit, result.ok)
    whole = _shown(result.value, slo)
    return tile if tile.value == whole else tile._replace(more=f"{tile.more}; whole test {whole}")


def _shown(value: float | None, slo: Slo) -> str:
    if value is None or slo.metric not in METRICS:
        return percent(value)
    return f"{value:.4g}{slo.unit}"


def tiles_of(summary: Summary) -> Iterator[Tile]:
    """The headline figures of a finished run, with the limits of its SLOs."""
    requests = summary.requests
    limits = {result.name: result for result in summary.slo}

    def held(tile: Tile, name: str) -> Tile:
        result = limits.pop(name, None)
        if result is None:
            return tile
        limit = percent(result.limit) if tile.value.endswith("%") else f"{result.limit:g} {tile.unit}".rstrip()
        return _limited(tile, limit, result.ok)

    few = f"of {count_of(summary.ttft.n, 'successful request')}"
    yield held(Tile("TTFT p95", ms(summary.ttft.p95), "ms", few), "ttft:p95")
    if summary.ttfs.n:
        yield held(Tile("TTFS p95", ms(summary.ttfs.p95), "ms", "end of speech to final text"), "ttfs:p95")
    else:
        yield held(Tile("E2E p95", ms(summary.e2el.p95), "ms", f"RTF p95 {number(summary.rtf.p95, 3)}"), "e2el:p95")
    yield Tile("Requests/s", number(summary.requests_per_s, 2), "", f"RTFx {number(summary.rtfx, 1)}")
    # Counts include late requests and the rate does not, so next to each other they would contradict.
    of = f"{requests.fail:,} of {requests.success + requests.fail:,}" if not summary.left_out.late else ""
    yield held(Tile("Errors", percent(summary.error_rate), "", of), "errors:rate")
    if summary.references:
        transcripts = f"of {count_of(summary.references, 'transcript')}"
        rate = Tile(summary.rate.upper(), percent(getattr(summary, summary.rate)), "", transcripts)
        yield held(rate, f"{summary.rate}:mean")
    if summary.goodput is not None:
        yield Tile("Goodput", number(summary.goodput, 2), "requests/s")
    for result in list(limits.values()):
        metric, _, statistic = result.name.partition(":")
        unit = METRICS[metric].unit if metric in METRICS else ""
        value = "n/a" if result.value is None else f"{result.value:,.4g}"
        yield _limited(
            Tile(f"{_title(metric)} {statistic}", value, unit), f"{result.limit:g} {unit}".rstrip(), result.ok
        )


def table(summary: Summary | None, own: Rows) -> dict[str, Any]:
    """The table: a row for each metric, with COLUMNS for the last seconds and for the whole test."""
    rows = []
    for metric in STREAMED:
        if f"{metric.heading}, whole run" not in own:
            continue
        recent = own[f"{metric.heading}, {BLOCKS[0]}"]
        whole = own[f"{metric.heading}, whole run"]
        if summary is not None:
            exact = getattr(summary, metric.name)
            values = [getattr(exact, name) for name in COLUMNS[:-1]]
            scaled = [None if value is None else value * metric.scale for value in values]
            whole = dict(zip(COLUMNS[:-1], scaled, strict=True), count=exact.n)
        rows.append({"metric": metric.heading, "cells": [_cells(metric, block) for block in (recent, whole)]})
    return {"columns": COLUMNS, "blocks": BLOCKS, "rows": rows}


def _cells(metric: Metric, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    cells = [
        {"value": number(row[name], _digits(metric)), "faint": row["count"] < FEW.get(name, 0)} for name in COLUMNS[:-1]
    ]
    return [*cells, {"value": f"{row['count']:,}", "faint": False}]


def _digits(metric: Metric) -> int:
    return 1 if metric.unit else 3
