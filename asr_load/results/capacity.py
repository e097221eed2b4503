"""The capacity search: find the highest load that meets all SLOs. Pure: it picks loads and judges steps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from asr_load.files import encode_json, read_json, write_atomically
from asr_load.languages import language_code
from asr_load.results.decide import LEAST_REQUESTS, decide
from asr_load.results.metrics import Figures, figures_of
from asr_load.results.normalizers import Scoring
from asr_load.results.pass_fail import Kind, PassRules, Reason, Verdict, incomplete, verdict_of
from asr_load.results.slo import Slo, SloResult, parse_slos, slo_lines
from asr_load.results.steady import steadiness
from asr_load.stream.record import Amount, Count, Record
from asr_load.text import count_of

CAPACITY = "capacity.json"

PRECISION = 0.02
"""The search ends when the lowest load that missed an SLO exceeds the highest that met all by no more than this
share."""

HARDLY = 0.1
"""Share by which throughput may still grow beyond a knee."""

GONE = ("connect", "cut", "closed_1001", "closed_1006", "closed_1011")
"""Outcomes of requests to a server that is gone, in addition to statuses 5xx. Sessions are closed without a message, or
with a code for a server that goes away or fails (RFC 6455, 7.4.1)."""

PER_STREAM = 3
"""Minimum number of requests of each stream in a step, so that its first and last request weigh little."""


class Judgement(msgspec.Struct):
    """The verdict on a step so far. `settled`: more requests would not change it."""

    ok: bool
    settled: bool
    slo: list[SloResult]
    reason: str
    """Why the step is not ok; else empty."""


class Step(msgspec.Struct, kw_only=True):
    """One load that the search tried, in streams or requests per second. Latencies are in seconds."""

    load: Amount
    ok: bool
    settled: bool
    """False if the time for the step ran out first, so that the values so far decided."""
    reason: str
    seconds: Amount
    """Seconds measured."""
    repeats: Count = 0
    """How often the step was abandoned before, because the load generator stalled or its last request failed."""
    requests: Count
    success: Count
    requests_per_s: Amount
    """Successful requests per second."""
    output_tokens_per_s: Amount | None
    """None if a response came without a token count."""
    rtfx: Amount
    ttft: Figures
    itl: Figures
    e2el: Figures
    slo: list[SloResult]


class Capacity(msgspec.Struct, kw_only=True):
    """Content of capacity.json: a search, finished or not."""

    format: int = 1
    kind: str
    """streams or request rate."""
    slos: list[str]
    most: Amount
    """Upper bound of the search."""
    host: str
    model: str
    data_sha256: str
    loop: dict[str, Any]
    steps: list[Step]
    asked: dict[str, Any] = {}
    """Other options that the steps depend on: requests, clips, connections, sessions."""
    answer: Amount | None = None
    """The highest load that met all SLOs; 0 if none did. None for an unfinished search, and if the client's own trouble
    or a server that went away ended it before any load met the SLOs."""
    metadata: dict[str, str] = {}
    """Notes from --metadata."""
    limited_by: str = ""
    """Why the true answer may be higher or is unknown: the bound of the search, the client, or a server that is
    gone."""
    stalled_at: Amount | None = None
    """The load at which the load generator's own trouble ended the search; else None."""
    gone_at: Amount | None = None
    """The load at which the server was gone, which ended the search; else None. `steps` does not include it."""

    def __post_init__(self) -> None:
        if "--language" in self.asked:  # an earlier version stored the option as typed
            self.asked["--language"] = language_code(self.asked["--language"])

    @property
    def unknown(self) -> bool:
        """Whether the search finished without an answer."""
        return self.answer is None and bool(self.limited_by)

    @property
    def at_least(self) -> bool:
        """Whether the answer is a lower bound, because the load generator or a server that is gone ended the search."""
        return bool(self.answer) and (self.stalled_at is not None or self.gone_at is not None)

    @property
    def unsettled(self) -> list[float]:
        """The loads that decide the answer, the highest that met the SLOs and the lowest that did not, if their steps
        did not settle."""
        if self.answer is None:
            return []
        met = [step for step in self.steps if step.load == self.answer and step.ok]
        return [step.load for step in (*met[-1:], *self.missed[:1]) if not step.settled]

    @property
    def missed(self) -> list[Step]:
        """The steps above the answer that missed an SLO, lowest first."""
        above = (step for step in self.steps if not step.ok and step.load > (self.answer or 0.0))
        return sorted(above, key=attrgetter("load"))


