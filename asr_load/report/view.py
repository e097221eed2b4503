"""The first screen of a test as one view, of a running test from its live figures or of a finished one from its
summary. The tab, report.html, the console and the exports draw from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from asr_load.results.live import Live
from asr_load.results.metrics import STREAMED, Figures, figures
from asr_load.results.pass_fail import Verdict
from asr_load.results.slo import Slo
from asr_load.results.summary import Summary
from asr_load.results.verdict import Validity

NOTHING = figures(())

MetricRows = Mapping[str, tuple[Figures, Figures]]
"""By metric, in the order of STREAMED: its figures over the last seconds and over the whole test, in its unit."""


class Judged(NamedTuple):
    """An SLO and its value over the whole test, in the SLO's unit. `ok` is None if it is not judged yet."""

    slo: Slo
    value: float | None
    ok: bool | None


class Errors(NamedTuple):
    """Failures as a share of requests. `failed` of `ended` are None if the share is not their ratio."""

    share: float | None
    failed: int | None
    ended: int | None


class ErrorRate(NamedTuple):
    """WER or CER, by its `name`, over a number of transcripts."""

    name: str
    value: float | None
    transcripts: int


@dataclass(frozen=True)
class View:
    """What people see first of a test. Rates are those of the last seconds while it is `running`, and those of the
    whole test after it."""

    running: bool
    seconds: float
    """Duration of the test, so far while it is running."""
    verdict: Verdict | None
    """None in a search until it ends."""
    validity: Validity
    rows: MetricRows
    requests_per_s: float | None
    rtfx: float | None
    goodput: float | None
    """None without limits."""
    goodput_share: float | None
    """Share of the requests that met the limits; None without limits, or before the first response."""
    errors: Errors
    error_rate: float | None
    """Share of failures over the whole test; None before the first response."""
    failures: Mapping[str, int]
    """Failures of the whole test by outcome."""
    accuracy: ErrorRate | None
    """Error rate over the whole test; None without a reference. Its value is None before the first transcript."""
    slos: Sequence[Judged]
    is_realtime: bool = False
    """Whether the requests are realtime sessions."""

    def figures(self, metric: str) -> Figures:
        """A metric's figures of the last seconds while the test is running, else those of the whole test."""
        recent, whole = self.rows.get(metric, (NOTHING, NOTHING))
        return recent if self.running else whole

    @property
    def server(self) -> str:
        """A short description of the server's performance: SLOs, errors and, after the test, accuracy."""
        parts = []
        if self.verdict and self.verdict.slos:
            parts.append(f"{self.verdict.slos_met}{' so far' if self.running else ''}")
        if self.error_rate is not None:
            parts.append(f"errors {self.error_rate:.1%}")
        elif self.running:
            parts.append("no response yet")
        if self.accuracy is not None and self.accuracy.value is not None and not self.running:
            parts.append(f"{self.accuracy.name.upper()} {self.accuracy.value:.1%}")
        return ", ".join(parts) or "no request finished"


def view_running(
    live: Live, slos: Sequence[Slo], validity: Validity, verdict: Verdict | None, rows: MetricRows | None = None
) -> View:
    """The view of a running test. `rows`: those of `live.table()`, if known."""
    points = live.recent()
    seconds = max(len(points), 1)
    good = sum(point["successes_per_s"] for point in points)
    failed = sum((Counter(point["failures_per_s"]) for point in points), Counter[str]()).total()
    ended, all_failed = good + failed, live.failures.total()
    all_ended = live.successes + all_failed
    limited = bool(points) and points[-1]["goodput_per_s"] is not None
    judged = {result.name: result for result in live.slo_results(slos)}
    sample, met = live.accuracy, sum(point["goodput_per_s"] for point in points) if limited else None
    return View(
        running=True,
        seconds=live.closed,
        verdict=verdict,
        validity=validity,
        rows=live.table() if rows is None else rows,
        requests_per_s=good / seconds,
        rtfx=sum(point["rtfx"] or 0.0 for point in points) / seconds,
        goodput=None if met is None else met / seconds,
        goodput_share=None if met is None or not ended else met / ended,
        errors=Errors(failed / ended if ended else None, failed, ended),
        error_rate=all_failed / all_ended if all_ended else None,
        failures=live.failures,
        accuracy=ErrorRate(sample.name, sample.rate, sample.references) if sample else None,
        slos=[
            Judged(slo, judged[slo.name].value, judged[slo.name].ok) if slo.name in judged else Judged(slo, None, None)
            for slo in slos
        ],
        is_realtime=live.is_realtime,
    )


def view_finished(summary: Summary, live: MetricRows | None = None, like: Live | None = None) -> View:
    """The view of a finished test. `live`: the rows of its live figures, whose last seconds are shown. `like`: its live
    view, whose cards it keeps even if they have no figure."""
    requests, rows = summary.requests, {}
    for metric in STREAMED:
        exact = getattr(summary, metric.name)
        if exact.n or not metric.is_realtime:
            recent, _ = (live or {}).get(metric.name, (NOTHING, NOTHING))
            rows[metric.name] = recent, exact.scaled(metric.scale)
    # Counts include late requests and the rate does not, so next to each other they would contradict.
    counts = (None, None) if summary.left_out.late else (requests.fail, requests.success + requests.fail)
    rate = getattr(summary, summary.rate)
    scored = summary.references or (like is not None and like.accuracy is not None)
    share = None
    if summary.goodput is not None and summary.error_rate is not None:
        share = summary.goodput / summary.requests_per_s * (1 - summary.error_rate) if summary.requests_per_s else 0.0
    return View(
        running=False,
        seconds=summary.wall_s,
        verdict=summary.verdict,
        validity=summary.validity,
        rows=rows,
        requests_per_s=summary.requests_per_s,
        rtfx=summary.rtfx,
        goodput=summary.goodput,
        goodput_share=share,
        errors=Errors(summary.error_rate, *counts),
        error_rate=summary.error_rate,
        failures=requests.failures,
        accuracy=ErrorRate(summary.rate, rate, summary.references) if scored else None,
        slos=[Judged(result.slo, result.value, result.ok) for result in summary.slo],
        is_realtime=bool(summary.dialects) or (like is not None and like.is_realtime),
    )
