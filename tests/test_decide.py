"""When a step of a search is settled, and how often such a decision is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from asr_load.results.decide import LEAST_REQUESTS, LOOKS, decide
from asr_load.results.normalizers import Scoring
from asr_load.results.slo import parse_slo
from harness.records import failure, record


def test_percentile_is_settled_when_the_share_above_the_limit_is() -> None:
    slo = parse_slo("ttft:p95:500")

    def of(above: int, below: int) -> tuple[bool, bool]:
        found = decide(slo, [record(n, ttft=0.6 if n < above else 0.2) for n in range(above + below)], Scoring())
        return found.ok, found.settled

    assert of(0, LEAST_REQUESTS - 1) == (True, False)
    assert of(0, 140) == (True, False)  # none of 140 above: the true share may be up to 5.3 %
    assert of(0, 160) == (True, True)
    assert of(5, 95) == (True, False)  # at the limit, more requests may decide
    assert of(15, 85) == (False, True)
    assert of(40, 960) == (True, False)
    assert of(25, 975) == (True, True)


@pytest.mark.long
@pytest.mark.parametrize(("share", "most_wrong"), [(0.05, 0.08), (0.04, 0.04), (0.065, 0.04)])
def test_wrong_slo_decisions_are_as_rare_as_stated(share: float, most_wrong: float) -> None:
    """Count wrong decisions over all looks at a step until it is settled. Exactly at the limit, each one is wrong."""
    slo = parse_slo("ttft:p95:500")
    random = np.random.default_rng(5)
    rounds, wrong = 150, 0
    for _ in range(rounds):
        records = [record(n, ttft=0.6 if above else 0.2) for n, above in enumerate(random.random(1500) < share)]
        count = LEAST_REQUESTS
        while count <= len(records):
            found = decide(slo, records[:count], Scoring())
            if found.settled:
                wrong += share == 0.05 or found.ok != (share < 0.05)
                break
            count = int(np.ceil(LOOKS * count))
    assert wrong <= most_wrong * rounds


def test_gaps_of_one_request_are_not_independent() -> None:
    slo = parse_slo("itl:p90:50")
    # One request in twelve has all its gaps above the limit: 8.3 % of 6,000 values, but from only 60 requests.
    slow = [record(n, itl=[0.06] * 100 if n % 12 == 0 else [0.02] * 100) for n in range(60)]
    spread = [record(n, itl=[0.06 if gap % 12 == n % 12 else 0.02 for gap in range(100)]) for n in range(60)]
    assert not decide(slo, slow, Scoring()).settled
    assert decide(slo, spread, Scoring()).settled
    assert decide(slo, slow, Scoring()).value == decide(slo, spread, Scoring()).value


def test_few_correct_transcripts_do_not_prove_a_low_wer() -> None:
    """Thirty correct transcripts of two words show that under 10 % of words are wrong, but not under 1 %."""
    right = [record(n) for n in range(30)]
    for limit, settled in ((0.01, False), (0.2, True)):
        found = decide(parse_slo(f"wer:mean:{limit}"), right, Scoring())
        assert (found.value, found.ok, found.settled) == (0.0, True, settled)
    assert decide(parse_slo("wer:mean:0.01"), right * 20, Scoring()).settled


def test_rates_and_means_are_settled_with_enough_requests() -> None:
    good, bad = [record(n) for n in range(400)], [failure(n, "cut") for n in range(400)]
    errors = parse_slo("errors:rate:0.01")
    assert not decide(errors, good, Scoring()).settled
    assert decide(errors, good * 2, Scoring()).ok and decide(errors, good * 2, Scoring()).settled
    assert decide(errors, good[:90] + bad[:10], Scoring()) == decide(errors, bad[:10] + good[:90], Scoring())
    assert not decide(errors, good[:90] + bad[:10], Scoring()).ok
    wer = parse_slo("wer:mean:0.3")
    halves = [record(n, text="he said" if n % 2 else "she said") for n in range(100)]
    assert decide(wer, halves, Scoring()).value == 0.25
    assert not decide(wer, halves[:LEAST_REQUESTS], Scoring()).settled
    assert decide(wer, halves * 4, Scoring()).ok and decide(wer, halves * 4, Scoring()).settled
    assert decide(parse_slo("ttft:max:500"), [record(ttft=0.6)], Scoring()).settled
    assert not decide(parse_slo("ttft:p95:500"), bad[:50], Scoring()).ok
    assert decide(parse_slo("ttft:p95:500"), bad[:50], Scoring()).settled
