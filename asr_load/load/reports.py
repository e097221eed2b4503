"""What a process reports after its tests: summaries, pages, Locust's reports and the exit code."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from pathlib import Path

import gevent
from locust.env import Environment
from locust.html import get_html_report, process_html_filename
from locust.runners import Runner, WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC

from asr_load import signals
from asr_load.errors import InputError
from asr_load.load import stats
from asr_load.load.master import Master
from asr_load.load.run_store import RunStore
from asr_load.load.solo import Solo
from asr_load.report.page import add_section, write_report
from asr_load.results.capacity import Capacity
from asr_load.results.pass_fail import IN_THE_ANSWER, Kind
from asr_load.results.record_file import read_records
from asr_load.results.runfile import RunInfo, read_run
from asr_load.results.summary import Summary
from asr_load.shipped import command

logger = logging.getLogger(__name__)


class Reports:
    """The reports of the tests of an environment."""

    def __init__(self, environment: Environment, options: Namespace, runner: Runner) -> None:
        self._environment, self._options, self._runner = environment, options, runner
        self._store: RunStore | None = None
        """The store of the last test."""
        self._summary: Summary | None = None
        """The summary of the last test."""
        self._info: RunInfo | None = None
        """The options and processes of the last test."""
        self._is_printed = True
        self.capacity: Capacity | None = None
        """The result of the last search."""

    def end_test(self, role: Solo | Master) -> None:
        """End a test, and write its files. Errors are logged and set the exit code."""
        store = self._store = role.store
        try:
            self._summary = role.stop()
        except (OSError, InputError) as error:
            logger.error("the run cannot be written to %s: %s", store.folder, error)
            self._environment.process_exit_code = 2
            if store.finished is None:
                return
            self._summary = store.finished.summary  # it can still be printed
        self._is_printed = False
        self._write_page(store)
        self._update_index(store.folder.parent)
        logger.info("records, run.json, summary.json and report.html are in %s", store.folder)
        if self._environment.web_ui is not None:
            self.print()

    def _write_page(self, store: RunStore) -> None:
        """Write report.html. An error here is logged; the other files are already complete."""
        finished, store.finished = store.finished, None
        self._info = None if finished is None else finished.info
        try:
            if finished is not None:
                write_report(store.folder, finished)
        except OSError as error:
            logger.error("report.html was not written: %s", error)
            self._environment.process_exit_code = 2
        except Exception:
            logger.exception("report.html was not written; to try again: %s %s", command("report"), store.folder)
            self._environment.process_exit_code = 2

    def _update_index(self, results: Path) -> None:
        """List the test in results/index.html. An error here is only logged: the test's own files are complete."""
        from asr_load.report.runs import update_index

        try:
            update_index(results)
        except OSError as error:
            logger.warning("%s/index.html was not written: %s", results, error)
        except Exception:
            logger.exception("%s/index.html was not written; to try again: asr-load list %s", results, results)

    def print(self) -> None:
        """Print the summary of the last test, or the answer of a search, if they are not printed yet."""
        from asr_load.report.capacity import print_search
        from asr_load.report.summary import print_summary

        if self._is_printed or self._store is None or self._summary is None or self._info is None:
            return
        self._is_printed = True
        # With --json, standard output must contain only Locust's JSON.
        file, folder = sys.stderr if self._options.json else sys.stdout, self._store.folder
        if self.capacity is not None:
            print_search(folder, self._info, self._summary, self.capacity, file)
        else:
            print_summary(folder, self._info, self._summary, read_records(folder), file)

    def complete(self, stopped_by: int, *, took_part: bool) -> None:
        """Set the exit code after the last test, and prepare Locust's reports, which then include all requests.

        `stopped_by` is the signal that ended this process, or 0; `took_part` means that a test had begun.
        """
        environment, options = self._environment, self._options
        if environment.process_exit_code is None:
            if stopped_by and not took_part:
                environment.process_exit_code = signals.exit_code(stopped_by)
            elif self._summary is not None:
                environment.process_exit_code = exit_code(self._summary, self._runner, stopped_by)
        if isinstance(self._runner, WorkerRunner):
            return
        stats.keep_entries_when_serialised(environment)
        if options.csv_prefix:
            # Locust writes its CSV files once a second, but not after the last request: wait for that.
            gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.1)
        if options.html_file:
            self._write_locust_report()

    def _write_locust_report(self) -> None:
        """Write Locust's HTML report with a section on streaming. Locust itself writes it before the streams have
        finished, and not at all on SIGTERM."""
        process_html_filename(self._options)
        report = get_html_report(self._environment, show_download_link=False)
        if not self._is_printed and self._store is not None and self._summary is not None:
            run = read_run(self._store.folder)
            report = add_section(report, run, self._summary, self._store.live, self._summary.validity)
        path = Path(self._options.html_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report, encoding="utf-8")


def exit_code(summary: Summary, runner: Runner, stopped_by: int = 0) -> int | None:
    """The exit code of a process whose last test had this summary.

    That is the verdict's, or that of the signal `stopped_by` if it ended the test before any request. None lets Locust
    decide, which knows of failures outside of tests, such as a crashed event listener.
    """
    verdict = summary.verdict
    assert verdict is not None
    if stopped_by and not summary.requests.total and not verdict.has(Kind.UNWRITTEN, *IN_THE_ANSWER):
        return signals.exit_code(stopped_by)
    # Locust's rows may count failures that the verdict does not, such as those during warm-up.
    judged = verdict.exit_code or runner.errors or runner.exceptions
    return verdict.exit_code if judged else None
