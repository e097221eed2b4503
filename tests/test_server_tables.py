"""The server's view in a table next to what was measured."""

from __future__ import annotations

from typing import Any

from asr_load.engine.metrics_page import Distribution, Poll
from asr_load.report.server_tables import server_tables
from asr_load.report.tables import Table
from asr_load.results.summary import Finished
from harness.records import record, run_info

PATH = "/v1/chat/completions"
BOUNDS = [(0.1, 0.0), (0.5, 9.0)]


def tables(*polls: Poll) -> list[Table]:
    info = run_info(endpoint=PATH)
    return list(server_tables(Finished(info, [record(n) for n in range(9)], polls=polls).summary))


def poll(t: float, **page: Any) -> Poll:
    return Poll(url="http://h/metrics", t=t, took=0.01, **page)


def test_each_figure_of_the_server_has_a_row() -> None:
    before = poll(999.0, engine="vLLM", counters={"output_tokens": 3.0, "energy": 50.0}, requests={PATH: 1.0})
    after = poll(
        1020.0,
        gauges={"running": 2.0, "kv_usage": 0.25, "gpu_memory": 3.0 * 2**30, "gpu_power": 250.0},
        counters={"output_tokens": 1230.0, "energy": 150.0},
        requests={PATH: 10.0},
        histograms={
            "ttft": Distribution(1.35, 9.0, BOUNDS),
            "queue": Distribution(0.09, 9.0, [(0.3, 9.0)]),
            "prefill": Distribution(9.0, 9.0, [(0.3, 0.0)]),
        },
    )
    (table,) = tables(before, after)
    assert (table.title, table.note) == ("vLLM about itself", "http://h/metrics: 2 polls, over 21.0 s.")
    assert {name: values for name, *values in table.rows} == {
        "requests": ["9", "9"],
        "output tokens": ["1,227", "27"],
        "energy": ["100 J", ""],
        "Running, mean and maximum": ["2.0, 2", ""],
        "KV cache in use, mean and maximum": ["25.0%, 25.0%", ""],
        "GPU memory, mean and maximum": ["3.0, 3.0 GiB", ""],
        "GPU power, mean and maximum": ["250.0, 250 W", ""],
        "TTFT mean, ms": ["150.0", "200.0"],
        "TTFT p95, ms": ["100 to 500", "200.0"],
        "Queue mean, ms": ["10.0", ""],
        "Queue p95, ms": ["≤ 300", ""],
        "Prefill mean, ms": ["1,000.0", ""],
        "Prefill p95, ms": ["> 300", ""],
    }


def test_note_tells_restarts_and_failed_polls() -> None:
    polls = (
        poll(999.0, counters={"energy": 9.0}),
        poll(1003.0, error="refused"),
        poll(1020.0, counters={"energy": 1.0}),
    )
    (table,) = tables(*polls)
    assert table.title == "Server about itself"
    assert table.rows == []
    assert table.note == (
        "http://h/metrics: 3 polls, of which 1 failed (refused), over 21.0 s."
        " The server restarted, so counts are unknown."
    )


def test_page_without_figures_has_no_table() -> None:
    assert tables(poll(999.0, error="refused")) == []
    assert tables() == []
