"""One test from start to stop: hands out requests, takes records, leaves the files of a run."""

from __future__ import annotations

import platform
import secrets
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from locust.clients import HttpSession
from locust.env import Environment
from locust.exception import StopUser

from asr_load import __version__
from asr_load.audio.payload import APIS, NO_DITHER, make_builder, new_dither
from asr_load.audio.shard import Shards
from asr_load.load import stats
from asr_load.load.exchange import Outgoing, Terms, exchange, request_headers
from asr_load.load.loop import LoopMonitor
from asr_load.load.options import Settings
from asr_load.load.wire import Wire
from asr_load.load.work import Work
from asr_load.results.live import Live
from asr_load.results.runfile import ClientHealth, RunInfo, write_run
from asr_load.results.summary import Summary, summarise_folder
from asr_load.results.verdict import Validity, judge_client
from asr_load.stream.record import Record, RecordFile

WORKER = 0
"""This process's number. There is one; a fleet will have several."""

PAUSE_UNREACHABLE_S = 1.0
PUBLISH_EVERY_S = 0.05
PATIENCE_S = 0.005


class Run:
    """One test. Made at its start, when its settings and its data are checked; `on_done` is called once, when all
    the requests that were asked for have their records."""

    def __init__(
        self, environment: Environment, settings: Settings, shards: Shards, folder: Path, on_done: Callable[[], None]
    ) -> None:
        self.settings, self.folder = settings, folder
        self._environment, self._shards, self._on_done = environment, shards, on_done
        self._work = Work(len(shards), settings.requests, settings.shuffle, settings.seed)
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
        self.path = APIS[settings.api]
        self.id = secrets.token_hex(6)
        self._records = RecordFile(folder)
        self._health: ClientHealth | None = None
        self._monitor = LoopMonitor()
        self._monitor.start()
        epoch_ns = time.time_ns() - time.perf_counter_ns()
        self._terms = Terms(settings.limits, epoch_ns, settings.secrets)
        self._turn = BoundedSemaphore(1)
        self._unpublished: deque[Record] = deque()
        self.live = Live()
        self.stages: list[dict[str, Any]] = []
        """Where the load changed: `t` in seconds since the epoch, and `name`."""
        self._helpers = [gevent.spawn(self._publish_slowly), gevent.spawn(self._tick)]
        self._finished = 0
        self._users = 0
        self._connections = 0
        self._began = self._ended = self._ticked = self._now()

    def add_user(self) -> int:
        """A number for a new user."""
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
            raise StopUser
        seq, number = job
        clip = self._shards[number]
        return Outgoing(
            path=self.path,
            body=self._build(clip, new_dither() if self.settings.unique else NO_DITHER),
            headers=self._headers | request_headers(self.id, WORKER, seq, clip.id),
            clip=clip.id,
            reference=clip.text,
            audio_s=clip.duration_s,
            seq=seq,
            user=user,
            worker=WORKER,
        )

    def send(self, client: HttpSession, wire: Wire, outgoing: Outgoing) -> Record:
        """Send a request, read its answer, write its record and fire its events."""
        before = wire.connections
        record, reraise = exchange(client, wire, outgoing, self._terms)
        self._connections += wire.connections - before
        self._finish(record)
        if reraise is not None:
            raise reraise
        if record.outcome == "connect":
            # A server that is down is not to be asked a thousand times a second.
            gevent.sleep(PAUSE_UNREACHABLE_S)
        return record

    def _finish(self, record: Record) -> None:
        self._records.write(record)
        self._ended = self._now()
        self._finished += 1
        self._unpublished.append(record)
        if self._finished == self.settings.requests:
            self.end_watch()
            gevent.spawn(self._on_done)

    def _publish_slowly(self) -> None:
        """Fire the events of records, and let the streams have the loop after each: a record's gaps take Locust's
        listeners a quarter of a millisecond, and users that end together would make one stall of them all."""
        while True:
            gevent.sleep(PUBLISH_EVERY_S)
            while self._unpublished:
                self._publish(self._unpublished.popleft())
                _let_reads_go_first()

    def _publish(self, record: Record) -> None:
        self.live.add(record)
        stats.fire(self._environment, record, self.path)

    def _tick(self) -> None:
        while True:
            gevent.sleep(1.0)
            now = self._now()
            self.live.tick(now, now - self._ticked, self._user_count())
            self._ticked = now

    def enter_stage(self, name: str) -> None:
        """Note that the load is in this stage from now on; said again while it lasts, it changes nothing."""
        if not self.stages or self.stages[-1]["name"] != name:
            self.stages.append({"t": self._now(), "name": name})

    def _user_count(self) -> int:
        return 0 if self._environment.runner is None else self._environment.runner.user_count

    def validity(self) -> Validity:
        """The verdict on the client so far: on its last ten seconds while the test runs, else on all of it."""
        return judge_client(self._health or self._monitor.recent())

    def _now(self) -> float:
        """Seconds since the epoch on the clock of the records."""
        return (time.perf_counter_ns() + self._terms.epoch_ns) / 1e9

    def end_watch(self) -> ClientHealth:
        """End the watch over the client, once: taking a test down holds the loop for tens of ms, and when no stream is
        left to be timed that says nothing about the figures."""
        if self._health is None:
            self._health = self._monitor.stop()
        return self._health

    def close(self) -> Summary:
        """Write what is left to write: run.json, then summary.json from it and the records."""
        health = self.end_watch()
        self._records.close()
        gevent.killall(self._helpers)
        while self._unpublished:
            self._publish(self._unpublished.popleft())
        self.live.tick(self._now(), max(self._now() - self._ticked, 1e-3), self._user_count())
        settings = self.settings
        info = RunInfo(
            id=self.id,
            version=__version__,
            began_at=self._began,
            ended_at=self._ended if self._finished else self._now(),
            clock_offset_s=self._terms.epoch_ns / 1e9,
            host=_without_credentials(settings.host),
            api=settings.api,
            model=settings.model,
            prompt=settings.prompt,
            max_tokens=settings.max_tokens,
            requests=settings.requests,
            order="shuffle" if settings.shuffle else "sequential",
            seed=settings.seed,
            unique="dither" if settings.unique else "none",
            timeouts={name: getattr(settings.limits, name) for name in ("connect", "stall", "total")},
            header_names=sorted(settings.headers),
            extra_body_names=sorted(settings.extra_body),
            users=self._users,
            connections=self._connections,
            data=str(self._shards.folder),
            data_sha256=self._shards.manifest_sha256,
            data_clips=len(self._shards),
            language=self._shards.manifest.options.language,
            client=health,
            python=platform.python_version(),
            platform=platform.platform(),
            packages={name: version(name) for name in ("locust", "gevent", "requests", "urllib3")},
        )
        write_run(self.folder, info)
        return summarise_folder(self.folder)


def _let_reads_go_first() -> None:
    """Wait until no socket has anything to read, or for 5 ms in a process that is always busy."""
    try:
        with gevent.Timeout(PATIENCE_S) as patience:
            gevent.idle()
    except gevent.Timeout as error:
        if error is not patience:
            raise


def _without_credentials(host: str) -> str:
    scheme, _, rest = host.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
