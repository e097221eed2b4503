"""What a process leaves when its tests are over: its exit code and Locust's report."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from locust.env import Environment
from locust.html import get_html_report, process_html_filename

from asr_load.load.run_store import RunStore
from asr_load.results.capacity import Capacity
from asr_load.results.runfile import read_run
from asr_load.results.summary import Summary
from asr_load.web.report import add_section


def exit_code(summary: Summary, search: Capacity | None, *, unwritten: bool, allow_lost_workers: bool) -> int | None:
    """Of a process whose last test had this summary; None where Locust decides, by its own failures.

    SLOs decide where there are any; where one of them is on errors, single failures break nothing else.
    """
    if unwritten:
        return 2
    if summary.lost_workers and not allow_lost_workers:
        return 1
    if search is not None:
        return 2 if search.unknown else 0 if search.answer else 1
    if summary.passed is False or not summary.requests.success:
        return 1
    on_errors = any(result.name.startswith("errors:") for result in summary.slo)
    return 0 if summary.passed and on_errors else None


def write_locust_report(
    environment: Environment, options: Namespace, store: RunStore | None, summary: Summary | None
) -> None:
    """Locust's HTML report with a section on streaming. Locust writes its own before a test has come to rest, and
    on SIGTERM not at all."""
    process_html_filename(options)
    report = get_html_report(environment, show_download_link=False)
    if store is not None and summary is not None:
        report = add_section(report, read_run(store.folder), summary, store.live, summary.validity)
    path = Path(options.html_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report, encoding="utf-8")
