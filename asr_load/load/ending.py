"""The exit code of a process after its tests, and Locust's report."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from locust.env import Environment
from locust.html import get_html_report, process_html_filename
from locust.runners import Runner

from asr_load import signals
from asr_load.load.run_store import RunStore
from asr_load.report.page import add_section
from asr_load.results.pass_fail import IN_THE_ANSWER, Kind
from asr_load.results.runfile import read_run
from asr_load.results.summary import Summary


def exit_code(summary: Summary, runner: Runner, stopped_by: int = 0) -> int | None:
    """The exit code of a process whose last test had this summary.

    That is the verdict's, or that of the signal `stopped_by` if it ended the test before any request. None lets Locust
    decide, which knows of failures outside of tests, such as a crashed event listener.
    """
    assert summary.verdict is not None
    decided = summary.verdict.has(Kind.UNWRITTEN, *IN_THE_ANSWER)
    if stopped_by and not summary.requests.total and not decided:
        return signals.exit_code(stopped_by)
    # Locust's rows may count failures that the verdict does not, such as those during warm-up.
    judged = summary.verdict.exit_code or runner.errors or runner.exceptions
    return summary.verdict.exit_code if judged else None


def write_locust_report(
    environment: Environment, options: Namespace, store: RunStore | None, summary: Summary | None
) -> None:
    """Write Locust's HTML report with a section on streaming. Locust itself writes it before the streams have finished,
    and not at all on SIGTERM."""
    process_html_filename(options)
    report = get_html_report(environment, show_download_link=False)
    if store is not None and summary is not None:
        report = add_section(report, read_run(store.folder), summary, store.live, summary.validity)
    path = Path(options.html_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report, encoding="utf-8")
