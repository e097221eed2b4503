"""Values of the plots: fits, waterfalls and distributions."""

from __future__ import annotations

import numpy as np
import pytest

from asr_load.report.plots import distributions, fit, waterfall
from harness.records import record


def test_fit_of_latency_against_audio_length() -> None:
    records = [record(n, audio_s=float(n), ttft=0.1 + 0.02 * n) for n in range(1, 9)]
    found = fit("ttft", records)
    assert found is not None
    assert found.fixed_s == pytest.approx(0.1)
    assert found.per_audio_s == pytest.approx(0.02)
    assert fit("ttft", [record(n) for n in range(8)]) is None


def test_fit_finds_no_cost_of_audio_in_noise() -> None:
    """Noise gives no cost in nearly all runs, and never a negative one. A real cost is found."""
    costs = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        audio = random.uniform(1, 30, 120)
        noise = random.uniform(0.4, 1.0, 120)
        found = fit("ttft", [record(n, audio_s=a, ttft=y) for n, (a, y) in enumerate(zip(audio, noise, strict=True))])
        assert found is not None
        costs.append(found.per_audio_s)
        real = fit(
            "ttft", [record(n, audio_s=a, ttft=y + a / 50) for n, (a, y) in enumerate(zip(audio, noise, strict=True))]
        )
        assert real is not None
        assert real.per_audio_s == pytest.approx(0.02, abs=0.01)
    assert costs.count(None) >= 196
    assert all(cost is None or cost > 0 for cost in costs)


def test_waterfall_shows_fastest_median_and_slowest_request() -> None:
    records = [record(n, e2el=0.2 + 0.1 * n, itl=[0.1] * n, ttft=0.2) for n in range(5)]
    plot = waterfall(records)
    assert plot is not None
    assert plot.rows == ["fastest: clip0", "median: clip2", "slowest: clip4"]
    upload, wait, answer, chunks = plot.series
    assert list(upload.data) == [(0.0, 1.0, 0), (0.0, 1.0, 1), (0.0, 1.0, 2)]
    assert list(wait.data)[2] == (1.0, 200.0, 2)
    assert list(answer.data)[2] == (200.0, 600.0, 2)
    assert [row for _, row in chunks.data] == [0, 1, 1, 1, 2, 2, 2, 2, 2]


def test_distribution_spans_minimum_to_maximum() -> None:
    records = [record(n, ttft=0.1 * (n + 1)) for n in range(10)]
    ttft = distributions(records, ["ttft:p95:500"])[0]
    (series,) = ttft.series
    assert (series.data[0], series.data[-1]) == ((100.0, 0.0), (1000.0, 100.0))
    assert [mark.at for mark in ttft.places] == [500.0]
