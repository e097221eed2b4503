"""The one sentence that comes first wherever a test is shown: load, figures with their limits, load generator."""

from __future__ import annotations

from collections.abc import Iterator

from asr_load.report.view import NOTHING, Judged, View
from asr_load.report.words import number, percent
from asr_load.results.metrics import METRICS
from asr_load.results.pass_fail import Kind
from asr_load.results.runfile import RunInfo
from asr_load.results.slo import Slo, parse_slos
from asr_load.text import count_of


def sentence(info: RunInfo, view: View) -> str:
    """What a test found, in one sentence, and one on the load generator. Figures are those of the whole test, so far if
    it is running."""
    verdict = view.verdict
    if verdict is not None and verdict.answer:
        limits = " and ".join(f"{slo_title(slo)} at most {slo_amount(slo.limit, slo)}" for slo in parse_slos(info.slos))
        first = f"{verdict.answer}, with {limits}" if verdict.passed else verdict.answer
    elif unanswered := [each.text for each in (verdict.reasons if verdict else ()) if each.kind is Kind.NO_ANSWER]:
        first = unanswered[0]
    elif verdict is not None and verdict.cause:
        first = verdict.cause
    elif view.error_rate is None:
        first = "no response yet" if view.running else "no request finished"
    else:
        first = f"{_load(info, view)}: {', '.join(_figures(view))}"
    missing = [reason.text for reason in (verdict.reasons if verdict else ()) if reason.kind in INCOMPLETE]
    return " ".join(f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in (first, *missing, *_client(view)))


INCOMPLETE = (Kind.UNWRITTEN, Kind.MISSING)
"""Reasons that the figures of a test are incomplete."""


def _load(info: RunInfo, view: View) -> str:
    """The load and its duration, such as: held 12 streams for 60 s."""
    if info.loop.get("rate"):
        verb, load = ("Sending", "Sent"), f"{info.loop['rate']:g} requests/s"
    elif info.loop:
        verb, load = ("Sending", "Sent"), f"{number(view.requests_per_s, 2)} requests/s on average"
    else:
        asked = int(info.num_users or 1)
        most = max((count for _, count in info.users), default=asked)
        up_to = "up to " if info.shape != "none" or most < asked else ""
        verb, load = ("Holding", "Held"), up_to + count_of(most, "session" if info.api == "realtime" else "stream")
    duration = f"{view.seconds:.0f} s" if view.seconds >= 10 else f"{view.seconds:.1f} s"
    return f"{verb[0]} {load} for {duration} so far" if view.running else f"{verb[1]} {load} for {duration}"


def _figures(view: View) -> Iterator[str]:
    """The latency that people wait for, each metric with a limit, errors, and accuracy."""
    judged = {each.slo.metric: each for each in view.slos}
    lead = "ttfs" if "ttfs" in view.rows else "ttft"
    if lead not in judged:
        slo = Slo(lead, "p95", 0)
        yield f"{slo_title(slo)} {slo_amount(view.rows.get(lead, (NOTHING, NOTHING))[1].p95, slo)}"
    yield from (_limited(each) for each in view.slos if each.slo.metric in METRICS)
    rates = {"errors": view.error_rate}
    if view.accuracy is not None and view.accuracy.value is not None:
        rates[view.accuracy.name] = view.accuracy.value
    for metric, rate in rates.items():
        slo = Slo(metric, "", 0)
        yield _limited(judged[metric]) if metric in judged else f"{slo_title(slo)} {slo_amount(rate, slo)}"
    yield from (_limited(judged[metric]) for metric in judged if metric not in METRICS and metric not in rates)


def _limited(judged: Judged) -> str:
    limit = slo_amount(judged.slo.limit, judged.slo)
    if judged.ok is None:
        return f"{slo_title(judged.slo)} not judged yet (limit {limit})"
    outcome = "met" if judged.ok else "missed"
    return f"{slo_title(judged.slo)} {slo_amount(judged.value, judged.slo)} (limit {limit}: {outcome})"


def slo_title(slo: Slo) -> str:
    """The title of what an SLO limits, such as TTFT p95."""
    if slo.metric in METRICS:
        return f"{METRICS[slo.metric].title} {slo.statistic}"
    return slo.metric if slo.metric == "errors" else slo.metric.upper()


def slo_amount(value: float | None, slo: Slo) -> str:
    """A value of an SLO's metric: seconds from 1 s on, else ms; a percentage; or a ratio."""
    if value is None:
        return "n/a"
    if slo.metric not in METRICS:
        return percent(value)
    if slo.unit and value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.0f}{slo.unit}" if slo.unit and value >= 10 else f"{value:.2g}{slo.unit}"


def _client(view: View) -> Iterator[str]:
    """What the load generator's own state says about the figures."""
    if view.error_rate is None:
        return
    be = "is" if view.running else "was"
    match view.validity.verdict, view.validity.client:
        case "client-bound", _:
            yield f"the load generator {be} too slow, so the figures are not the server's"
        case _, "not judged":
            yield f"the load generator {be} not judged"
        case "suspect", "healthy":
            yield f"the load generator {be} healthy, but the figures are suspect"
        case "suspect", _:
            yield f"the load generator may {'be' if view.running else 'have been'} too slow, so the figures are suspect"
        case _:
            yield f"the load generator {be} healthy"
