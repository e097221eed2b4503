"""The headline of a test in words and tiles, and the Streaming tab's table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from asr_load.report.tables import FEW_VALUES
from asr_load.report.view import Judged, MetricRows, View
from asr_load.report.words import number, percent
from asr_load.results.live import WINDOW_S, Live
from asr_load.results.metrics import METRICS, STREAMED, Figures, Metric
from asr_load.results.pass_fail import Kind, Verdict
from asr_load.results.slo import Slo
from asr_load.text import count_of

TABLE_COLUMNS = Figures.__struct_fields__[1:-1]
"""Statistics of a metric in the tab's table, before its number of values."""

WHOLE_TEST = ", whole test"
"""End of the name of a tile that shows the whole test while the others show the last seconds."""

TABLE_BLOCKS = (f"last {WINDOW_S} s", "whole test")
MANY_FAILURES = 0.05
"""Share of failed requests above which the server counts as failing, and of requests outside of the limits of
--goodput above which its card is red."""


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
    text: str
    look: str
    reasons: Sequence[str] = ()


CLIENT_LOOK = {"valid": "good", "suspect": "doubt"}


def words(view: View) -> list[Word]:
    """The verdict, and statements about the server and the client, the latter with reasons."""
    verdict, validity = view.verdict, view.validity
    server = Word("Server", view.server, _server_look(verdict, view.error_rate))
    client = Word("Client", validity.client, CLIENT_LOOK.get(validity.verdict, "bad"), validity.reasons)
    if verdict is None or not (view.error_rate is not None or verdict.reasons or verdict.answer):
        return [server, client]
    return [Word("Verdict", verdict.sentence(running=view.running), _verdict_look(verdict)), server, client]


def remarks(view: View) -> list[Word]:
    """The verdict, and the state of the load generator unless it is healthy, with their reasons: all that the sentence
    does not say."""
    verdict, validity, said = view.verdict, view.validity, []
    if verdict is not None and not verdict.answer and (view.error_rate is not None or verdict.reasons):
        text = f"{'passed' if verdict.passed else 'NOT passed'}{' so far' if view.running else ''}"
        if not verdict.slos and verdict.passed:
            text += " (no SLO was set)"
        said.append(Word("Verdict", text, _verdict_look(verdict), [reason.text for reason in verdict.reasons]))
    if validity.reasons:
        look = CLIENT_LOOK.get(validity.verdict, "bad")
        said.append(Word("Load generator", validity.client, look, validity.reasons))
    return said


def look_of(view: View) -> str:
    """How the sentence looks: good, bad, doubt, or empty before the first response."""
    if view.error_rate is None and (view.verdict is None or not view.verdict.reasons):
        return ""
    looks = {word.look for word in remarks(view)}
    return next((look for look in ("bad", "doubt") if look in looks), "good")


def _server_look(verdict: Verdict | None, failing: float | None) -> str:
    if failing is None:
        return ""
    if failing > MANY_FAILURES or (verdict and verdict.has(Kind.SLO)):
        return "bad"
    if failing or (verdict and not verdict.proven):
        return "doubt"
    return "good"


def _verdict_look(verdict: Verdict) -> str:
    if not verdict.passed:
        return "bad"
    return "good" if verdict.slos or verdict.answer else ""


def now(stages: Sequence[tuple[float, str]], live: Live, lost: Sequence[str]) -> list[str]:
    """The current stage, the numbers of users and of requests or sessions in flight, and a line for each lost
    worker."""
    noun = "session" if live.is_realtime else "request"
    load = [
        f"{count_of(point['users'], 'user')}, {count_of(point['in_flight'], noun)} in flight"
        for point in live.recent()[-1:]
    ]
    return [*(name for _, name in stages[-1:]), *load, *lost]


