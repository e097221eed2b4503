"""Run a search for capacity within one Locust test: start a load, measure it until it is settled, drain, repeat."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import Any

from asr_load.errors import InputError
from asr_load.load.locust_internals import SPAWN_RATE
from asr_load.load.master import NOTICE_S, Master
from asr_load.load.solo import Solo
from asr_load.options.table import OPTIONS
from asr_load.results.capacity import (
    PER_STREAM,
    Capacity,
    Judgement,
    Search,
    Step,
    format_load,
    judge,
    read_capacity,
    server_gone,
    step,
    unreached,
    write_capacity,
)
from asr_load.results.decide import LEAST_REQUESTS, LOOKS
from asr_load.results.verdict import judge_clients
from asr_load.schedule.loop import Stage, parse_stages
from asr_load.settings.settings import Settings
from asr_load.stream.record import Record

IDLE_TEXT = "1s:0"
(IDLE,) = parse_stages(IDLE_TEXT)
"""The rate of an open loop before the first step and between steps."""

OPEN_RAMP_S = 2.0
"""Seconds after the start of a rate in which requests are not measured, because the server is still empty."""

DRAIN_S = 15.0
"""Seconds, in addition to the total timeout, for the fleet to report that nothing is in flight."""


REPEATS = 2
"""Maximum repetitions of a step in which the load generator stalled for a reason other than its load, or whose last
request found no server, which may have died during the step."""

REST_S = 11.0
"""Seconds before a step is repeated, so that the load generator's health, which covers ten seconds, has recovered."""


class Phase(Enum):
    BEGIN, MEASURE, DRAIN, REST = range(4)


