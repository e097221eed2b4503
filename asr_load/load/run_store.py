"""Collect a test's records: in the only process of a test, or in the master of a fleet."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import gevent
import locust
import msgspec
import requests
import urllib3

from asr_load import __version__
from asr_load.http.server_info import ask_server
from asr_load.load.record_check import RecordCheck
from asr_load.load.server_watch import ServerWatch
from asr_load.load.target import Targets
from asr_load.options.table import OPTIONS
from asr_load.results.accuracy import Sample
from asr_load.results.earlier import earlier_runs
from asr_load.results.folders import RESULTS
from asr_load.results.live import DRAWN, REALTIME_DRAWN, Live
from asr_load.results.normalizers import Scoring
from asr_load.results.pass_fail import PassRules, Verdict, conclude
from asr_load.results.record_file import RECORDS, RecordFile
from asr_load.results.runfile import Invocation, OpenLoop, RunInfo, Speaking, WorkerInfo, option_fields, write_run
from asr_load.results.slo import Goodput, Slo
from asr_load.results.sound import lost_line
from asr_load.results.summary import Finished, Summary, read_finished, write_summary
from asr_load.results.verdict import Validity, judge_clients
from asr_load.settings.settings import Settings
from asr_load.stream.record import Record
from asr_load.text import count_of

logger = logging.getLogger(__name__)

OVERDUE_S = 15.0
"""Seconds without a report, which normally arrives every three seconds, after which a worker is not waited for."""


class RunStore:
    """The files of a test and its live view. `users` returns the current number of users; `refresh` is called once a
    second, before the live view completes a second."""

    def __init__(
        self,
        id: str,
        settings: Settings,
        targets: Targets,
        *,
        folder: Path,
        invocation: Invocation,
        users: Callable[[], int],
    ) -> None:
        self.id, self.folder, self._invocation = id, folder, invocation
        self._settings, self._targets, self._users = settings, targets, users
        self.file = RecordFile(folder / RECORDS)
        self._sent_before = earlier_runs(
            (folder.parent, RESULTS),
            settings.host,
            {target.shards.manifest_sha256 for target in targets.values() if target.settings.unique == "none"},
        )
        self._began = time.time()
        self._record_check = RecordCheck(targets.ids(), self._began)
        self._start_live(self._began)
        self.stages: list[tuple[float, str]] = []
        """Time of each change of the load, in seconds since the epoch, and the stage from then on."""
        self.finished: Finished | None = None
        """The content of the files, after the test."""
        self._workers: dict[int, WorkerInfo] = {}
        self._reported_at: dict[int, float] = {}
        self._arrived: Counter[int] = Counter()
        self.watch: Callable[[Record], None] = lambda _: None
        """Called with each record."""
        self.refresh: Callable[[], None] = lambda: None
        self.other_failures: Callable[[], int] = lambda: 0
        """Returns the failures of the locustfile's other requests that Locust counts, plus exceptions of users."""
        self.on_trouble: Callable[[], object] = lambda: None
        """Called once if records cannot be written."""
        self._has_trouble = False
        self._user_changes: list[tuple[float, int]] = []
        # From here on, even a killed process leaves a readable run.
        self._write()
        # The first poll precedes the first request.
        self._server_watch = ServerWatch(folder, settings.metrics_pages, settings.server_metrics_interval)
        self._ticker = gevent.spawn(self._tick)

    def show(self, records: Sequence[Record]) -> None:
        """Add written records, except those of the warm-up, to the live view."""
        for record in records:
            self._arrived[record.worker] += 1
            self.watch(record)
        if self.file.trouble and not self._has_trouble:
            self._has_trouble = True
            logger.error("%s cannot be written (%s): stopping the test", self.file.path, self.file.trouble)
            gevent.spawn(self.on_trouble)
        shown = [record for record in records if not record.warmup]
        self.live.add(shown, [record.end + self.offset(record.worker) for record in shown])

    def add_records(self, lines: Sequence[bytes], worker: WorkerInfo) -> None:
        """Write and show a worker's plausible records."""
        now, accepted = time.time(), []
        for line in lines:
            record = self._record_check.read(line, worker, now)
            if record is None:
                self._arrived[worker.worker] += 1
            else:
                self.file.write_line(line)
                accepted.append(record)
        self.show(accepted)

    def update_worker(self, worker: WorkerInfo) -> None:
        """Store a worker's latest report."""
        self._workers[worker.worker] = worker
        self._reported_at[worker.worker] = time.monotonic()

    def quiet_since(self, moment: float) -> bool:
        """Whether every process has reported, after a time of time.monotonic, that it has nothing in flight, and all
        its records have arrived. Ignores silent processes, and those that never took part."""
        now = time.monotonic()
        waited_for = (info for info in self.workers if info.health and now - self._reported_at[info.worker] < OVERDUE_S)
        return all(
            self._reported_at[info.worker] > moment and info.started == info.recorded == self._arrived[info.worker]
            for info in waited_for
        )

    def offset(self, worker: int) -> float:
        """Seconds to add to the times of a worker's records to get the master's."""
        info = self._workers.get(worker)
        return 0.0 if info is None else info.master_offset_s

    @property
    def slos(self) -> list[Slo]:
        return self._settings.slos

    @property
    def labels(self) -> tuple[str, str]:
        """The model and the API of the test, of its first user class if there are several."""
        request = self._targets.first.settings.request
        return request.fields.model, request.api.name

    @property
    def data_sha256(self) -> str:
        return self._targets.data_sha256

    @property
    def scoring(self) -> Scoring:
        return Scoring(self._targets.language, self._settings.normalizer, self._targets.in_parts)

    def drop_worker(self, worker: int) -> None:
        """Forget a worker that has never reported."""
        if worker in self._workers and self._workers[worker].health is None:
            del self._workers[worker]

    def mark_lost(self, worker: int) -> None:
        """Note that a worker has disconnected. It is lost unless it has sent its final report, or reconnects."""
        info = self._workers.get(worker)
        if info is not None and info.lost_at is None and not info.ended:
            self._workers[worker] = msgspec.structs.replace(info, lost_at=time.time())

    def enter_stage(self, name: str) -> None:
        """Note that the load enters a stage. Repeating the current stage changes nothing."""
        if not self.stages or self.stages[-1][1] != name:
            self.stages.append((time.time(), name))

    @property
    def workers(self) -> list[WorkerInfo]:
        """The latest reports of the processes that send load."""
        return [worker for _, worker in sorted(self._workers.items())]

    def validity(self) -> Validity:
        """The verdict on the load generator by the latest reports. A lost worker makes it suspect immediately."""
        validity, lost = judge_clients(self.workers), self.lost()
        if lost and validity.verdict == "valid":
            validity.verdict = "suspect"
        validity.reasons += lost
        return validity

    def lost(self) -> list[str]:
        """A line for each lost worker."""
        return [lost_line(worker, self._began) for worker in self.workers if worker.lost_at is not None]

    def verdict(self) -> Verdict | None:
        """The verdict on the test so far; None during a search."""
        settings, live = self._settings, self.live
        if settings.searching:
            return None
        return conclude(
            PassRules(settings.allow_client_bound, settings.allow_lost_workers, self._invocation.exit_code_on_error),
            live.slo_results(settings.slos),
            success=live.successes,
            failed=live.failures.total(),
            client_bound=judge_clients(self.workers).verdict == "client-bound",
            lost=[worker.worker for worker in self.workers if worker.lost_at is not None],
            other_failures=self.other_failures(),
            unwritten=self.file.trouble,
            running=True,
            realtime=settings.realtime is not None,
        )

    def close(self) -> Summary:
        """Write run.json, then summary.json from it and the records."""
        self._ticker.kill()
        ended_at = time.time()
        self._server_watch.stop()
        self.live.close(ended_at)
        self.file.close()
        if self.file.unwritten:
            logger.error("%s could not be written: %s", count_of(self.file.unwritten, "record"), self.file.trouble)
        if not self._invocation.server and any(worker.server for worker in self.workers):
            # Ask after the last stream, and only a server that names itself, because mocks may count requests.
            self._invocation.server = ask_server(
                self._settings.host, self._settings.headers, self._settings.intake, self._settings.transport
            )
        self._write(ended_at)
        self.finished = read_finished(self.folder)
        write_summary(self.folder, self.finished)
        return self.finished.summary

    def reset_live(self) -> None:
        """Start a new live view."""
        self._start_live(time.time())

    def _start_live(self, began: float) -> None:
        settings = self._settings
        goodput = Goodput(settings.goodput) if settings.goodput else None
        accuracy = Sample(self.scoring) if self._targets.has_references else None
        drawn = DRAWN if settings.realtime is None else REALTIME_DRAWN
        self.live = Live(began, drawn, goodput, accuracy, settings.slos)

    def _tick(self) -> None:
        while True:
            gevent.sleep(1.0)
            self.refresh()
            now, users = time.time(), self._users()
            if not self._user_changes or self._user_changes[-1][1] != users:
                self._user_changes.append((now, users))
            in_flight = sum(max(info.started - info.recorded, 0) for info in self.workers if info.lost_at is None)
            self.live.tick(now, users, in_flight, self._complete_until(now))

    def _complete_until(self, now: float) -> float:
        """The time, on this process's clock, until which all records have arrived. Ignores silent workers."""
        waited_for = (
            info
            for info in self.workers
            if not info.ended and info.lost_at is None and time.monotonic() - self._reported_at[info.worker] < OVERDUE_S
        )
        return min((self._reported_until(info) for info in waited_for), default=now)

    def _reported_until(self, worker: WorkerInfo) -> float:
        return self._began if worker.reported_until is None else worker.reported_until + worker.master_offset_s

    def _write(self, ended_at: float | None = None) -> None:
        write_run(self.folder, self.info(ended_at))

    def info(self, ended_at: float | None = None) -> RunInfo:
        """The content of run.json by what is known now. `ended_at`: the end of the test, if it has ended."""
        settings, system = self._settings, os.uname()
        first, shards = self._targets.first.settings, self._targets.first.shards
        return RunInfo(
            **msgspec.structs.asdict(self._invocation),
            id=self.id,
            version=__version__,
            began_at=self._began,
            ended=ended_at is not None,
            ended_at=ended_at,
            host=settings.host,
            **option_fields(first.in_effect, OPTIONS),
            realtime=msgspec.convert(first.realtime.to_dict() if first.realtime else {}, Speaking),
            sent_before=self._sent_before,
            timeouts={name: getattr(settings.timeouts, name) for name in ("connect", "stall", "total")},
            data_sha256=shards.manifest_sha256,
            data_clips=len(self._targets.first.chosen),
            language=self._targets.language,
            in_parts=self._targets.in_parts,
            user_classes=self._targets.info(),
            loop=msgspec.convert(asdict(settings.loop) if settings.loop.open else {}, OpenLoop),
            other_failures=0 if ended_at is None else self.other_failures(),
            unwritten=self.file.trouble,
            stages=self.stages,
            users=self._user_changes,
            workers=self.workers,
            refused=self._record_check.refused,
            python=platform.python_version(),
            platform=" ".join((system.sysname, system.release, system.machine)),
            packages={module.__name__: module.__version__ for module in (locust, gevent, requests, urllib3)},
        )
