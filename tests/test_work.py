"""The order of clips, the budget of requests, and their due times."""

from __future__ import annotations

import pytest

from asr_load.schedule.arrivals import arrivals_of
from asr_load.schedule.loop import Loop
from asr_load.schedule.work import ArrivalAssignment, ClipOrder, Job, Share, Work


def jobs(work: Work, number: int) -> list[Job]:
    taken = []
    for _ in range(number):
        job = work.peek()
        assert work.peek() == job  # peek takes nothing
        if job is None:
            break
        work.take(job)
        taken.append(job)
    return taken


def clips(order: ClipOrder, number: int, work: Work | None = None) -> list[int]:
    return [order.clip(job.seq) for job in jobs(work or Work(), number)]


def test_passes_over_clips_follow_in_order() -> None:
    assert clips(ClipOrder(3), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_budget_of_requests_is_handed_out_exactly_once() -> None:
    work = Work(budget=5)
    assert [job.seq for job in jobs(work, 7)] == [0, 1, 2, 3, 4]
    assert work.taken == 5
    shares = [jobs(Work(Share(worker, 2).next, budget=5), 9) for worker in range(2)]
    assert sorted(job.seq for share in shares for job in share) == [0, 1, 2, 3, 4]


def test_late_worker_sends_the_clips_in_its_own_order() -> None:
    late = Share(3, 2)
    assert late.late
    assert not Share(1, 2).late
    assert clips(ClipOrder(4), 4, Work(late.next)) == [3, 1, 3, 1]


def test_shuffled_pass_has_each_clip_once_in_an_order_of_the_seed() -> None:
    order = clips(ClipOrder(50, shuffle=True, seed=7), 150)
    passes = [order[at : at + 50] for at in (0, 50, 100)]
    assert all(sorted(one) == list(range(50)) for one in passes)
    assert passes[0] != passes[1] != passes[2] != list(range(50))
    assert order == clips(ClipOrder(50, shuffle=True, seed=7), 150)
    assert order != clips(ClipOrder(50, shuffle=True, seed=8), 150)


def test_open_loop_jobs_have_due_times_and_waiting_ones_are_counted() -> None:
    assignment = ArrivalAssignment([(0, [0, 1])])
    work = Work(
        lambda after: assignment.next(1, after), budget=9, arrivals=arrivals_of(Loop(rate=2.0, arrivals="constant"))
    )
    assert [(job.seq, job.due) for job in jobs(work, 2)] == [(1, 0.5), (3, 1.5)]
    assert [work.waiting(at) for at in (0.0, 2.5, 2.6, 3.6, 99.0)] == [0, 0, 1, 2, 2]
    assignment = assignment.changed(6, [1])
    assert [job.seq for job in jobs(work, 9)] == [5, 6, 7, 8]
    assert Work().waiting(99.0) == 0


def test_worker_without_an_arrival_has_no_job_yet() -> None:
    assignment = ArrivalAssignment([(0, [0])])
    work = Work(lambda after: assignment.next(1, after), arrivals=arrivals_of(Loop(rate=2.0, arrivals="constant")))
    assert work.peek() is None
    assignment = assignment.changed(10, [0, 1])
    job = work.peek()
    assert job is not None
    assert job.seq == 11
    assert job.due == pytest.approx(5.5)


def test_run_that_ends_before_its_arrivals_had_none_due() -> None:
    counts = Work(arrivals=arrivals_of(Loop(rate=10.0, arrivals="constant"))).arrivals_until(-0.5)
    assert counts is not None
    assert (counts.seconds, counts.due) == (0.0, 0)
