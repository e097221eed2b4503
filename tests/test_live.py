"""The live view: what it shows agrees with the records it was fed."""

from __future__ import annotations

import numpy as np
import pytest

from asr_load.results.live import Histogram, Live
from records import failure, record


@pytest.mark.parametrize("spread", [0.1, 1.0, 2.5])
def test_a_histograms_percentiles_are_within_a_quarter_of_a_percent(spread: float) -> None:
    values = np.random.default_rng(0).lognormal(3, spread, 20_000)
    histogram = Histogram()
    histogram.add(values)
    exact = np.percentile(values, [50, 90, 95, 99], method="inverted_cdf")
    for found, right in zip(histogram.percentiles([50, 90, 95, 99]), exact, strict=True):
        assert found == pytest.approx(right, rel=0.0026)
    assert (histogram.n, histogram.max) == (20_000, values.max())


def test_rows_for_the_last_seconds_and_for_the_run() -> None:
    live = Live()
    for second in range(15):
        live.add([record(second, ttft=0.1 if second < 5 else 0.3, e2el=0.5)])
        live.tick(1000.0 + second, 1.0, users=second)
    rows = {row["name"]: row for row in live.table()}
    assert list(rows)[:2] == ["TTFT (ms), last 10 s", "TTFT (ms), whole run"]
    assert rows["TTFT (ms), last 10 s"]["count"] == 10
    assert rows["TTFT (ms), last 10 s"]["p50"] == pytest.approx(300)
    assert rows["TTFT (ms), whole run"]["count"] == 15
    assert rows["TTFT (ms), whole run"]["p50"] == pytest.approx(300, rel=0.003)
    assert rows["ITL (ms), whole run"]["count"] == 30
    assert rows["RTF, whole run"]["max"] == 0.25


def test_a_point_a_second() -> None:
    live = Live()
    live.add([record(0), failure(1, "http_503", ttft=9.0)])
    live.tick(1000.0, 2.0, users=3)
    live.tick(1001.0, 1.0, users=4)
    first, second = live.points()
    assert first["t"] == 1000.0
    assert first["ttft"] == {"p50": 200.0, "p95": 200.0, "p99": 200.0}
    assert first["itl"]["p50"] == pytest.approx(100.0)
    assert (first["users"], first["tokens_per_s"], first["rtfx"]) == (3, 1.5, 1.0)
    assert first["failures"] == {"http_503": 1}
    assert second["ttft"] == {"p50": None, "p95": None, "p99": None}
    assert live.points(after=1000.0) == [second]
    assert (live.requests, dict(live.failures)) == (2, {"http_503": 1})
