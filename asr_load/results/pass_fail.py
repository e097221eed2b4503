"""The pass or fail verdict of a run, shared by the console, tab, report, exports, comparisons and exit code."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum

import msgspec

from asr_load.results.slo import SloResult, miss_line
from asr_load.text import count_of

UNKNOWN = 2
"""Exit code for an unknown result: records could not be written, or the load generator kept a search from its
answer."""


class Kind(Enum):
    """Why a run does not pass, most serious first."""

    UNWRITTEN = "records_unwritten"
    MISSING = "records_missing"
    NO_SUCCESS = "no_success"
    SLO = "slo_missed"
    FAILURES = "requests_failed"
    OTHER_FAILURES = "other_failures"
    CLIENT_BOUND = "client_bound"
    GONE = "server_gone"
    """Search only: the server went away, so the answer is unknown or a lower bound."""
    NOT_EXACT = "answer_not_exact"
    """Search only: the load generator stalled, so the answer is unknown or a lower bound."""
    NO_ANSWER = "no_answer"
    """Search only: no load held, or the search was stopped early."""


ACCEPTED_BY = {
    Kind.MISSING: "--allow-lost-workers",
    Kind.FAILURES: "--slo errors:rate:LIMIT",
    Kind.CLIENT_BOUND: "--allow-client-bound",
}
"""Options that let a run pass despite a reason."""

UNPROVEN = (Kind.UNWRITTEN, Kind.MISSING, Kind.NO_SUCCESS, Kind.CLIENT_BOUND)
"""Reasons that keep every SLO from passing: the figures are incomplete, or they are not the server's."""


IN_THE_ANSWER = (Kind.GONE, Kind.NOT_EXACT, Kind.NO_ANSWER)
"""Reasons that the answer of a search already states."""


class PassRules(msgspec.Struct):
    """What decides whether a run passes, in addition to its SLOs."""

    allow_client_bound: bool = False
    allow_lost_workers: bool = False
    exit_code_on_error: int = 1
    """Locust's option: the exit code if requests failed. With 0, failures do not fail the run."""


class Reason(msgspec.Struct):
    """Why a run did not pass. `text` names the option that accepts it if such options are enough to pass."""

    kind: Kind
    text: str


class Verdict(msgspec.Struct):
    """Whether a run passed, its exit code, and why it did not pass."""

    passed: bool
    exit_code: int
    reasons: list[Reason]
    met: int = 0
    """Number of SLOs met by their value."""
    slos: int = 0
    """Number of SLOs judged."""
    cause: str = ""
    """Why no request succeeded, and what to do about it; empty if one did."""
    answer: str = ""
    """The answer of a finished capacity search; else empty."""

    def has(self, *kinds: Kind) -> bool:
        """Whether any reason is of one of these kinds."""
        return any(reason.kind in kinds for reason in self.reasons)

    @property
    def proven(self) -> bool:
        """Whether the figures can prove that an SLO is met."""
        return not self.has(*UNPROVEN)

    @property
    def slos_met(self) -> str:
        """How many SLOs are met by their value; empty without SLOs."""
        return f"SLOs {self.met} of {self.slos} met" if self.slos else ""

    @property
    def line(self) -> str:
        """The verdict as the console and exports show it."""
        return f"Verdict: {self.sentence()}"

    def sentence(self, *, running: bool = False) -> str:
        """The verdict with its reasons; with `running`, the verdict so far."""
        so_far = " so far" if running else ""
        if self.answer:
            others = (reason.text for reason in self.reasons if reason.kind not in IN_THE_ANSWER)
            return "; ".join([self.answer, *others])
        if self.reasons:
            return f"NOT passed{so_far}: {'; '.join(reason.text for reason in self.reasons)}"
        return f"passed{so_far}, {self.slos_met}" if self.slos else f"passed{so_far} (no SLO was set)"


def conclude(
    rules: PassRules,
    slos: Sequence[SloResult],
    *,
    success: int,
    failed: int,
    client_bound: bool,
    lost: Collection[int] = (),
    other_failures: int = 0,
    unwritten: str = "",
    cause: str = "",
    running: bool = False,
    realtime: bool = False,
) -> Verdict:
    """Decide whether a run passes; while it is `running`, whether it would pass now.

    `lost`: workers with missing records; `other_failures`: failures that Locust counted for requests that asr-load did
    not send; `unwritten`: why records could not be written; `realtime`: whether the requests are sessions. If an SLO
    limits the error rate, it decides about failures. Without SLOs, a client-bound run passes, because nothing depends
    on its figures.
    """
    unit = "session" if realtime else "request"
    on_errors = any(result.name == "errors:rate" for result in slos)
    found = incomplete(rules, lost=lost, unwritten=unwritten)
    if not success and (failed or not running):
        found.append(Reason(Kind.NO_SUCCESS, "no request succeeded"))
    found += [Reason(Kind.SLO, miss_line(result)) for result in slos if not result.ok]
    if failed and success and not on_errors and rules.exit_code_on_error:
        found.append(Reason(Kind.FAILURES, f"{failed} of {count_of(success + failed, unit)} failed"))
    if other_failures and rules.exit_code_on_error:
        others = f"{count_of(other_failures, 'failure')} in the locustfile's own requests or users"
        found.append(Reason(Kind.OTHER_FAILURES, others))
    if client_bound and slos and not rules.allow_client_bound:
        found.append(Reason(Kind.CLIENT_BOUND, "the run is client-bound"))
    if all(reason.kind in ACCEPTED_BY for reason in found):
        for reason in found:
            reason.text += f" ({ACCEPTED_BY[reason.kind]} accepts this)"
    verdict = verdict_of(found, rules)
    verdict.met, verdict.slos = sum(result.ok for result in slos), len(slos)
    verdict.cause = "" if success else cause
    return verdict


def incomplete(rules: PassRules, *, lost: Collection[int], unwritten: str) -> list[Reason]:
    """Reasons because of missing records."""
    found = []
    if unwritten:
        found.append(Reason(Kind.UNWRITTEN, f"records could not be written: {unwritten}"))
    if lost and not rules.allow_lost_workers:
        found.append(Reason(Kind.MISSING, missing_line(lost)))
    return found


def missing_line(lost: Collection[int]) -> str:
    """Say which workers' records are missing."""
    return f"records of worker{'s' * (len(lost) > 1)} {', '.join(map(str, sorted(lost)))} are missing"


def verdict_of(reasons: list[Reason], rules: PassRules) -> Verdict:
    """The verdict for these reasons; without any, the run passed."""
    kinds = {reason.kind for reason in reasons}
    if kinds & {Kind.UNWRITTEN, Kind.NOT_EXACT}:
        code = UNKNOWN
    elif kinds and kinds <= {Kind.FAILURES, Kind.OTHER_FAILURES}:
        code = rules.exit_code_on_error
    else:
        code = 1 if kinds else 0
    return Verdict(passed=not reasons, exit_code=code, reasons=reasons)
