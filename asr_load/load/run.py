"""The part of a test in one process: its users send requests and write a record of each."""

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
from locust.exception import StopUser
from locust.runners import STATE_RUNNING, Runner
from requests import Session

from asr_load.apis.transcription_request import TranscriptionRequest, request_headers
from asr_load.http.attempt import ExchangeConfig, never_sent
from asr_load.http.connection import PAUSE_S, SharedState, UserConnection
from asr_load.http.self_check import Reader
from asr_load.http.socket_reader import CompiledReaders
from asr_load.load.loop_monitor import LoopMonitor
from asr_load.load.publisher import Publisher
from asr_load.load.request_queue import RequestQueue
from asr_load.load.target import RequestSource, Targets
from asr_load.realtime.pacer import Playback
from asr_load.realtime.utterance import transmit
from asr_load.results.calibration import read_calibration
from asr_load.results.record_file import RecordFile
from asr_load.results.runfile import PUNCTUAL_S, WorkerInfo
from asr_load.schedule.loop import Stage
from asr_load.schedule.work import Share, Turn
from asr_load.settings.settings import Settings
from asr_load.stream.record import Record

logger = logging.getLogger(__name__)


class Run:
    """A test in this process, made after its settings and data are checked.

    Each record is in `file` as soon as its stream ends. A moment later, when the streams leave time for it, `show` gets
    it with others and their lines. `on_done` is called once, when all requests of this process's share have records.
    """

    def __init__(
        self,
        runner: Runner,
        settings: Settings,
        targets: Targets,
        *,
        share: Share,
        turn: Turn,
        reader: Reader,
        id: str,
        file: RecordFile,
        show: Callable[[list[Record], list[bytes]], None],
        on_done: Callable[[], None],
    ) -> None:
        self._runner, self._settings = runner, settings
        self._id, self._worker, self._file, self._on_done = id, share.worker, file, on_done
        self._drains = bool(runner.environment.stop_timeout)
        self._sources = {
            name: RequestSource(name, target, id=id, worker=share.worker, of=share.of, alone=not targets.several)
            for name, target in targets.items()
        }
        self._source_of: list[RequestSource] = []
        """The source of each user's requests, by the user's number."""
        self.queue = RequestQueue(settings, turn, self._note_unbuilt)
        self._reader, self._reader_factory = reader
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
        self._calibration = read_calibration(self._cores, self._reader)
        epoch_ns = time.time_ns() - time.perf_counter_ns()
        self._config = ExchangeConfig(
            settings.timeouts, epoch_ns, settings.intake, settings.transport, settings.keep_connections
        )
        self.playback = Playback()
        compiled = self._reader_factory if isinstance(self._reader_factory, CompiledReaders) else None
        self._nice = compiled.nice if compiled else 0
        self._monitor = LoopMonitor(compiled.lags if compiled else None, epoch_ns / 1e9)
        self._publisher = Publisher(runner.environment, targets, show)
        self._shared = SharedState(share.worker)
        self._stopping = Event()
        self._unsent: dict[int, dict[int, TranscriptionRequest]] = {}
        """Requests that users took but have not started to send, by user and number."""
        self._late = self._resent = self._recorded = self._alive = 0
        self._settled = 0
        """Number of requests that were sent, including their retries, or given up."""
        self._is_done = False
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
        if ended.exception is not None and not self._alive and self._runner.state == STATE_RUNNING:
            # Locust continues after an Exception of a task. But a gevent.Timeout, for example, ends the user.
            logger.error("no user is left: exceptions in the locustfile have ended all of them")
            self._tell_when_done(nobody_left=True)

    def reconsider(self) -> None:
        """Look again for the next request, which may have changed."""
        self._is_done = False
        self.queue.reconsider()

    def reschedule(self, stages: Sequence[Stage]) -> None:
        """Apply an announced rate, as stages from the beginning on."""
        self._is_done = False
        self.queue.reschedule(stages)

    def next_request(self, user: int) -> TranscriptionRequest:
        """The next request, with its body; an open loop waits until it is due. Raises StopUser after the last one."""
        request = self.queue.next(self._source_of[user], user)
        if request is None:
            self._give_up(user)
            self._tell_when_done()  # a share can be empty
            raise StopUser
        self._unsent.setdefault(user, {})[request.seq] = request
        return request

    def _note_unbuilt(self, request: TranscriptionRequest, why: str) -> None:
        self._note(never_sent(request, self._config, "client", why))
        self._settled += 1
        self._stopping.wait(PAUSE_S)

    def send(self, client: Session, user_connection: UserConnection, request: TranscriptionRequest) -> Record:
        """Send a request, read its response, write its record and fire its events. An exception of the user's code
        meanwhile, such as a gevent.Timeout, is reraised after that."""
        user_connection.reader_factory, user_connection.shared = self._reader_factory, self._shared
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
        self._recorded += 1
        self._publisher.add(record, line)
        self._tell_when_done()

    def _give_up(self, user: int) -> None:
        """Note records of requests that a user took and will not send."""
        for request in self._unsent.pop(user, {}).values():
            self._settled += 1
            if not self.queue.is_stopped:
                outcome, why = "client", "never sent, because the locustfile raised an exception before that"
            else:
                outcome, why = "unfinished", "cut off by the end of the test before it was sent"
            self._note(never_sent(request, self._config, outcome, why))

    def _tell_when_done(self, *, nobody_left: bool = False) -> None:
        all_settled = self._settled == self.queue.taken and (nobody_left or self.queue.is_empty)
        if all_settled and not self._is_done and not self._settings.searching:
            self._is_done = True
            # Ending the monitor blocks the loop for tens of ms, which affects no measurement because no stream is left.
            self._monitor.stop()
            gevent.spawn(self._on_done)

    def report(self, ended: bool = False) -> WorkerInfo:
        """The state of this process, with an unknown offset of its clock. Its health covers the last ten seconds while
        the test runs, then all of it."""
        unshown = self._publisher.oldest
        return WorkerInfo(
            calibration=self._calibration,
            worker=self._worker,
            host=socket.gethostname(),
            reader=self._reader,
            cores=self._cores,
            users=len(self._source_of),
            connections=self._shared.count,
            connections_dropped=self._shared.dropped,
            server=self._shared.server or "",
            reader_nice=self._nice,
            connecting_s=self._shared.total_s,
            connecting_max_s=self._shared.longest_s,
            started=self.queue.taken,
            queued=self.queue.queued,
            late=self._late,
            unsent=self.queue.unsent() if ended else 0,
            recorded=self._recorded,
            ended_at=self._ended_at,
            # All records that ended before the first unpublished one are published.
            reported_until=unshown.end if unshown else self.now_ns() / 1e9,
            arrivals=self.queue.arrivals() if ended else None,
            clock_offset_s=self._config.epoch_ns / 1e9,
            master_offset_s=0.0,
            master_offset_error_s=None,
            ended=ended,
            health=self._monitor.health(),
        )

    def stopping(self) -> None:
        """Note that the test is stopping: arrivals from now on do not count."""
        self.queue.stop()
        self._stopping.set()
        if not self._drains:
            self._monitor.stop()

    def close(self) -> WorkerInfo:
        """Publish the remaining records, and return this process's final report."""
        self._monitor.stop()
        for user in list(self._unsent):
            self._give_up(user)
        self._publisher.close()
        return self.report(ended=True)