class Search:
    """Choose loads. Double the load until an SLO is missed, then halve the gap between the highest load that met all
    SLOs and the lowest that did not. `whole`: loads are whole numbers. No load exceeds `most`."""

    def __init__(self, most: float, *, whole: bool, first: float = 1.0) -> None:
        self._most, self._whole, self._first = most, whole, min(first, most)
        self.good = 0.0
        self.bad: float | None = None

    def next(self) -> float | None:
        """The next load to try; None if the answer is known."""
        if self.bad is None:
            if self.good >= self._most:
                return None
            return min(self.good * 2 or self._first, self._most)
        gap = self.bad - self.good
        if gap <= max(1.0 if self._whole else 0.0, PRECISION * self.bad) or self.bad <= PRECISION * self._first:
            return None
        middle = (self.good + self.bad) / 2
        return float(int(middle)) if self._whole else middle

    def take(self, load: float, ok: bool) -> None:
        """Record the result of a step."""
        if ok:
            self.good = max(self.good, load)
        elif self.bad is None or load < self.bad:
            self.bad = load

    @property
    def at_the_bound(self) -> bool:
        """Whether even the highest allowed load met all SLOs."""
        return self.bad is None and self.good >= self._most


def judge(slos: Sequence[Slo], records: Sequence[Record], scoring: Scoring, *, least: int, is_open: bool) -> Judgement:
    """Judge a step by its requests so far; it can only pass with at least `least` of them.

    In an open loop, latencies count from when a request was due, so they include the wait for a user. A growing queue
    also fails the step, whatever the latencies are so far.
    """
    judged = [from_due(record) for record in records] if is_open else records
    decisions = [decide(slo, judged, scoring) for slo in slos]
    results = [
        SloResult(slo.name, slo.limit, decision.value, decision.ok and decision.value is not None)
        for slo, decision in zip(slos, decisions, strict=True)
    ]
    reason = "; ".join(slo_lines(result for result in results if not result.ok))
    failed_for_good = any(decision.settled and not decision.ok for decision in decisions)
    if is_open and not reason:
        steady = steadiness(records)
        if steady.verdict == "rising":
            reason = f"a queue grew: latency rose by {steady.growth_s or 0:.2f} s over the step"
            failed_for_good = True
    ok = not reason
    met_for_good = ok and len(records) >= max(least, LEAST_REQUESTS) and all(decision.settled for decision in decisions)
    return Judgement(ok, failed_for_good or met_for_good, results, reason)


def from_due(record: Record) -> Record:
    """The record with TTFT and E2E measured from when the request was due."""
    moved = {
        name: value + (record.lag or 0.0) for name in ("ttft", "e2el") if (value := getattr(record, name)) is not None
    }
    return msgspec.structs.replace(record, **moved)


def unreached(record: Record) -> bool:
    """Whether a request failed in a way that suggests that the server is gone."""
    return record.outcome in GONE or record.outcome.startswith(("http_5", "ws_5"))


def server_gone(records: Sequence[Record]) -> bool:
    """Whether a step shows that the server is gone: no request succeeded, including those that drained, and `unreached`
    holds for each failure. A server that is merely full answers some requests."""
    finished = [record for record in records if not record.unfinished]
    return bool(finished) and all(map(unreached, finished))


def step(
    load: float,
    judgement: Judgement,
    records: Sequence[Record],
    seconds: float,
    *,
    ended: int,
    tokens: int | None,
    repeats: int = 0,
) -> Step:
    """Make a finished step. `ended` successes, with `tokens` tokens, fell within the `seconds` that were measured; the
    step was abandoned `repeats` times before."""
    good = [record for record in records if record.ok]
    audio_s = sum(record.audio_s for record in good) / len(good) if good else 0.0
    rate = ended / seconds if seconds > 0 else 0.0
    return Step(
        **msgspec.structs.asdict(judgement),
        load=load,
        seconds=seconds,
        repeats=repeats,
        requests=len(records),
        success=len(good),
        requests_per_s=rate,
        output_tokens_per_s=None if tokens is None else tokens / seconds if seconds > 0 else 0.0,
        rtfx=rate * audio_s,
        ttft=figures_of("ttft", good),
        itl=figures_of("itl", good),
        e2el=figures_of("e2el", good),
    )


