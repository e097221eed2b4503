"""The order of clips, the budget of requests, and their times."""

from __future__ import annotations

import pytest

from asr_load.schedule.arrivals import make_arrivals
from asr_load.schedule.assignment import ArrivalAssignment
from asr_load.schedule.work import ClipOrder, Job, Share, Work


def jobs(work: Work, number: int) -> list[Job]:
    taken = []
    for _ in range(number):
        job = work.peek()
        assert work.peek() == job  # looking takes nothing
        if job is None:
            break
        work.take(job)
        taken.append(job)
    return taken


def clips(order: ClipOrder, number: int, work: Work | None = None) -> list[int]:
    return [order.clip(job.seq) for job in jobs(work or Work(), number)]


def test_passes_follow_each_other_in_order() -> None:
    assert clips(ClipOrder(3), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_a_budget_is_handed_out_exactly_once() -> None:
    work = Work(budget=5)
    assert [job.seq for job in jobs(work, 7)] == [0, 1, 2, 3, 4]
    assert work.taken == 5
    shares = [jobs(Work(Share(worker, 2).next, budget=5), 9) for worker in range(2)]
    assert sorted(job.seq for share in shares for job in share) == [0, 1, 2, 3, 4]


def test_a_late_worker_goes_through_the_clips_by_itself() -> None:
    late = Share(3, 2)
    assert late.late
    assert not Share(1, 2).late
    assert clips(ClipOrder(4), 4, Work(late.next)) == [3, 1, 3, 1]


def test_a_shuffled_pass_has_each_clip_once_and_each_pass_its_own_order() -> None:
    order = clips(ClipOrder(50, shuffle=True, seed=7), 150)
    passes = [order[at : at + 50] for at in (0, 50, 100)]
    assert all(sorted(one) == list(range(50)) for one in passes)
    assert passes[0] != passes[1] != passes[2] != list(range(50))
    assert order == clips(ClipOrder(50, shuffle=True, seed=7), 150)
    assert order != clips(ClipOrder(50, shuffle=True, seed=8), 150)


def test_in_an_open_loop_each_has_its_time_and_what_waits_is_counted() -> None:
    assignment = ArrivalAssignment([(0, [0, 1])])
    work = Work(lambda after: assignment.next(1, after), budget=9, arrivals=make_arrivals("constant", rate=2.0))
    assert [(job.seq, job.due) for job in jobs(work, 2)] == [(1, 0.5), (3, 1.5)]
    assert [work.waiting(at) for at in (0.0, 2.5, 2.6, 3.6, 99.0)] == [0, 0, 1, 2, 2]
    assignment = assignment.changed(6, [1])
    assert [job.seq for job in jobs(work, 9)] == [5, 6, 7, 8]
    assert Work().waiting(99.0) == 0


def test_a_worker_without_a_turn_has_nothing_to_do_as_yet() -> None:
    assignment = ArrivalAssignment([(0, [0])])
    work = Work(lambda after: assignment.next(1, after), arrivals=make_arrivals("constant", rate=2.0))
    assert work.peek() is None
    assignment = assignment.changed(10, [0, 1])
    job = work.peek()
    assert job is not None
    assert job.seq == 11
    assert job.due == pytest.approx(5.5)


def test_a_test_that_ends_before_its_arrivals_begin_was_due_nothing() -> None:
    counts = Work(arrivals=make_arrivals("constant", rate=10.0)).arrivals_until(-0.5)
    assert counts is not None
    assert (counts.seconds, counts.due) == (0.0, 0)
