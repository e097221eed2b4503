"""The answer of a search, as text and as a table."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec

from asr_load.report.capacity import print_search
from asr_load.results.capacity import (
    answer_lines,
)
from asr_load.results.summary import summarise
from harness.records import record, run_info
from harness.searches import search_of


def test_search_answer_is_printed_in_words() -> None:
    assert answer_lines(search_of({4: 8, 8: 15, 16: 16})) == [
        "8 streams met ttft:p95 <= 500 ms",
        "16 streams did not: SLO ttft:p95 <= 500 ms: 900 ms, FAIL",
        "maximum effective streams: 8",
    ]
    assert answer_lines(search_of({}, answer=0.0))[0] == "Not even the lowest load met ttft:p95 <= 500 ms"
    assert answer_lines(search_of({4: 8, 8: 15}, asked={"--api": "realtime"}))[-1] == (
        "maximum effective streams: 8 (realtime sessions)"
    )
    live = search_of({4: 8, 8: 15}, asked={"--api": "realtime"}, limited_by="the client", stalled_at=9)
    assert answer_lines(live)[-1] == (
        "maximum effective streams: at least 8 (realtime sessions) (the load generator stalled at 9 streams)"
    )
    rate = search_of({}, kind="request rate", answer=12.3456, limited_by="the client")
    assert answer_lines(rate)[1:] == [
        "The true maximum may be higher: the client",
        "maximum effective request rate: 12.3 requests/s",
    ]


def test_interrupted_search_gives_a_lower_bound() -> None:
    stalled = {"limited_by": "the load generator stalled at 1 stream (the event loop was late)", "answer": 1.0}
    lines = answer_lines(search_of({1: 2}, **stalled, stalled_at=2.0))
    assert lines[-1] == "maximum effective streams: at least 1 (the load generator stalled at 2 streams)"
    assert lines[-2].startswith("The true maximum may be higher: the load generator stalled at 1 stream")
    rate = search_of({}, kind="request rate", answer=12.3456, limited_by="the client", stalled_at=16.0)
    assert answer_lines(rate)[-1] == (
        "maximum effective request rate: at least 12.3 requests/s (the load generator stalled at 16 requests/s)"
    )
    why = "the server is gone: no request succeeded (cut: 9)"
    gone = search_of({4: 8, 8: 15, 16: 16}, limited_by=why, gone_at=12.0)
    assert answer_lines(gone)[-2:] == [
        f"The true maximum may be higher: {why}",
        "maximum effective streams: at least 8 (the server is gone: no request succeeded at 12 streams)",
    ]
    # The most that was allowed is what was asked about.
    bound = search_of({4: 8, 8: 16}, most=8.0, limited_by="the search was limited to 8 streams (-u)")
    assert answer_lines(bound)[-1] == "maximum effective streams: 8"


def test_unsettled_answer_is_marked() -> None:
    steps = search_of({1: 2, 4: 8, 8: 15, 16: 16, 32: 16}).steps
    for open_steps, note in (
        ((1, 32), ""),  # neither step decides the answer
        ((8,), ", not settled (--step-time was too short at 8 streams)"),
        ((8, 16), ", not settled (--step-time was too short at 8 and 16 streams)"),
    ):
        marked = [msgspec.structs.replace(each, settled=each.load not in open_steps) for each in steps]
        assert answer_lines(search_of({}, steps=marked))[-1] == f"maximum effective streams: 8{note}"
    (broken,) = search_of({16: 16}).steps
    unsettled = [msgspec.structs.replace(broken, load=1.0, settled=False)]
    assert answer_lines(search_of({}, steps=unsettled, answer=0.0))[-1] == (
        "maximum effective streams: 0, not settled (--step-time was too short at 1 stream)"
    )


def test_repeated_step_is_marked_in_the_table(tmp_path: Path) -> None:
    once, again = search_of({4: 8, 8: 15}).steps
    again.repeats, again.settled = 2, False
    out = io.StringIO()
    search, info = search_of({}, steps=[once, again]), run_info()
    print_search(tmp_path, info, summarise([], info, search), search, out)
    rows = [line.split() for line in out.getvalue().splitlines() if line.startswith("│")]
    assert [row[-4:-1] for row in rows][-2:] == [[rows[-2][-4], "│", "met"], ["met", "*", "+"]]
    assert "\n+ repeated, because the load generator stalled or the step's last request failed\n" in out.getvalue()


def test_search_prints_its_sentence_first_and_its_number_last(tmp_path: Path) -> None:
    search, info, out = search_of({4: 8, 8: 15, 16: 16}), run_info(slos=["ttft:p95:500"]), io.StringIO()
    print_search(tmp_path, info, summarise([record(n) for n in range(9)], info, search), search, out)
    lines = out.getvalue().splitlines()
    assert lines[1] == ("Maximum effective streams: 8, with TTFT p95 at most 500 ms. The load generator was healthy.")
    assert lines[3] == "=== Capacity ==="
    assert lines[-1] == "maximum effective streams: 8"


def test_search_without_an_answer_prints_why_first(tmp_path: Path) -> None:
    search, info, out = search_of({4: 8}, answer=None), run_info(), io.StringIO()
    print_search(tmp_path, info, summarise([record(0)], info, search), search, out)
    assert out.getvalue().splitlines()[1].startswith("The search stopped before its answer. ")