class Stepper:
    """Decides the number of users, second by second, from the store's records. Made before the test starts; `attach`
    connects it to the test."""

    def __init__(self, settings: Settings, most: int, step_time: float, resumed: Sequence[Step] = ()) -> None:
        """Make a stepper from the settings of the command line, and -u as `most`. Raises InputError."""
        self._settings, self._users, self._step_time = settings, most, step_time
        rate = settings.loop.rate
        self._open = rate is not None
        self.steps = list(resumed)
        self._search = self._resume(rate if rate is not None else most)
        self.load = self._search.next()
        self.limited_by = ""
        self._stalled_at: float | None = None
        self._gone_at: float | None = None
        self._client_bound_by = ""
        self._held_up = False
        """Whether the load generator stalled for a reason other than its load."""
        self._repeats = 0
        self._judged: tuple[list[Record], Judgement] | None = None
        """The records and judgement of a settled step."""
        self._rest_until = 0.0
        self._phase = Phase.BEGIN
        self._began = self._ended = self._drain_from = self._drain_until = 0.0
        self._look_at = LEAST_REQUESTS
        self._schedule: list[tuple[float, float]] = []
        self._records: list[Record] = []
        """Records of the current step, with times on the master's clock."""
        self._role: Solo | Master | None = None
        self.finished = False

    def _resume(self, most: float) -> Search:
        while True:
            search = Search(most, whole=not self._open)
            for taken in self.steps:
                search.take(taken.load, taken.ok)
            if search.next() is not None:
                return search
            self.steps.pop()  # the search was ended between its last step and its answer: repeat that step

    def attach(self, role: Solo | Master) -> None:
        """Connect to the test that has started."""
        self._role, self._store = role, role.store
        role.store.watch = self._take
        self._write()

    @property
    def capacity(self) -> Capacity:
        """The current state of the search."""
        settings = self._settings
        return Capacity(
            kind="request rate" if self._open else "streams",
            slos=[slo.text for slo in settings.slos],
            most=self._settings.loop.rate or self._users,
            host=settings.host,
            model=settings.request.fields.model,
            data_sha256=self._store.data_sha256,
            loop=asdict(settings.loop) if self._open else {},
            steps=self.steps,
            asked=_comparable(settings),
            metadata=settings.metadata,
            # If something other than an SLO ended the search before any load held, the capacity is unknown.
            answer=self._search.good if self.finished and (self._search.good or not self.limited_by) else None,
            limited_by=self.limited_by,
            stalled_at=self._stalled_at,
            gone_at=self._gone_at,
        )

    def tick(self, users: int) -> tuple[int, float] | None:
        """The number of users to have and to start per second, given the current number; None at the end."""
        if self.load is not None and self._role is not None:  # Locust calls this once before it starts the test
            self._store.refresh()
            match self._phase:
                case Phase.BEGIN:
                    if users >= self._target(self.load)[0]:
                        self._begin(self._role, self.load)
                case Phase.MEASURE:
                    self._measure(self._role, self.load)
                case Phase.DRAIN:
                    self._drain(self.load, users)
                case Phase.REST:
                    if time.time() >= self._rest_until:
                        self._phase = Phase.BEGIN
        if self.load is not None:
            return self._target(self.load)
        if not self.finished:
            self._finish()
        return None

    def _target(self, load: float) -> tuple[int, float]:
        """The number of users to have and to start per second."""
        if self._open:
            return self._users, float(min(self._users, SPAWN_RATE))
        users = 0 if self._phase in (Phase.DRAIN, Phase.REST) else int(load)
        return users, float(min(int(load), SPAWN_RATE))

    def _begin(self, role: Solo | Master, load: float) -> None:
        self._began = time.time()
        if self._open:
            # In a fleet, arrivals begin some time after the start of the test.
            planned, ahead = sum(seconds for seconds, _ in self._schedule), role.elapsed + NOTICE_S
            if ahead > planned:
                self._schedule.append((ahead - planned, 0.0))
            self._schedule.append((self._step_time + OPEN_RAMP_S, load))
            self._announce(role)
            self._began += max(planned, ahead) - role.elapsed + OPEN_RAMP_S
        self._store.enter_stage(format_load(self.capacity, load))
        self._phase = Phase.MEASURE

    def _measure(self, role: Solo | Master, load: float) -> None:
        now = time.time()
        seconds = now - self._began
        if seconds < 0:
            return
        # Check the load generator first: if it was too slow, the result says nothing about the server.
        if self._client_bound() or self._is_settled(load, now) or seconds >= self._step_time:
            self._ended = now
            self._drain_until = now + self._settings.timeouts.total + DRAIN_S
            self._drain_from = time.monotonic()
            if self._open:
                self._cut_short(role)
            self._phase = Phase.DRAIN

    def _is_settled(self, load: float, now: float) -> bool:
        # Look only at some points: each look is a chance of error, and takes time from the streams.
        records = self._measured(now)
        if len(records) < self._look_at:
            return False
        self._look_at = math.ceil(LOOKS * len(records))
        judgement = self._judge(load, records)
        if judgement.settled:
            self._judged = records, judgement
        return judgement.settled

    def _judge(self, load: float, records: list[Record]) -> Judgement:
        least = 0 if self._open else PER_STREAM * int(load)
        return judge(self._settings.slos, records, self._store.scoring, least=least, is_open=self._open)

    def _cut_short(self, role: Solo | Master) -> None:
        *before, (length, rate) = self._schedule
        done = role.elapsed + NOTICE_S - sum(seconds for seconds, _ in before)
        self._schedule = [*before, (min(length, max(done, 0.001)), rate)]
        self._drain_from += NOTICE_S
        self._announce(role)

    def _drain(self, load: float, users: int) -> None:
        quiet = (self._open or users == 0) and self._store.quiet_since(self._drain_from)
        if not quiet and time.time() < self._drain_until:
            return
        self._phase = Phase.BEGIN
        if server_gone(self._records):
            outcomes = Counter(record.outcome for record in self._records if record.failed)
            how = ", ".join(f"{outcome}: {count}" for outcome, count in outcomes.most_common())
            self.limited_by = f"the server is gone: no request succeeded ({how})"
            self._gone_at, self.load = load, None
        elif not self._client_bound_by and self._ended_unreached() and self._repeats < REPEATS:
            self._repeats += 1
        elif not self._client_bound_by:
            self._note_step(load)
        elif self._held_up and self._repeats < REPEATS:
            self._repeats += 1
            self._client_bound_by = ""
            self._rest_until = time.time() + REST_S
            self._phase = Phase.REST
        else:
            # The step says nothing about the server, and neither would a higher one.
            how = "stalled" if self._held_up else "was the bottleneck"
            at = format_load(self.capacity, load)
            self.limited_by = f"the load generator {how} at {at} ({self._client_bound_by})"
            self._stalled_at, self.load = load, None
        self._records.clear()
        self._judged = None
        self._look_at = LEAST_REQUESTS
        self._write()

    def _ended_unreached(self) -> bool:
        return bool(self._records) and unreached(max(self._records, key=lambda record: record.end))

    def _note_step(self, load: float) -> None:
        records, judgement = self._judged or (self._measured(self._ended), None)
        judgement = judgement or self._judge(load, records)
        seconds = self._ended - self._began
        inside = [
            record
            for record in self._records
            if record.ok and self._began <= record.begins + (record.stream_end or 0.0) <= self._ended
        ]
        counts = [record.known_tokens for record in inside]
        tokens = None if None in counts else sum(count or 0 for count in counts)
        taken = step(load, judgement, records, seconds, ended=len(inside), tokens=tokens, repeats=self._repeats)
        self.steps.append(taken)
        self._search.take(taken.load, taken.ok)
        self.load = self._search.next()
        self._repeats = 0

    def _client_bound(self) -> bool:
        validity = judge_clients(self._store.workers)
        if validity.verdict == "client-bound" and not self._settings.allow_client_bound:
            self._client_bound_by = validity.reasons[0]
            # Only a limit, which shows in the CPU, would be fixed by more workers; a stall would not.
            self._held_up = not validity.more_workers
        return bool(self._client_bound_by)

    def _finish(self) -> None:
        self.finished = True
        if self._search.at_the_bound:
            self.limited_by = f"the search was limited to {format_load(self.capacity, self._search.good)}"
            self.limited_by += " (--request-rate)" if self._open else " (-u)"
        self._write()

    def _measured(self, until: float) -> list[Record]:
        return [record for record in self._records if self._began <= record.begins <= until and not record.warmup]

    def _take(self, record: Record) -> None:
        self._records.append(record.moved(self._store.offset(record.worker)))

    def _announce(self, role: Solo | Master) -> None:
        role.schedule([*(Stage(seconds, rate, rate) for seconds, rate in self._schedule), IDLE])

    def _write(self) -> None:
        write_capacity(self._store.folder, self.capacity)


