"""The steps of a search, second by second, without a server: the clock and the records are simulated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec
import pytest

from asr_load.load.search import IDLE, REPEATS, Stepper, for_search, resumed
from asr_load.load.solo import Solo
from asr_load.results.capacity import Capacity, answer_lines, read_capacity
from asr_load.results.normalizers import Scoring
from asr_load.results.runfile import WorkerInfo
from asr_load.schedule.loop import Stage
from asr_load.settings.settings import Settings
from asr_load.stream.record import Record
from harness.options import settings as asked_for
from harness.records import failure, health, record, worker_info


class Clock:
    """A clock that a test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


Words = tuple[str, ...]


class RunStore:
    """A run store for a test without processes."""

    data_sha256, scoring = "0", Scoring()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.watch: Callable[[Record], None] = lambda _: None
        self.workers: list[WorkerInfo] = [worker_info()]
        self.stages: list[str] = []
        self.quiet = True

    def refresh(self) -> None: ...

    def enter_stage(self, name: str) -> None:
        self.stages.append(name)

    def offset(self, worker: int) -> float:
        return 5.0 if worker else 0.0

    def quiet_since(self, moment: float) -> bool:
        assert moment <= time.monotonic()
        return self.quiet


class Part:
    def __init__(self, store: RunStore, clock: Clock) -> None:
        self.store, self._clock, self.schedules = store, clock, list[list[Stage]]()
        self.begins = clock.now

    @property
    def elapsed(self) -> float:
        return self._clock.now - self.begins

    def schedule(self, stages: Sequence[Stage]) -> None:
        self.schedules.append(list(stages))


def settings(*words: str) -> Settings:
    return asked_for("--slo", "ttft:p95:500", *words)


class Play:
    """A search against a server that responds within 0.2 s up to `capacity` streams, and within 0.9 s beyond."""

    def __init__(
        self, clock: Clock, tmp_path: Path, capacity: float, asked: Settings, *, most: int = 16, step_time: float = 10
    ) -> None:
        self.clock, self.capacity = clock, capacity
        self.store = RunStore(tmp_path)
        self.role = Part(self.store, clock)
        self.stepper = Stepper(asked, most, step_time)
        self.users = 0
        self.asked: list[int] = []
        self.gone = False
        """Whether the server refuses connections."""

    def second(self) -> bool:
        """Run one second of the test. Return False at its end."""
        wanted = self.stepper.tick(self.users)
        if wanted is None:
            return False
        if not self.asked:
            self.stepper.attach(cast(Solo, self.role))
        if not self.asked or wanted[0] != self.asked[-1]:
            self.asked.append(wanted[0])
        self.users = wanted[0]
        self.clock.now += 1.0
        for number in range(30 * bool(self.users)):
            slow = (self.stepper.load or 0) > self.capacity
            began = self.clock.now - 1 + number / 30
            answer = failure(number, "connect") if self.gone else record(number, ttft=0.9 if slow else 0.2, itl=[])
            self.store.watch(msgspec.structs.replace(answer, started_at=began))
        return True

    def to_its_end(self) -> Capacity:
        while self.second():
            assert self.clock.now < 2000
        return self.stepper.capacity


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_search_doubles_drains_and_halves(clock: Clock, tmp_path: Path) -> None:
    play = Play(clock, tmp_path, 5, settings())
    found = play.to_its_end()
    assert play.asked == [1, 0, 2, 0, 4, 0, 8, 0, 6, 0, 5, 0]
    assert play.store.stages == ["1 stream", *(f"{load} streams" for load in (2, 4, 8, 6, 5))]
    assert (found.answer, found.limited_by) == (5, "")
    assert read_capacity(tmp_path) == found
    broken = [step.seconds for step in found.steps if not step.ok]
    assert max(broken) <= 3  # a step that clearly fails ends early
    assert all(step.settled for step in found.steps)


def test_resumed_search_repeats_no_step(clock: Clock, tmp_path: Path) -> None:
    whole = Play(clock, tmp_path, 5, settings()).to_its_end()
    for kept in (0, 3, len(whole.steps)):
        play = Play(clock, tmp_path, 5, settings())
        play.stepper = Stepper(settings(), 16, 10, whole.steps[:kept])
        found = play.to_its_end()
        assert found.answer == whole.answer
        assert [step.load for step in found.steps] == [step.load for step in whole.steps]
        assert play.asked.count(0) == max(len(whole.steps) - kept, 1)


