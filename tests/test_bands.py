"""Stretches that the charts of a test shade."""

from __future__ import annotations

import msgspec
import pytest

from asr_load.report.bands import bands
from asr_load.results.runfile import Late
from harness.records import health, worker_info


def late(begin: float, end: float) -> Late:
    return Late(begin, end, 0.2, 0.5)


def test_late_stretches_of_all_workers_are_merged_on_the_masters_clock() -> None:
    workers = [
        worker_info(worker=0, health=health(late=[late(1003.0, 1005.0), late(1020.0, 1021.0)])),
        worker_info(worker=1, health=health(late=[late(904.0, 907.0)]), master_offset_s=100.0),
    ]
    shown = [msgspec.structs.astuple(band) for band in bands(workers, 1000.0)]
    assert shown == [
        ("late", "load generator late", 3.0, 7.0),
        ("late", "load generator late", 20.0, 21.0),
    ]


def test_lost_worker_is_shaded_until_the_end_of_the_chart() -> None:
    workers = [worker_info(worker=2, ended=False, lost_at=1004.5), worker_info(worker=3, lost_at=1005.0)]
    assert [msgspec.structs.astuple(band) for band in bands(workers, 1000.0)] == [("lost", "worker 2 lost", 4.5, None)]


@pytest.mark.parametrize(("began", "shown"), [(1001.0, [(0.0, 1.0)]), (1002.0, [])])
def test_bands_begin_with_the_chart(began: float, shown: list[tuple[float, float]]) -> None:
    found = bands([worker_info(health=health(late=[late(1000.0, 1002.0)]))], began)
    assert [(band.begin, band.end) for band in found] == shown