def for_search(settings: Settings) -> Settings:
    """The settings of a search's test: without SLOs and rate, which belong to the search's steps."""
    loop = replace(settings.loop, rate=None, stages=IDLE_TEXT) if settings.loop.rate is not None else settings.loop
    return replace(settings, slos=[], loop=loop, searching=True)


SERVER = ("endpoint", "upstream")
"""Options that say which server a search is of, besides --host."""


def _comparable(settings: Settings) -> dict[str, Any]:
    """The options that must not differ between a search and the one that it resumes, by their names."""
    values = settings.in_effect
    same = (option for option in OPTIONS if option.comparable or option.dest in SERVER)
    return {option.name: values[option.dest] for option in same}


def resumed(folder: Path, settings: Settings, data_sha256: str) -> list[Step]:
    """The steps of an unfinished search. Raises InputError if its options were different."""
    earlier = read_capacity(folder)
    requested = _comparable(settings)
    values: dict[str, tuple[Any, Any]] = {
        "--slo": (earlier.slos, [slo.text for slo in settings.slos]),
        "--host": (earlier.host, settings.host),
        "--model": (earlier.model, settings.request.fields.model),
        "the manifest of --data": (earlier.data_sha256, data_sha256),
        "the loop": (earlier.loop, asdict(settings.loop) if settings.loop.rate is not None else {}),
    }
    values |= {name: (then, requested.get(name)) for name, then in earlier.asked.items()}
    for name, (then, now) in values.items():
        if then != now:
            raise InputError(f"--resume {folder}: {name} differs from that search: {then} then, {now} now")
    if earlier.answer is not None and not earlier.at_least:
        raise InputError(f"--resume {folder}: that search is already finished")
    return earlier.steps