def test_queue_drains_before_a_step_is_recorded(clock: Clock, tmp_path: Path) -> None:
    play = Play(clock, tmp_path, 0, settings())
    while play.asked != [1, 0]:
        play.second()
    play.store.quiet = False
    for _ in range(60):
        assert play.second()
    assert play.stepper.steps == []
    play.store.quiet = True
    assert not play.second()
    assert play.stepper.capacity.answer == 0


def test_records_of_another_machine_are_moved_to_the_masters_clock(clock: Clock, tmp_path: Path) -> None:
    play = Play(clock, tmp_path, 9, settings(), most=1)
    play.second()
    play.second()
    for number in range(90):
        # By the worker's clock these slow requests started before the step, but they count.
        play.store.watch(record(number, worker=1, started_at=clock.now - 4.5, ttft=0.9))
    assert play.to_its_end().answer == 0


def test_step_during_which_the_client_stalled_ends_the_search(clock: Clock, tmp_path: Path) -> None:
    for allowed in (False, True):
        asked = replace(settings(), allow_client_bound=allowed)
        play = Play(clock, tmp_path, 100, asked, most=8)
        while play.stepper.load != 4:
            play.second()
        play.store.workers = [worker_info(health=health(loop_lag_p99=0.2))]
        found = play.to_its_end()
        assert found.answer == (8 if allowed else 2)
        assert (found.stalled_at, found.at_least) == ((None, False) if allowed else (4, True))
        assert ("the load generator stalled at 4 streams (the event loop was " in found.limited_by) != allowed
        if not allowed:  # the search goes on from there
            again = Play(clock, tmp_path, 100, asked, most=8)
            again.stepper = Stepper(asked, 8, 10, resumed(tmp_path, asked, "0"))
            assert again.to_its_end().answer == 8
            assert again.asked[0] == 4


def test_step_broken_by_a_hiccup_is_repeated(clock: Clock, tmp_path: Path) -> None:
    play = Play(clock, tmp_path, 5, settings())
    while play.stepper.load != 4:
        play.second()
    play.store.workers = [worker_info(health=health(loop_lag_p99=0.2, cpu_mean=0.05))]
    for _ in range(8):
        play.second()
    assert play.asked[-1] == 0
    play.store.workers = [worker_info()]
    found = play.to_its_end()
    assert (found.answer, found.limited_by) == (5, "")
    assert {step.load: step.repeats for step in found.steps if step.repeats} == {4: 1}
    assert play.asked == [1, 0, 2, 0, 4, 0, 4, 0, 8, 0, 6, 0, 5, 0]
    assert [step.load for step in found.steps] == [1, 2, 4, 8, 6, 5]


def test_search_without_a_judged_step_has_no_answer(clock: Clock, tmp_path: Path) -> None:
    play = Play(clock, tmp_path, 5, settings())
    play.store.workers = [worker_info(health=health(loop_lag_p99=0.2, cpu_mean=0.05))]
    found = play.to_its_end()
    assert play.asked == [1, 0] * (REPEATS + 1)
    assert (found.answer, found.steps) == (None, [])
    assert read_capacity(tmp_path).answer is None
    last = answer_lines(found)[-1]
    assert last.startswith(
        "maximum effective streams: unknown (the load generator stalled at 1 stream (the event loop was"
    )


@pytest.mark.parametrize("slos", [(), ("--slo", "errors:rate:0.01")], ids=["passing", "failing"])
@pytest.mark.parametrize(
    ("dies_at", "seconds", "answer"),
    [(1, 0, None), (1, 1, None), (8, 0, 4), (8, 1, 4), (10, 0, 8), (10, 1, 8), (12, 0, 8)],
)
def test_dead_server_ends_the_search_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, dies_at: int, seconds: int, answer: float | None, slos: Words
) -> None:
    """It dies before a step starts, or after its first second."""
    clock, asked = Clock(monkeypatch), settings(*slos)
    play = Play(clock, tmp_path, 11, asked)
    while play.stepper.load != dies_at:
        play.second()
    while seconds and play.asked[-1:] != [dies_at]:
        play.second()
    play.gone = True
    found = play.to_its_end()
    assert (found.answer, found.gone_at, found.stalled_at) == (answer, dies_at, None)
    assert found.limited_by.startswith("the server is gone: no request succeeded (connect: ")
    assert dies_at not in [step.load for step in found.steps]
    assert found.at_least == bool(answer)
    # When the server is back, a resumed search continues from there.
    play = Play(clock, tmp_path, 11, asked)
    play.stepper = Stepper(asked, 16, 10, resumed(tmp_path, asked, "0"))
    assert play.to_its_end().answer == 11


