"""Whether a run passed: the one verdict of the console, the tab, the report, exports, comparisons and the exit code."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum

import msgspec

from asr_load.results.slo import SloResult, miss_line

UNKNOWN = 2
"""Exit code where the result is not known: records could not be written, or the load generator kept a search from its
answer."""


class Kind(Enum):
    """Why a run does not pass, the gravest first."""

    UNWRITTEN = "records_unwritten"
    MISSING = "records_missing"
    NO_SUCCESS = "no_success"
    SLO = "slo_missed"
    FAILURES = "requests_failed"
    OTHER_FAILURES = "other_failures"
    CLIENT_BOUND = "client_bound"
    GONE = "server_gone"
    """Of a search: the server was gone, so that its answer is unknown or a lower bound."""
    NOT_EXACT = "answer_not_exact"
    """Of a search: the load generator ended it, so that its answer is unknown or a lower bound."""
    NO_ANSWER = "no_answer"
    """Of a search: no load held, or it was ended before its answer."""


ACCEPTED_BY = {
    Kind.MISSING: "--allow-lost-workers",
    Kind.FAILURES: "--slo errors:rate:LIMIT",
    Kind.CLIENT_BOUND: "--allow-client-bound",
}
"""The option with which a run passes in spite of it."""

UNPROVEN = (Kind.UNWRITTEN, Kind.MISSING, Kind.NO_SUCCESS, Kind.CLIENT_BOUND)
"""What lets no SLO pass, whatever its value: the figures are not the server's, or not all of them are there."""


IN_THE_ANSWER = (Kind.GONE, Kind.NOT_EXACT, Kind.NO_ANSWER)
"""What the answer of a search says itself."""


class Rules(msgspec.Struct):
    """What a run is judged by, other than its SLOs."""

    allow_client_bound: bool = False
    allow_lost_workers: bool = False
    exit_code_on_error: int = 1
    """Locust's option: the exit code where requests failed. With 0, failures do not count against the run."""


class Reason(msgspec.Struct):
    """Why a run did not pass. `text` names the option that accepts it, where such options are all it takes to pass."""

    kind: Kind
    text: str


class Verdict(msgspec.Struct):
    """Whether a run passed, the exit code that says so, and why it did not."""

    passed: bool
    exit_code: int
    reasons: list[Reason]
    met: int = 0
    """SLOs that hold by their value."""
    slos: int = 0
    """SLOs that were judged."""
    cause: str = ""
    """Why no request succeeded, and what helps; empty where one did."""
    answer: str = ""
    """Of a search for capacity: its answer; empty for others, and before the end."""

    def has(self, *kinds: Kind) -> bool:
        """Whether one of its reasons is of one of these kinds."""
        return any(reason.kind in kinds for reason in self.reasons)

    @property
    def proven(self) -> bool:
        """Whether the figures can show that an SLO holds."""
        return not self.has(*UNPROVEN)

    @property
    def slos_met(self) -> str:
        """How many of the SLOs hold by their value; empty without SLOs."""
        return f"SLOs {self.met} of {self.slos} met" if self.slos else ""

    @property
    def line(self) -> str:
        """As the console and exports show it."""
        return f"Verdict: {self.said()}"

    def said(self, *, running: bool = False) -> str:
        """The verdict in words with its reasons; of a test that is `running`, as it stands."""
        so_far = " so far" if running else ""
        if self.answer:
            return "; ".join(
                [self.answer, *(reason.text for reason in self.reasons if reason.kind not in IN_THE_ANSWER)]
            )
        if self.reasons:
            return f"NOT passed{so_far}: {'; '.join(reason.text for reason in self.reasons)}"
        return f"passed{so_far}, {self.slos_met}" if self.slos else f"passed{so_far} (no SLO was set)"


def conclude(
    rules: Rules,
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
) -> Verdict:
    """The verdict on a run with so many successes and failures and, while it is `running`, on what there is so far.

    `lost`: workers whose records are missing; `other_failures`: those that Locust counted of requests that are not the
    harness's; `unwritten`: why records could not be written. Where an SLO limits the error rate, that decides about
    failures. Without SLOs, a client-bound run passes, as nothing was asked of its figures.
    """
    on_errors = any(result.name == "errors:rate" for result in slos)
    found = incomplete(rules, lost=lost, unwritten=unwritten)
    if not success and (failed or not running):
        found.append(Reason(Kind.NO_SUCCESS, "no request succeeded"))
    found += [Reason(Kind.SLO, miss_line(result)) for result in slos if not result.ok]
    if failed and success and not on_errors and rules.exit_code_on_error:
        found.append(Reason(Kind.FAILURES, f"{failed} of {success + failed} requests failed"))
    if other_failures and rules.exit_code_on_error:
        counted = "1 failure" if other_failures == 1 else f"{other_failures} failures"
        others = f"{counted} of requests or users that are not the harness's"
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


def incomplete(rules: Rules, *, lost: Collection[int], unwritten: str) -> list[Reason]:
    """The reasons of a run some of whose records are missing."""
    found = []
    if unwritten:
        found.append(Reason(Kind.UNWRITTEN, f"records could not be written: {unwritten}"))
    if lost and not rules.allow_lost_workers:
        who = ", ".join(map(str, sorted(lost)))
        found.append(Reason(Kind.MISSING, f"records of worker {who} are missing"))
    return found


def verdict_of(reasons: list[Reason], rules: Rules) -> Verdict:
    """The verdict by its reasons: none, and the run passed."""
    kinds = {reason.kind for reason in reasons}
    if kinds & {Kind.UNWRITTEN, Kind.NOT_EXACT}:
        code = UNKNOWN
    elif kinds and kinds <= {Kind.FAILURES, Kind.OTHER_FAILURES}:
        code = rules.exit_code_on_error
    else:
        code = 1 if kinds else 0
    return Verdict(passed=not reasons, exit_code=code, reasons=reasons)
