"""The order of clips and the budget of requests."""

from __future__ import annotations

from asr_load.load.work import Work


def clips(work: Work, number: int) -> list[int]:
    return [job[1] for _ in range(number) if (job := work.next()) is not None]


def test_passes_follow_each_other_in_order() -> None:
    assert clips(Work(3), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_a_budget_is_handed_out_exactly_once() -> None:
    work = Work(3, budget=5)
    assert [work.next() for _ in range(7)] == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1), None, None]
    assert work.taken == 5


def test_a_shuffled_pass_has_each_clip_once_and_each_pass_its_own_order() -> None:
    order = clips(Work(50, shuffle=True, seed=7), 150)
    passes = [order[at : at + 50] for at in (0, 50, 100)]
    assert all(sorted(one) == list(range(50)) for one in passes)
    assert passes[0] != passes[1] != passes[2] != list(range(50))
    assert order == clips(Work(50, shuffle=True, seed=7), 150)
    assert order != clips(Work(50, shuffle=True, seed=8), 150)
