"""One process's part of a test: hands out requests, sends them, writes a record of each."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable

import gevent
from gevent.lock import BoundedSemaphore
from locust.env import Environment
from locust.exception import StopUser
from requests import Session

from asr_load.audio.payload import APIS, NO_DITHER, make_builder, new_dither
from asr_load.audio.shard import Shards
from asr_load.load import stats
from asr_load.load.clock import ClockOffset
from asr_load.load.exchange import Outgoing, Terms, exchange, request_headers
from asr_load.load.loop import LoopMonitor
from asr_load.load.options import Settings
from asr_load.load.readers import choose
from asr_load.load.tap import CompiledTaps
from asr_load.load.wire import Wire
from asr_load.load.work import Share, Work
from asr_load.results.calibration import read_calibration
from asr_load.results.runfile import ClientHealth, WorkerInfo
from asr_load.stream.record import Record, RecordFile

PAUSE_UNREACHABLE_S = 1.0
PUBLISH_EVERY_S = 0.05
PATIENCE_S = 0.005


class Run:
    """A test in this process, made at its start, when its settings and its data are checked.

    Each record is in `file` as soon as its stream is over; `show` gets it a moment later, when the streams leave time
    for it. `on_done` is called once, when all requests of this process's share have their records.
    """

    def __init__(
        self,
        environment: Environment,
        settings: Settings,
        shards: Shards,
        *,
        id: str,
        share: Share,
        file: RecordFile,
        show: Callable[[Record], None],
        on_done: Callable[[], None],
    ) -> None:
        self._environment, self._settings, self._shards = environment, settings, shards
        self._id, self._worker, self._file, self._show, self._on_done = id, share.worker, file, show, on_done
        self._work = Work(len(shards), settings.requests, settings.shuffle, settings.seed, share)
        self._build, content_type = make_builder(
            settings.api, settings.model, settings.prompt, settings.max_tokens, settings.extra_body
        )
        self._headers = {
            "Accept": "text/event-stream",
            # A compressed stream would reach us in blocks, not in tokens.
            "Accept-Encoding": "identity",
            "Content-Type": content_type,
            **settings.headers,
        }
        self._path = APIS[settings.api]
        self._reader, self._taps = choose(settings.reader)
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
        self._calibration = read_calibration(self._cores, self._reader)
        self._health: ClientHealth | None = None
        self._monitor = LoopMonitor(self._taps.lags if isinstance(self._taps, CompiledTaps) else None)
        self._monitor.start()
        epoch_ns = time.time_ns() - time.perf_counter_ns()
        self._terms = Terms(settings.limits, epoch_ns, settings.secrets)
        self.clock = ClockOffset()
        """This process's clock against the master's."""
        self._turn = BoundedSemaphore(1)
        self._unpublished: deque[Record] = deque()
        self._publisher = gevent.spawn(self._publish_slowly)
        self._done = False
        self._finished = self._users = self._connections = 0
        self._ended_at: float | None = None

    def now_ns(self) -> int:
        """This moment on the clock of the records' times, in nanoseconds since the epoch."""
        return time.perf_counter_ns() + self._terms.epoch_ns

    def add_user(self) -> int:
        """A number for a new user, unique in this process."""
        self._users += 1
        return self._users - 1

    def next_request(self, user: int) -> Outgoing:
        """The next request, its body built. Raises StopUser when all that was asked for is handed out."""
        # Users that end together would also build and send together, and hold up the reads of all others for the
        # sum of it. One at a time, each after the reads that are ready.
        with self._turn:
            _let_reads_go_first()
        job = self._work.next()
        if job is None:
            self._tell_when_done()  # a share can be empty from the start
            raise StopUser
        seq, number = job
        clip = self._shards[number]
        return Outgoing(
            url=self._settings.host + self._path,
            body=self._build(clip, new_dither() if self._settings.unique else NO_DITHER),
            headers=self._headers | request_headers(self._id, self._worker, seq, clip.id),
            clip=clip.id,
            reference=clip.text,
            audio_s=clip.duration_s,
            seq=seq,
            user=user,
            worker=self._worker,
        )

    def send(self, client: Session, wire: Wire, outgoing: Outgoing) -> Record:
        """Send a request, read its answer, write its record and fire its events."""
        wire.taps = self._taps
        before = wire.connections
        record, reraise = exchange(client, wire, outgoing, self._terms)
        self._connections += wire.connections - before
        self._file.write(record)
        self._ended_at = self.now_ns() / 1e9
        self._finished += 1
        self._unpublished.append(record)
        self._tell_when_done()
        if reraise is not None:
            raise reraise
        if record.outcome == "connect":
            # A server that is down is not to be asked a thousand times a second.
            gevent.sleep(PAUSE_UNREACHABLE_S)
        return record

    def _tell_when_done(self) -> None:
        if self._work.exhausted and self._finished == self._work.taken and not self._done:
            self._done = True
            self.end_watch()
            gevent.spawn(self._on_done)

    def _publish_slowly(self) -> None:
        """Show records, and let the streams have the loop after each: a record's gaps take Locust's listeners a quarter
        of a millisecond, and users that end together would make one stall of them all."""
        while True:
            gevent.sleep(PUBLISH_EVERY_S)
            while self._unpublished:
                self._publish(self._unpublished.popleft())
                _let_reads_go_first()

    def _publish(self, record: Record) -> None:
        self._show(record)
        stats.fire(self._environment, record, self._path)

    def report(self, ended: bool = False) -> WorkerInfo:
        """How this process is: over its last ten seconds while the test runs, else over all of it."""
        offset = self.clock.best
        return WorkerInfo(
            calibration=self._calibration,
            worker=self._worker,
            host=socket.gethostname(),
            reader=self._reader,
            cores=self._cores,
            users=self._users,
            connections=self._connections,
            started=self._work.taken,
            recorded=self._finished,
            ended_at=self._ended_at,
            clock_offset_s=self._terms.epoch_ns / 1e9,
            master_offset_s=offset.seconds if offset else 0.0,
            master_offset_error_s=offset.error if offset else None,
            ended=ended,
            health=self._health or self._monitor.recent(),
        )

    def end_watch(self) -> None:
        """End the watch over the client, once: taking a test down holds the loop for tens of ms, and when no stream is
        left to be timed that says nothing about the figures."""
        if self._health is None:
            self._health = self._monitor.stop()

    def close(self) -> WorkerInfo:
        """Show what is left to show, and return this process's last word."""
        self.end_watch()
        self._publisher.kill()
        while self._unpublished:
            self._publish(self._unpublished.popleft())
        return self.report(ended=True)


def _let_reads_go_first() -> None:
    """Wait until no socket has anything to read, or for 5 ms in a process that is always busy."""
    try:
        with gevent.Timeout(PATIENCE_S) as patience:
            gevent.idle()
    except gevent.Timeout as error:
        if error is not patience:
            raise
