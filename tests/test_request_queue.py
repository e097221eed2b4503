"""The queue of a process's requests: order, budget, due times, and requests that cannot be built."""

from __future__ import annotations

import time
from typing import Any, cast

import gevent

from asr_load.apis.transcription_request import TranscriptionRequest
from asr_load.load.request_queue import RequestQueue
from asr_load.load.target import RequestSource
from asr_load.schedule.work import SOLE, Job, Share
from harness.options import settings
from harness.patience import PATIENCE_S


class Source:
    """Builds requests without a data set, except those of `missing` clips."""

    def __init__(self, missing: set[int] | None = None) -> None:
        self.taken, self._missing = 0, missing or set()

    def next_clip(self, job: Job) -> int:
        return job.seq

    def take_clip(self) -> None:
        self.taken += 1

    def request(self, job: Job, clip: int, *, user: int, due: int | None, warmup: bool) -> TranscriptionRequest:
        if clip in self._missing:
            raise OSError("no such clip")
        return self.without_body(job, user=user, due=due, warmup=warmup)

    def without_body(self, job: Job, *, user: int, due: int | None, warmup: bool) -> TranscriptionRequest:
        return TranscriptionRequest("http://h", [], {}, "", "", 0.0, job.seq, user, 0, due=due, warmup=warmup)


class Queue:
    """A queue, and what it reported about requests that were not built."""

    def __init__(self, *words: str, missing: set[int] | None = None, share: Share = SOLE) -> None:
        self.unbuilt: list[tuple[int, str]] = []
        self.source = Source(missing)
        self.queue = RequestQueue(settings(*words), share.next, lambda one, why: self.unbuilt.append((one.seq, why)))

    def next(self, user: int = 0) -> TranscriptionRequest | None:
        with gevent.Timeout(PATIENCE_S):
            return self.queue.next(cast(RequestSource, self.source), user)

    def rest(self) -> list[TranscriptionRequest]:
        return list(iter(self.next, None))


def test_share_of_a_budget_is_handed_out_in_order() -> None:
    made = Queue("--requests", "5", "--warmup-requests", "1", share=Share(1, 2))
    assert [(one.seq, one.warmup, one.due) for one in made.rest()] == [
        (1, False, None),
        (3, False, None),
        (5, False, None),
    ]
    assert made.queue.is_empty
    assert (made.queue.taken, made.source.taken, made.queue.unsent(), made.queue.arrivals()) == (3, 3, 0, None)


def test_request_that_cannot_be_built_is_reported_and_skipped() -> None:
    made = Queue("--requests", "4", missing={1, 2})
    assert [one.seq for one in made.rest()] == [0, 3]
    assert made.unbuilt == [(number, "the clip cannot be read from --data: no such clip") for number in (1, 2)]
    assert made.queue.taken == 4


def test_open_loop_hands_out_a_request_when_it_is_due() -> None:
    made = Queue("--requests", "3", "--request-rate", "1000", "--arrivals", "constant")
    assert made.queue.arrivals() is None
    began = time.perf_counter_ns() + 20_000_000
    made.queue.begin(began)
    requests = []
    while (request := made.next()) is not None:
        assert request.due is not None
        assert time.perf_counter_ns() >= request.due >= began
        requests.append(request)
    assert [one.seq for one in requests] == [0, 1, 2]
    made.queue.stop()
    arrivals: Any = made.queue.arrivals()
    assert arrivals.due == 3


def test_stopped_open_loop_wakes_a_waiting_user() -> None:
    made = Queue("--request-rate", "1")
    waiting = gevent.spawn(made.next)
    gevent.sleep(0)
    made.queue.stop()
    assert waiting.get(timeout=PATIENCE_S) is None
    assert made.queue.is_stopped
    assert made.queue.unsent() == 0
