"""Metrics of records: which records have a value, and figures of every metric."""

from __future__ import annotations

import msgspec

from asr_load.results.metrics import METRICS, Figures
from asr_load.results.summary import Summary, summarise
from conftest import CHECKOUT
from harness.records import failure, record, run_info


def test_clip_without_a_length_has_no_rtf() -> None:
    summary = summarise([record(0, audio_s=0.0), record(1)], run_info())
    assert (summary.rtf.n, summary.audio_s) == (1, 2.0)


def test_summary_has_figures_of_every_metric() -> None:
    assert {field.name for field in msgspec.structs.fields(Summary) if field.type is Figures} == set(METRICS)


def test_failures_count_for_lag_and_connect_only() -> None:
    broken = failure(1, "http_503", lag=0.2, connect=0.1)
    summary = summarise([record(0), broken], run_info())
    counts = {name: getattr(summary, name).n for name in ("lag", "connect", "ttft")}
    assert counts == {"lag": 1, "connect": 1, "ttft": 1}


def test_metrics_page_has_the_definitions() -> None:
    page = (CHECKOUT / "docs" / "metrics.md").read_text()
    for metric in METRICS.values():
        assert f"| `{metric.name}` | {metric.definition} |\n" in page, metric.name
