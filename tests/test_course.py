"""The course of a run, slice by slice."""

from __future__ import annotations

import pytest

from asr_load.results.course import course, in_flight_at_start, width_for
from harness.records import failure, record, run_info


def test_course_has_one_point_per_slice() -> None:
    records = [record(0), record(1), failure(2, "http_503", ended_at=1002.5), record(4, text="")]
    info = run_info(users=[(999.0, 3), (1002.0, 5)])
    points = course(records, info, 1)
    # The rest after whole seconds, if shorter than half a second, belongs to the last point.
    assert [point["successes_per_s"] for point in points] == [1.0, 1.0, 0.0, pytest.approx(1 / 1.41)]
    assert points[2]["failures_per_s"] == {"http_503": 1.0}
    assert points[0]["ttft"] == {"p50": 200.0, "p95": 200.0, "p99": 200.0}
    assert points[2]["ttft"]["p50"] is None
    assert [point["users"] for point in points][:3] == [3, 5, 5]
    # A request of 0.41 s in one second, and a failed one of 0.5 s.
    assert [round(point["in_flight"], 2) for point in points][:3] == [0.41, 0.41, 0.5]
    assert course([], info, 1) == []
    assert width_for(3600, 300) == 15


def test_requests_in_flight_at_each_start() -> None:
    records = [record(n, started_at=1000.0 + n / 10, stream_end=0.25) for n in range(4)]
    assert in_flight_at_start(records).tolist() == [1, 2, 3, 3]