def test_full_server_is_not_gone(clock: Clock, tmp_path: Path) -> None:
    """It refuses requests beyond its slots immediately. Accepted requests end while the step drains."""
    play = Play(clock, tmp_path, 0, settings("--slo", "errors:rate:0.01"), most=1)
    play.gone = True
    play.store.quiet = False
    while play.asked[-1:] != [0]:
        play.second()
    play.store.watch(record(40, started_at=clock.now))
    play.store.quiet = True
    found = play.to_its_end()
    assert (found.answer, found.gone_at) == (0, None)


def test_step_at_the_clients_limit_is_not_repeated(clock: Clock, tmp_path: Path) -> None:
    play = Play(clock, tmp_path, 5, settings())
    play.store.workers = [worker_info(health=health(cpu_mean=0.99))]
    found = play.to_its_end()
    assert play.asked == [1, 0]
    assert found.answer is None
    assert "the load generator was the bottleneck" in found.limited_by


@pytest.mark.parametrize("cpu", [0.05, 0.99], ids=["stalled", "CPU-bound"])
def test_immediate_failure_of_a_step_does_not_count_if_the_client_was_late(
    clock: Clock, tmp_path: Path, cpu: float
) -> None:
    """Thirty slow responses settle a step in its first second."""
    play = Play(clock, tmp_path, 3, settings())
    while play.stepper.load != 4:
        play.second()
    play.store.workers = [worker_info(health=health(loop_lag_p99=0.2, cpu_mean=cpu))]
    found = play.to_its_end()
    assert [step.load for step in found.steps] == [1, 2]
    assert (found.answer, found.stalled_at) == (2, 4)


def test_step_is_judged_once(clock: Clock, tmp_path: Path) -> None:
    """It is judged by the records that settled it. Requests that end while it drains do not change it."""
    play = Play(clock, tmp_path, 0, settings(), most=1)
    while play.asked[-1:] != [0]:
        play.second()
    settled = clock.now
    for number in range(1000):
        play.store.watch(record(number, started_at=settled - 2.5, ttft=0.2, itl=[]))
    (step,) = play.to_its_end().steps
    assert not step.ok
    assert step.settled
    assert step.slo[0].value == pytest.approx(900)
    assert step.requests < 200


def test_unsettled_step_takes_its_time_and_is_marked(clock: Clock, tmp_path: Path) -> None:
    play = Play(clock, tmp_path, 100, settings("--slo", "errors:rate:0.000001"), most=1)
    (step,) = play.to_its_end().steps
    assert step.ok
    assert not step.settled
    assert 10 <= step.seconds <= 11


def test_rate_of_a_step_is_announced_ahead_and_cut_short(clock: Clock, tmp_path: Path) -> None:
    asked = settings("--request-rate", "4")
    assert for_search(asked).loop.stages == "1s:0"
    assert for_search(asked).slos == []
    play = Play(clock, tmp_path, 0.5, asked, most=50)
    while not play.stepper.steps:
        play.second()
    assert play.asked == [50]
    first, cut = play.role.schedules[:2]
    # The schedule is idle until all workers know it, then has the step with its start, then is idle again.
    assert first[1:] == [Stage(12.0, 1.0, 1.0), IDLE]
    assert first[0].seconds == cut[0].seconds >= 1
    assert cut[1].seconds < 12
    assert [step.load for step in play.stepper.steps] == [1]


def test_rate_is_announced_before_a_fleet_starts(clock: Clock, tmp_path: Path) -> None:
    play = Play(clock, tmp_path, 0.5, settings("--request-rate", "4"), most=50)
    play.role.begins += 30
    while not play.role.schedules:
        play.second()
    assert play.role.schedules == [[Stage(12.0, 1.0, 1.0), IDLE]]
    while not play.stepper.steps:
        play.second()
    (step,) = play.stepper.steps
    assert step.requests > 0


def seconds(stage: str) -> float:
    return float(stage.partition("s:")[0])
