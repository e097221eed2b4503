"""The one sentence that comes first wherever a test is shown."""

from __future__ import annotations

from typing import Any

import pytest

from asr_load.report.sentence import sentence
from asr_load.report.view import View, view_finished, view_running
from asr_load.results.accuracy import Sample
from asr_load.results.live import DRAWN, Live
from asr_load.results.normalizers import Scoring
from asr_load.results.pass_fail import Kind, Reason, Verdict
from asr_load.results.slo import parse_slos
from asr_load.results.summary import summarise
from asr_load.results.verdict import judge_clients
from asr_load.stream.record import Record
from harness.records import failure, health, record, run_info, worker_info

SLOS = ["ttft:p95:500", "errors:rate:0.01"]
LATE = {"loop_lag_p99": 1.0, "stamp_lag_p99": 1.0, "loop_lag_max": 1.0, "stamp_lag_max": 1.0, "cpu_mean": 1.0}


def finished(records: list[Record], **changes: Any) -> str:
    info = run_info(**({"num_users": 12} | changes))
    return sentence(info, view_finished(summarise(records, info)))


@pytest.mark.parametrize(
    ("changes", "records", "text"),
    [
        (
            {},
            [record(n) for n in range(9)],
            "Held 12 streams for 10 s: TTFT p95 200 ms, errors 0.0%, WER 0.0%. The load generator was healthy.",
        ),
        (
            {"slos": SLOS},
            [*(record(n, ttft=1.27, e2el=1.5) for n in range(28)), failure(28, "cut")],
            "Held 12 streams for 29 s: TTFT p95 1.27 s (limit 500 ms: missed), errors 3.4%"
            " (limit 1.0%: missed), WER 0.0%. The load generator was healthy.",
        ),
        (
            {"slos": ["rtf:p95:0.5", "wer:mean:0.1"], "num_users": 1},
            [record(n) for n in range(9)],
            "Held 1 stream for 10 s: TTFT p95 200 ms, RTF p95 0.2 (limit 0.5: met), errors 0.0%,"
            " WER 0.0% (limit 10.0%: met). The load generator was healthy.",
        ),
        (
            {"api": "realtime", "shape": "steps", "users": [(1000.0, 3), (1005.0, 8)]},
            [record(n) for n in range(9)],
            "Held up to 8 sessions for 10 s: TTFT p95 200 ms, errors 0.0%, WER 0.0%. The load generator was healthy.",
        ),
        (
            {"users": [(1000.0, 3)]},
            [record(n) for n in range(9)],
            "Held up to 3 streams for 10 s: TTFT p95 200 ms, errors 0.0%, WER 0.0%. The load generator was healthy.",
        ),
        (
            {"loop": {"rate": 2.5, "arrivals": "poisson"}},
            [record(n, due_at=1000.0 + n, lag=0.0) for n in range(9)],
            "Sent 2.5 requests/s for 10 s: TTFT p95 200 ms, errors 0.0%, WER 0.0%. The load generator was healthy.",
        ),
        (
            {},
            [failure(0, "http_503", error="overloaded"), failure(1, "http_503", error="overloaded")],
            "No request succeeded: 2× 503: overloaded: the server is not ready (--ready-timeout waits for it) or"
            " overloaded (lower -u or the rate). The load generator was not judged.",
        ),
        (
            {},
            [failure(0, "unfinished")],
            "No request finished: run the test for longer (-t), or let requests finish (--stop-timeout).",
        ),
    ],
)
def test_sentence_of_a_finished_test(changes: dict[str, Any], records: list[Record], text: str) -> None:
    assert finished(records, **changes) == text


def test_load_generator_that_was_too_slow_is_named() -> None:
    text = finished([record(n) for n in range(9)], workers=[worker_info(health=health(**LATE))])
    assert text.endswith("The load generator was too slow, so the figures are not the server's.")


def test_suspect_figures_are_named() -> None:
    healthy = finished([record(n, prompt_tokens=100, cached_tokens=n and 90) for n in range(9)])
    assert healthy.endswith("The load generator was healthy, but the figures are suspect.")
    assert "suspect" not in finished([record(n, prompt_tokens=100) for n in range(9)])


def test_missing_records_are_named() -> None:
    text = finished([record(n) for n in range(9)], workers=[worker_info(), worker_info(worker=1, ended=False)])
    assert ". Records of worker 1 are missing (--allow-lost-workers accepts this). " in text


def running(records: list[Record]) -> View:
    slos = parse_slos(SLOS)
    live = Live(1000.0, DRAWN, accuracy=Sample(Scoring()), slos=slos)
    for one in records:
        live.add([one], [one.end])
    live.tick(1010.0, users=12, in_flight=0, complete_until=1010.0)
    return view_running(live, slos, judge_clients([worker_info()]), None)


def test_sentence_of_a_running_test() -> None:
    info = run_info(num_users=12, slos=SLOS)
    assert sentence(info, running([])).startswith("No response yet.")
    text = sentence(info, running([record(n) for n in range(9)]))
    assert text == (
        "Holding 12 streams for 10 s so far: TTFT p95 200 ms (limit 500 ms: met), errors 0.0%"
        " (limit 1.0%: met), WER 0.0%. The load generator is healthy."
    )


@pytest.mark.parametrize(
    ("passed", "answer", "text"),
    [
        (
            True,
            "maximum effective streams: 12",
            "Maximum effective streams: 12, with TTFT p95 at most 500 ms and errors at most 1.0%."
            " The load generator was healthy.",
        ),
        (
            False,
            "maximum effective streams: unknown (the load generator stalled)",
            "Maximum effective streams: unknown (the load generator stalled). The load generator was healthy.",
        ),
    ],
)
def test_sentence_of_a_search(passed: bool, answer: str, text: str) -> None:
    info = run_info(slos=SLOS, shape="capacity")
    view = view_finished(summarise([record(n) for n in range(9)], info))
    reasons = [] if passed else [Reason(Kind.NOT_EXACT, "the load generator stalled")]
    verdict = Verdict(passed=passed, exit_code=0, reasons=reasons, answer=answer)
    assert sentence(info, view.__class__(**(vars(view) | {"verdict": verdict}))) == text
