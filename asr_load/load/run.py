"""The part of a test in one process: hands out requests, sends them, and writes a record of each."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import STATE_RUNNING
from requests import Session

from asr_load.apis.request import TranscriptionRequest, request_headers
from asr_load.errors import InputError
from asr_load.http.attempt import ExchangeConfig, never_sent
from asr_load.http.connection import PAUSE_S, Connections, UserConnection
from asr_load.http.failure import client_want
from asr_load.http.self_check import Reader
from asr_load.http.socket_reader import CompiledReaders
from asr_load.load.clock import ClockOffset
from asr_load.load.loop_monitor import LoopMonitor, yield_to_io
from asr_load.load.publisher import Publisher
from asr_load.load.target import RequestSource, Targets
from asr_load.realtime.pacer import Playback
from asr_load.realtime.utterance import transmit
from asr_load.results.calibration import read_calibration
from asr_load.results.runfile import PUNCTUAL_S, WorkerInfo
from asr_load.schedule.arrivals import Stage
from asr_load.schedule.work import Job, Turn, Work
from asr_load.settings.settings import Settings
from asr_load.stream.record import Record, RecordFile

logger = logging.getLogger(__name__)


class Run:
    """A test in this process, made after its settings and data are checked.

    Each record is in `file` as soon as its stream ends. A moment later, when the streams leave time for it, `show` gets
    it with others and their lines. `on_done` is called once, when all requests of this process's share have records.
    """

    def __init__(
        self,
        environment: Environment,
        settings: Settings,
        targets: Targets,
        *,
        reader: Reader,
        id: str,
        worker: int,
        of: int,
        turn: Turn,
        file: RecordFile,
        show: Callable[[list[Record], list[bytes]], None],
        on_done: Callable[[], None],
    ) -> None:
        self._environment, self._settings = environment, settings
        self._id, self._worker, self._file, self._on_done = id, worker, file, on_done
        self._open = settings.loop.open
        self._work = Work(
            turn,
            budget=settings.requests + settings.warmup_requests if settings.requests else 0,
            arrivals=settings.loop.make(),
        )
        self._began = time.perf_counter_ns()
        self._may_begin, self._changed, self._stopping = Event(), Event(), Event()
        if not self._open:
            self._may_begin.set()
        self._has_begun = not self._open
        self._queued = self._late = 0
        self._stopped_at: int | None = None
        self._sources = {
            name: RequestSource(name, target, id=id, worker=worker, of=of, alone=not targets.several)
            for name, target in targets.items()
        }
        self._source_of: list[RequestSource] = []
        """The source of each user's requests, by the user's number."""
        self._reader, self._reader_factory = reader
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
        self._calibration = read_calibration(self._cores, self._reader)
        epoch_ns = time.time_ns() - time.perf_counter_ns()
        self._monitor = LoopMonitor(
            self._reader_factory.lags if isinstance(self._reader_factory, CompiledReaders) else None, epoch_ns / 1e9
        )
        self._config = ExchangeConfig(
            settings.timeouts,
            epoch_ns,
            settings.intake,
            settings.transport,
            settings.keep_connections,
        )
        self.playback = Playback()
        self.clock = ClockOffset()
        """The offset of this process's clock from the master's."""
        self._turn = BoundedSemaphore(1)
        self._publisher = Publisher(environment, targets, show)
        self._done = False
        self._unbuilt: set[int] = set()
        """Numbers of requests that this machine could not build."""
        self._unsent: dict[int, dict[int, TranscriptionRequest]] = {}
        """Requests that users took but have not started to send, by user and number."""
        self._resent = 0
        self._settled = 0
        """Number of requests that were sent, including their retries, or given up."""
        self._finished = self._alive = 0
        self._connections = Connections(worker)
        self._ended_at: float | None = None

    def start(self) -> None:
        """Start monitoring this process and publishing records."""
        self._monitor.start()
        self._publisher.start()

    def now_ns(self) -> int:
        """The current time on the clock of the records, in nanoseconds since the epoch."""
        return time.perf_counter_ns() + self._config.epoch_ns

    def add_user(self, user_class: str, connection: UserConnection | None = None) -> int:
        """Register a user of a class. Returns its number, which is unique in this process.

        Call it in the user's greenlet. When that ends, requests that the user took but did not send get their records,
        and a realtime session kept on its connection is closed.
        """
        user = len(self._source_of)
        self._source_of.append(self._sources[user_class])
        greenlet = gevent.getcurrent()
        if isinstance(greenlet, gevent.Greenlet):
            self._alive += 1
            greenlet.link(lambda ended: self._leave(user, ended))
            if connection is not None:
                greenlet.link(lambda _: connection.session and gevent.spawn(connection.session.close))
        return user

    def _leave(self, user: int, ended: gevent.Greenlet[..., Any]) -> None:
        self._give_up(user)
        self._alive -= 1
        runner = self._environment.runner
        if ended.exception is not None and not self._alive and runner is not None and runner.state == STATE_RUNNING:
            # Locust continues after an Exception of a task. But a gevent.Timeout, for example, ends the user.
            logger.error("no user is left: exceptions in the locustfile have ended all of them")
            self._tell_when_done(nobody_left=True)

    def begin(self, at: int) -> None:
        """Start an open loop's arrivals at a time in perf_counter nanoseconds."""
        self._began, self._has_begun = at, True
        self._may_begin.set()

    def reconsider(self) -> None:
        """Look again for the next request, which may have changed."""
        self._done = False
        self._changed.set()

    def reschedule(self, stages: Sequence[Stage]) -> None:
        """Apply an announced rate, as stages from the beginning on."""
        self._work.reschedule(self._settings.loop.make(stages))
        self.reconsider()

    @property
    def elapsed(self) -> float:
        """Seconds since arrivals began; negative before."""
        return (time.perf_counter_ns() - self._began) / 1e9

    def next_request(self, user: int) -> TranscriptionRequest:
        """The next request, with its body; an open loop waits until it is due. Raises StopUser after the last one."""
        request = self._next_due(user) if self._open else self._next_free(user)
        if request is None:
            self._give_up(user)
            self._tell_when_done()  # a share can be empty
            raise StopUser
        self._unsent.setdefault(user, {})[request.seq] = request
        return request

    def _next_free(self, user: int) -> TranscriptionRequest | None:
        # Users whose streams end together would build requests together, and block the reads of all others for that
        # time. So build one at a time, each after the pending reads.
        with self._turn:
            yield_to_io()
        while (job := self._work.peek()) is not None:
            clip = self._source_of[user].next_clip(job)
            self._take(job, user)
            if request := self._built(job, clip, user):
                return request
        return None

    def _take(self, job: Job, user: int) -> None:
        self._work.take(job)
        self._source_of[user].take_clip()

    def _next_due(self, user: int) -> TranscriptionRequest | None:
        # One free user waits for the next arrival, and the others wait for that user. So an arrival has no user until
        # it is due, and a change of the fleet can still assign it to another worker.
        queued = not self._turn.locked()
        with self._turn:
            self._may_begin.wait()
            while self._stopped_at is None:
                self._changed.clear()
                job = self._work.peek()
                if job is None and not self._settings.searching:
                    break
                if job is None:  # the next stage is not announced yet
                    self._changed.wait()
                    continue
                # Build it before it is due, so that it can be sent on time.
                request = self._built(job, self._source_of[user].next_clip(job), user)
                due = self._due(job)
                assert due is not None
                wait = due - time.perf_counter_ns()
                if wait > 0 and self._changed.wait(wait / 1e9):
                    continue
                self._take(job, user)
                if request is None:
                    continue
                if queued and wait < 0:
                    self._queued += 1
                    request = replace(request, queued=True)
                return request
            return None

    def _built(self, job: Job, clip: int, user: int) -> TranscriptionRequest | None:
        """Build a request. If this machine cannot build it, notes a record and returns None."""
        source, due = self._source_of[user], self._due(job)
        since = (due if due is not None else time.perf_counter_ns()) - self._began
        warmup = job.seq < self._settings.warmup_requests or since < self._settings.warmup_time * 1e9
        try:
            return source.request(job, clip, user=user, due=due, warmup=warmup)
        except (OSError, MemoryError, ValueError, InputError) as error:
            # Note each request once, because an open loop may look at the same one again when its rate changes.
            if job.seq not in self._unbuilt:
                self._unbuilt.add(job.seq)
                why = client_want(error) or f"the clip cannot be read from --data: {error}"
                unbuilt = source.without_body(job, user=user, due=due, warmup=warmup)
                self._note(never_sent(unbuilt, self._config, "client", why))
                self._settled += 1
                self._stopping.wait(PAUSE_S)
            return None

    def _due(self, job: Job) -> int | None:
        return None if job.due is None else self._began + round(job.due * 1e9)

    def send(self, client: Session, user_connection: UserConnection, request: TranscriptionRequest) -> Record:
        """Send a request, read its response, write its record and fire its events. An exception of the user's code
        meanwhile, such as a gevent.Timeout, is reraised after that."""
        user_connection.reader_factory, user_connection.connections = self._reader_factory, self._connections
        is_first = self._unsent.get(request.user, {}).pop(request.seq, None) is not None
        if not is_first:
            request = self._resend(request)
        first, left = request.seq, self._settings.retries
        try:
            while True:
                record, reraise = transmit(client, user_connection, request, self._config, self.playback)
                if record.lag is not None and record.lag - record.retry_s > PUNCTUAL_S and not request.queued:
                    self._late += 1
                # Before the wait, during which the user may be killed.
                self._note(record)
                if not (left and user_connection.may_retry) or self._stopping.wait(user_connection.pause_s):
                    break
                left -= 1
                request = self._resend(replace(request, retry_of=first, due=None))
        finally:
            self._settled += is_first
            self._tell_when_done()
        if reraise is not None:
            raise reraise
        # Pause, so that a server that is down or busy does not get thousands of requests a second.
        if user_connection.pause_s:
            self._stopping.wait(user_connection.pause_s)
        return record

    def _resend(self, request: TranscriptionRequest) -> TranscriptionRequest:
        """Copy a request to send it again, with a negative number, which is in no worker's share."""
        self._resent += 1
        headers = request_headers(self._id, self._worker, -self._resent, request.clip)
        return replace(request, seq=-self._resent, own_headers=headers)

    def _note(self, record: Record) -> None:
        line = self._file.write(record)
        self._ended_at = self.now_ns() / 1e9
        self._finished += 1
        self._publisher.add(record, line)
        self._tell_when_done()

    def _give_up(self, user: int) -> None:
        """Note records of requests that a user took and will not send."""
        for request in self._unsent.pop(user, {}).values():
            self._settled += 1
            if self._stopped_at is None:
                outcome, why = "client", "never sent, because the locustfile raised an exception before that"
            else:
                outcome, why = "unfinished", "cut off by the end of the test before it was sent"
            self._note(never_sent(request, self._config, outcome, why))

    def _tell_when_done(self, *, nobody_left: bool = False) -> None:
        if (
            not self._settings.searching
            and not self._done
            and self._settled == self._work.taken
            and (nobody_left or self._work.peek() is None)
        ):
            self._done = True
            self.end_watch()
            gevent.spawn(self._on_done)

    def report(self, ended: bool = False) -> WorkerInfo:
        """The state of this process. Its health covers the last ten seconds while the test runs, then all of it."""
        offset, unshown = self.clock.best, self._publisher.oldest
        return WorkerInfo(
            calibration=self._calibration,
            worker=self._worker,
            host=socket.gethostname(),
            reader=self._reader,
            cores=self._cores,
            users=len(self._source_of),
            connections=self._connections.count,
            connections_dropped=self._connections.dropped,
            server=self._connections.server or "",
            reader_nice=self._reader_factory.nice if isinstance(self._reader_factory, CompiledReaders) else 0,
            connecting_s=self._connections.total_s,
            connecting_max_s=self._connections.longest_s,
            started=self._work.taken,
            queued=self._queued,
            late=self._late,
            unsent=self._missed() if ended else 0,
            recorded=self._finished,
            ended_at=self._ended_at,
            # All records that ended before the first unpublished one are published.
            reported_until=unshown.end if unshown else self.now_ns() / 1e9,
            arrivals=self._work.arrivals_until(self._arrivals_s()) if ended and self._has_begun else None,
            clock_offset_s=self._config.epoch_ns / 1e9,
            master_offset_s=offset.seconds if offset else 0.0,
            master_offset_error_s=offset.error if offset else None,
            ended=ended,
            health=self._monitor.health(),
        )

    def stopping(self) -> None:
        """Note that the test is stopping: arrivals from now on do not count."""
        if self._stopped_at is None:
            self._stopped_at = time.perf_counter_ns()
            self._may_begin.set()
            self._changed.set()
            self._stopping.set()

    def _missed(self) -> int:
        if not self._has_begun:
            return 0
        # Ignore arrivals due just before the end, which a user was about to take.
        return self._work.waiting(self._arrivals_s() - PUNCTUAL_S)

    def _arrivals_s(self) -> float:
        until = time.perf_counter_ns() if self._stopped_at is None else self._stopped_at
        return (until - self._began) / 1e9

    def end_watch(self) -> None:
        """Stop monitoring. Ending a test blocks the loop for tens of ms, which affects no measurement because no stream
        is left."""
        self._monitor.stop()

    def close(self) -> WorkerInfo:
        """Publish the remaining records, and return this process's final report."""
        self.end_watch()
        for user in list(self._unsent):
            self._give_up(user)
        self._publisher.close()
        return self.report(ended=True)