def tiles(view: View) -> list[Tile]:
    """The headline figures, with the limits of SLOs, which apply to the whole test."""
    left = {judged.slo.name: judged for judged in view.slos}

    def limited(tile: Tile, name: str) -> Tile:
        judged = left.pop(name, None)
        return tile if judged is None else _limited(tile, judged, view.running)

    def latency(name: str, statistic: str, more: str = "") -> Tile:
        metric = METRICS[name]
        value = getattr(view.figures(name), statistic)
        tile = Tile(f"{metric.title} {statistic}", number(value, _digits(metric)), metric.unit, more)
        return limited(tile, f"{name}:{statistic}")

    noun = "session" if view.is_realtime else "request"
    base = "" if view.running else f"of {count_of(view.figures('ttft').n, f'successful {noun}')}"
    shown = [latency("ttft", "p95", base)]
    if view.is_realtime or "ttfs" in view.rows:
        shown.append(latency("ttfs", "p95", "end of speech to final text"))
    else:
        shown.append(latency("e2el", "p95", f"RTF p95 {number(view.figures('rtf').p95, 3)}"))
    rtfx = f"RTFx {number(view.rtfx, 1)}"
    shown.append(Tile(f"{noun.capitalize()}s/s", number(view.requests_per_s, 2), "", rtfx))
    errors = view.errors
    base = "" if errors.failed is None else f"{errors.failed:,} of {errors.ended:,}"
    shown.append(limited(Tile("Errors", percent(errors.share), "", base), "errors:rate"))
    if rate := view.accuracy:
        base = f"of {count_of(rate.transcripts, 'transcript')}{' so far' if view.running else ''}"
        if view.running and not rate.transcripts:
            base = "no transcript scored yet"
        shown.append(limited(Tile(rate.name.upper(), percent(rate.value), "", base), f"{rate.name}:mean"))
    if view.goodput is not None:
        share, look = view.goodput_share, ""
        if share is not None:
            look = "good" if share >= 1 - MANY_FAILURES else "bad"
        base = "" if share is None else f"{percent(share)} of {noun}s"
        shown.append(Tile("Goodput", number(view.goodput, 2), f"{noun}s/s", base, look))
    for name, judged in list(left.items()):
        slo = judged.slo
        if view.running and slo.statistic in TABLE_COLUMNS and slo.metric in [metric.name for metric in STREAMED]:
            shown.append(latency(slo.metric, slo.statistic))
        else:
            title = METRICS[slo.metric].title if slo.metric in METRICS else slo.metric.upper()
            title += f" {slo.statistic}{WHOLE_TEST if view.running else ''}"
            value = "…" if judged.ok is None else _shown(judged.value, slo)
            shown.append(limited(Tile(title, value, ""), name))
    return shown


def span_of(tile: Tile, view: View) -> str:
    """The seconds that a tile's value covers; empty for the whole test."""
    of_whole_test = tile.name.endswith(WHOLE_TEST) or (view.accuracy and tile.name == view.accuracy.name.upper())
    return f"last {WINDOW_S} s" if view.running and not of_whole_test else ""


def _limited(tile: Tile, judged: Judged, running: bool) -> Tile:
    """The tile with the limit of an SLO, and whether it is met. The tile of a running test shows the last seconds, so
    the value over the whole test so far is added if it is another one."""
    more = f"limit {_shown(judged.slo.limit, judged.slo)}"
    if judged.ok is None:
        return tile._replace(more=f"{more}, not judged yet")
    if not judged.ok:
        more += ", missed"
    whole = _shown(judged.value, judged.slo)
    if running and tile.value != whole:
        more += f"; whole test {whole}"
    return tile._replace(more=more, look="good" if judged.ok else "bad")


def _shown(value: float | None, slo: Slo) -> str:
    if value is None or slo.metric not in METRICS:
        return percent(value)
    return f"{value:.4g}{slo.unit}"


def table(rows: MetricRows) -> dict[str, Any]:
    """The table: a row for each metric, with TABLE_COLUMNS and the number of values in each of TABLE_BLOCKS."""
    return {
        "columns": (*TABLE_COLUMNS, "n"),
        "blocks": TABLE_BLOCKS,
        "rows": [
            {"metric": METRICS[name].heading, "cells": [_cells(METRICS[name], block) for block in blocks]}
            for name, blocks in rows.items()
        ],
    }


def _cells(metric: Metric, block: Figures) -> list[dict[str, Any]]:
    cells = [
        {"value": number(getattr(block, name), _digits(metric)), "faint": block.n < FEW_VALUES.get(name, 0)}
        for name in TABLE_COLUMNS
    ]
    return [*cells, {"value": f"{block.n:,}", "faint": False}]


def _digits(metric: Metric) -> int:
    return 1 if metric.unit else 3
