"""The server's view: windows, restarts, means, buckets, and other clients."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from asr_load.engine.metrics_page import POLLS, Distribution, Poll
from asr_load.results.server_view import Bucket, Gauge, Timing, read_polls, server_views
from asr_load.results.summary import Finished
from harness.records import record, run_info

PATH = "/v1/chat/completions"


def poll(t: float, **page: object) -> Poll:
    return Poll(url="u", t=t, took=0.01, **page)  # type: ignore[arg-type]


def counts(t: float, tokens: float, running: float = 0.0) -> Poll:
    return poll(t, gauges={"running": running}, counters={"output_tokens": tokens}, requests={PATH: tokens / 10})


def test_window_lies_between_the_last_poll_before_and_the_first_after() -> None:
    polls = [counts(float(t), 10.0 * t, running=float(t)) for t in range(10)]
    (view,) = server_views(polls, 2.5, 6.5, PATH, sent=9)
    assert (view.polls, view.failed, view.seconds) == (10, 0, 5.0)
    assert view.counters == {"output_tokens": 50.0}
    assert view.gauges == {"running": Gauge(4.5, 6.0)}
    assert (view.requests, view.sent) == (9, 9)


def test_poll_in_progress_when_the_window_begins_is_not_before_it() -> None:
    slow = msgspec.structs.replace(counts(2.0, 20.0), took=1.0)
    (view,) = server_views([counts(1.0, 10.0), slow, counts(5.0, 50.0)], 2.5, 4.0, PATH, sent=1)
    assert view.counters == {"output_tokens": 40.0}


@pytest.mark.parametrize("polls", [[], [counts(1.0, 10.0)], [poll(1.0, error="404"), counts(2.0, 1.0)]])
def test_without_two_polls_nothing_is_known(polls: list[Poll]) -> None:
    views = server_views(polls, 0.0, 9.0, PATH, sent=1)
    assert [(view.seconds, view.counters, view.requests) for view in views] == [(0.0, {}, None)] * bool(polls)


def test_counter_that_falls_is_a_restart() -> None:
    polls = [counts(0.0, 100.0), counts(1.0, 5.0, running=2.0), counts(2.0, 200.0)]
    (view,) = server_views(polls, 0.5, 1.5, PATH, sent=1)
    assert view.restarted
    assert (view.counters, view.timings, view.requests) == ({}, {}, None)
    assert view.gauges == {"running": Gauge(2.0, 2.0)}
    histograms = [poll(float(n), histograms={"ttft": Distribution(1.0, count)}) for n, count in enumerate((5.0, 1.0))]
    assert server_views(histograms, 0.5, 0.6, PATH, sent=1)[0].restarted


def test_failed_polls_are_counted_and_passed_over() -> None:
    polls = [counts(0.0, 0.0), poll(1.0, error="Connection refused"), counts(2.0, 20.0)]
    (view,) = server_views(polls, 0.5, 1.5, PATH, sent=1)
    assert (view.failed, view.error, view.restarted) == (1, "Connection refused", False)
    assert view.counters == {"output_tokens": 20.0}


def test_metric_that_appears_with_the_first_request_counts_from_zero() -> None:
    late = poll(2.0, counters={"output_tokens": 7.0}, histograms={"ttft": Distribution(1.0, 2.0, [(0.5, 2.0)])})
    (view,) = server_views([poll(0.0, gauges={"running": 0.0}), late], 0.5, 1.5, PATH, sent=1)
    assert view.counters == {"output_tokens": 7.0}
    assert view.timings["ttft"] == Timing(2, 0.5, Bucket(0.0, 0.5), Bucket(0.0, 0.5))


def test_quantile_is_only_known_as_its_bucket() -> None:
    bounds = (0.1, 0.2, 0.4)
    before = Distribution(1.0, 4.0, list(zip(bounds, (4.0, 4.0, 4.0), strict=True)))
    after = Distribution(11.0, 24.0, list(zip(bounds, (4.0, 14.0, 22.0), strict=True)))
    polls = [poll(0.0, histograms={"ttft": before}), poll(2.0, histograms={"ttft": after})]
    (view,) = server_views(polls, 0.5, 1.5, PATH, sent=1)
    assert view.timings["ttft"] == Timing(20, 0.5, Bucket(0.1, 0.2), Bucket(0.4, None))


@pytest.mark.parametrize("after", [Distribution(0.5, 5.0), Distribution(2.0, 4.0)])
def test_time_that_cannot_be_true_is_left_out(after: Distribution) -> None:
    # The sum fell, as vLLM's queue time of realtime sessions does; or there is no new value.
    polls = [poll(0.0, histograms={"queue": Distribution(1.0, 4.0)}), poll(2.0, histograms={"queue": after})]
    assert server_views(polls, 0.5, 1.5, PATH, sent=1)[0].timings == {}


def test_each_page_has_a_view() -> None:
    polls = [*(counts(float(t), 10.0 * t) for t in range(3)), poll(0.0, error="x")]
    other = [msgspec.structs.replace(each, url="v") for each in polls[:3]]
    views = server_views([*polls, *other], 0.5, 1.5, PATH, sent=1)
    assert [(view.url, view.polls, view.failed) for view in views] == [("u", 4, 1), ("v", 3, 0)]


def test_unreadable_lines_of_the_file_are_skipped(tmp_path: Path) -> None:
    assert read_polls(tmp_path) == []
    lines = [msgspec.json.encode(counts(2.0, 1.0)), b'{"url": 5}', msgspec.json.encode(counts(1.0, 0.0)), b'{"ur']
    (tmp_path / POLLS).write_bytes(b"\n".join(lines))
    assert read_polls(tmp_path) == [counts(1.0, 0.0), counts(2.0, 1.0)]


@pytest.mark.parametrize(("counted", "suspect"), [(9, False), (8, False), (10, True)])
def test_other_client_of_the_server_makes_figures_suspect(counted: int, suspect: bool) -> None:
    records = [record(n) for n in range(9)]
    polls = [poll(999.0, requests={PATH: 5.0}), poll(1020.0, requests={PATH: 5.0 + counted})]
    validity = Finished(run_info(endpoint=PATH), records, polls=polls).summary.validity
    reason = f"the server counted {counted} requests, but this test sent 9: something else used it"
    assert (validity.verdict == "suspect", reason in validity.reasons) == (suspect, suspect)