def knee(steps: Sequence[Step]) -> Step | None:
    """The load beyond which throughput hardly grows while latency does; None without a knee.

    The candidate is the step farthest above the line from the first to the last, in the diagram of throughput against
    load, both scaled to their maxima (Kneedle: Satopää et al., ICDCS workshops 2011). A straight line has such a point
    too, so it only counts if no higher load has more than HARDLY more throughput. It takes at least three loads."""
    order = sorted({each.load: each for each in steps}.values(), key=attrgetter("load"))
    if len(order) < 3:
        return None
    loads = np.array([each.load for each in order])
    rates = np.array([each.requests_per_s for each in order])
    if not rates.max():
        return None
    x = (loads - loads[0]) / (loads[-1] - loads[0])
    y = rates / rates.max()
    y = y - (y[0] + (y[-1] - y[0]) * x)
    bend = int(np.argmax(y))
    if bend == len(order) - 1 or rates[bend + 1 :].max() > (1 + HARDLY) * rates[bend]:
        return None
    return order[bend]


def conclude_search(search: Capacity, rules: PassRules, *, lost: Collection[int], unwritten: str) -> Verdict:
    """The verdict on a search: it passes with an exact answer above 0. `lost`: workers with missing records;
    `unwritten`: why records could not be written."""
    reasons = incomplete(rules, lost=lost, unwritten=unwritten)
    answered = search.answer is not None or search.unknown
    if search.gone_at is not None:
        reasons.append(Reason(Kind.GONE, search.limited_by))
    elif search.unknown or search.at_least:
        reasons.append(Reason(Kind.NOT_EXACT, search.limited_by))
    elif not answered:
        reasons.append(Reason(Kind.NO_ANSWER, "the search stopped before its answer"))
    elif not search.answer:
        reasons.append(Reason(Kind.NO_ANSWER, f"not even the lowest load met {_limits(search)}"))
    verdict = verdict_of(reasons, rules)
    verdict.answer = answer_lines(search)[-1] if answered else ""
    return verdict


def _limits(search: Capacity) -> str:
    return " and ".join(map(str, parse_slos(search.slos)))


def answer_lines(search: Capacity) -> list[str]:
    """Describe the answer. The last line has the number, with `at least` if it is a lower bound, and steps that did not
    settle."""
    if search.answer is None:
        return [f"maximum effective {search.kind}: unknown ({search.limited_by})"]
    highest = format_load(search, search.answer) if search.answer else "Not even the lowest load"
    lines = [f"{highest} met {_limits(search)}"]
    lines += [f"{format_load(search, missed.load)} did not: {missed.reason}" for missed in search.missed[:1]]
    if search.limited_by:
        lines.append(f"The true maximum may be higher: {search.limited_by}")
    lines.append(f"maximum effective {search.kind}: {_answer(search, search.answer)}")
    return lines


def _answer(search: Capacity, answer: float) -> str:
    """The number with its reservations."""
    if search.kind == "streams":
        number = f"{answer:.0f}" + (" (realtime sessions)" if search.asked.get("--api") == "realtime" else "")
    else:
        number = f"{answer:.3g} requests/s"
    if search.stalled_at is not None:
        number = f"at least {number} (the load generator stalled at {_loads(search, search.stalled_at)})"
    if search.gone_at is not None:
        number = f"at least {number} (the server is gone: no request succeeded at {_loads(search, search.gone_at)})"
    if search.unsettled:
        number += f", not settled (--step-time was too short at {_loads(search, *search.unsettled)})"
    return number


def _loads(search: Capacity, *loads: float) -> str:
    unit = "requests/s" if search.kind != "streams" else "stream" if loads == (1,) else "streams"
    return f"{' and '.join(f'{load:.3g}' for load in loads)} {unit}"


def format_load(search: Capacity, load: float) -> str:
    """Format a load with its unit."""
    return count_of(round(load), "stream") if search.kind == "streams" else f"{load:.3g} requests/s"


def write_capacity(folder: Path, search: Capacity) -> None:
    """Write capacity.json atomically."""
    write_atomically(folder / CAPACITY, encode_json(search))


def read_capacity(folder: Path) -> Capacity:
    """Read capacity.json. Raises InputError."""
    return read_json(folder / CAPACITY, Capacity, f"{folder} holds no search", "a search")
