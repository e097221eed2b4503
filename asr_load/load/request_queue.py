"""Hand out the requests of this process's share, each with its body: when a user is free, or when it is due."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from gevent.event import Event
from gevent.lock import BoundedSemaphore

from asr_load.apis.transcription_request import TranscriptionRequest
from asr_load.errors import InputError
from asr_load.http.failure import client_want
from asr_load.load.loop_monitor import yield_to_io
from asr_load.load.target import RequestSource
from asr_load.results.runfile import PUNCTUAL_S
from asr_load.schedule.arrivals import arrivals_of
from asr_load.schedule.loop import Stage
from asr_load.schedule.work import ArrivalCounts, Job, Turn, Work
from asr_load.settings.settings import Settings


class RequestQueue:
    """The requests of this process. `on_unbuilt` is called once with each request that this machine cannot build, and
    the reason."""

    def __init__(self, settings: Settings, turn: Turn, on_unbuilt: Callable[[TranscriptionRequest, str], None]) -> None:
        self._settings, self._on_unbuilt = settings, on_unbuilt
        self._open = settings.loop.open
        self._work = Work(
            turn,
            budget=settings.requests + settings.warmup_requests if settings.requests else 0,
            arrivals=arrivals_of(settings.loop),
        )
        self._began_ns = time.perf_counter_ns()
        self._may_begin, self._changed = Event(), Event()
        if not self._open:
            self._may_begin.set()
        self._has_begun = not self._open
        self._stopped_ns: int | None = None
        self._one_at_a_time = BoundedSemaphore(1)
        self._unbuilt: set[int] = set()
        """Numbers of requests that this machine could not build."""
        self.queued = 0
        """Number of requests that were due before a user was free."""

    @property
    def taken(self) -> int:
        """Number of requests that users took."""
        return self._work.taken

    @property
    def is_empty(self) -> bool:
        """Whether there is no request left, or none yet."""
        return self._work.peek() is None

    @property
    def is_stopped(self) -> bool:
        return self._stopped_ns is not None

    @property
    def elapsed(self) -> float:
        """Seconds since arrivals began; negative before."""
        return (time.perf_counter_ns() - self._began_ns) / 1e9

    def begin(self, at_ns: int) -> None:
        """Start an open loop's arrivals at a time in perf_counter nanoseconds."""
        self._began_ns, self._has_begun = at_ns, True
        self._may_begin.set()

    def reconsider(self) -> None:
        """Look again for the next request, which may have changed."""
        self._changed.set()

    def reschedule(self, stages: Sequence[Stage]) -> None:
        """Apply an announced rate, as stages from the beginning on."""
        self._work.reschedule(arrivals_of(self._settings.loop, stages))
        self.reconsider()

    def stop(self) -> None:
        """Hand out no more requests of an open loop. Arrivals from now on do not count."""
        if self._stopped_ns is None:
            self._stopped_ns = time.perf_counter_ns()
            self._may_begin.set()
            self._changed.set()

    def next(self, source: RequestSource, user: int) -> TranscriptionRequest | None:
        """Wait for the next request of a user with this source; None after the last one."""
        return self._next_due(source, user) if self._open else self._next_free(source, user)

    def _next_free(self, source: RequestSource, user: int) -> TranscriptionRequest | None:
        # Users whose streams end together would build requests together, and block the reads of all others for that
        # time. So build one at a time, each after the pending reads.
        with self._one_at_a_time:
            yield_to_io()
        while (job := self._work.peek()) is not None:
            clip = source.next_clip(job)
            self._take(job, source)
            if request := self._built(source, job, clip, user):
                return request
        return None

    def _next_due(self, source: RequestSource, user: int) -> TranscriptionRequest | None:
        # One free user waits for the next arrival, and the others wait for that user. So an arrival has no user until
        # it is due, and a change of the fleet can still assign it to another worker.
        queued = not self._one_at_a_time.locked()
        with self._one_at_a_time:
            self._may_begin.wait()
            while not self.is_stopped:
                self._changed.clear()
                job = self._work.peek()
                if job is None and not self._settings.searching:
                    break
                if job is None:  # the next stage is not announced yet
                    self._changed.wait()
                    continue
                # Build it before it is due, so that it can be sent on time.
                request = self._built(source, job, source.next_clip(job), user)
                wait_ns = (self._due_ns(job) or 0) - time.perf_counter_ns()
                if wait_ns > 0 and self._changed.wait(wait_ns / 1e9):
                    continue
                self._take(job, source)
                if request is None:
                    continue
                if queued and wait_ns < 0:
                    self.queued += 1
                    request = replace(request, queued=True)
                return request
            return None

    def _take(self, job: Job, source: RequestSource) -> None:
        self._work.take(job)
        source.take_clip()

    def _built(self, source: RequestSource, job: Job, clip: int, user: int) -> TranscriptionRequest | None:
        """Build a request; None if this machine cannot."""
        due = self._due_ns(job)
        since_ns = (due if due is not None else time.perf_counter_ns()) - self._began_ns
        warmup = job.seq < self._settings.warmup_requests or since_ns < self._settings.warmup_time * 1e9
        try:
            return source.request(job, clip, user=user, due=due, warmup=warmup)
        except (OSError, MemoryError, ValueError, InputError) as error:
            # An open loop may look at the same request again when its rate changes.
            if job.seq not in self._unbuilt:
                self._unbuilt.add(job.seq)
                why = client_want(error) or f"the clip cannot be read from --data: {error}"
                self._on_unbuilt(source.without_body(job, user=user, due=due, warmup=warmup), why)
            return None

    def _due_ns(self, job: Job) -> int | None:
        return None if job.due is None else self._began_ns + round(job.due * 1e9)

    def unsent(self) -> int:
        """Number of requests that were due before the end of the test and never taken."""
        if not self._has_begun:
            return 0
        # Ignore arrivals due just before the end, which a user was about to take.
        return self._work.waiting(self._arrivals_s() - PUNCTUAL_S)

    def arrivals(self) -> ArrivalCounts | None:
        """The fleet's arrivals so far; None in a closed loop, and before they began."""
        return self._work.arrivals_until(self._arrivals_s()) if self._has_begun else None

    def _arrivals_s(self) -> float:
        until = time.perf_counter_ns() if self._stopped_ns is None else self._stopped_ns
        return (until - self._began_ns) / 1e9
