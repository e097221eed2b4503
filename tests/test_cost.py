"""The cost and the energy of an hour of audio."""

from __future__ import annotations

from typing import Any

import pytest

from asr_load.engine.metrics_page import Poll
from asr_load.report.words import cost_lines
from asr_load.results.cost import Cost, cost
from asr_load.results.summary import Finished, Summary, summarise
from harness.records import record, run_info
from harness.searches import search_of

PRICED = {"price": 3.0, "currency": "EUR", "num_users": 12}


def summary(**changes: Any) -> Summary:
    """Nine requests with two seconds of audio each in ten seconds."""
    return summarise([record(n) for n in range(9)], run_info(**changes))


@pytest.mark.parametrize(
    ("rtfx", "streams", "expected"),
    [
        (60.0, 12.0, Cost(3.0, "EUR", 0.05, 0.05 / 60 * 1000, 4.0)),
        (60.0, None, Cost(3.0, "EUR", 0.05, 0.05 / 60 * 1000, None)),
        (0.0, 0.0, Cost(3.0, "EUR", None, None, None)),
        (None, 1.0, Cost(3.0, "EUR", None, None, 1 / 3)),
    ],
)
def test_cost(rtfx: float | None, streams: float | None, expected: Cost) -> None:
    assert cost(3.0, "EUR", rtfx, streams) == expected


def test_cost_is_that_of_the_load_of_the_test() -> None:
    found = summary(**PRICED)
    assert found.rtfx is not None
    assert found.cost == cost(3.0, "EUR", found.rtfx, 12)
    assert cost_lines(found) == [
        f"Cost at this load: {3 / found.rtfx:.4f} EUR per audio hour, {50 / found.rtfx:.2f} EUR per 1,000 minutes,"
        " 4 streams per EUR an hour (the server costs 3 EUR an hour)"
    ]
    open_loop = summary(**PRICED, loop={"rate": 1.0})
    assert open_loop.cost is not None
    assert open_loop.cost.streams_per_unit is None
    assert cost_lines(summary()) == []


def test_cost_of_a_search_is_that_of_its_answer() -> None:
    search = search_of({4: 8, 8: 15, 16: 16})
    search.answer = 8.0
    found = Finished(run_info(**PRICED), [record(0)], search).summary.cost
    step = next(step for step in search.steps if step.load == 8)
    assert found == cost(3.0, "EUR", step.rtfx, 8.0)


def test_energy_is_that_of_the_counter_of_the_gpus() -> None:
    polls = [Poll(url="u", t=t, took=0.0, counters={"energy": joules}) for t, joules in ((999.0, 50.0), (1020.0, 95.0))]
    found = Finished(run_info(), [record(n) for n in range(9)], polls=polls).summary
    assert found.joules_per_audio_hour == pytest.approx(45 / 18 * 3600)
    assert cost_lines(found) == ["Energy at this load: 9,000 J per audio hour"]
    assert summary().joules_per_audio_hour is None
