"""Locust's web UI in a real browser, for its tests and for the pictures of the documentation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError

from harness.patience import PATIENCE_S
from harness.ports import free_port
from harness.serving import ending, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent.parent
QUIET = ("background-networking", "component-update", "sync", "quic", "gpu")
FLAGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{service}" for service in QUIET)]


def chromium() -> str | None:
    """The path of the installed browser, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright  # late: short tests import this module without Playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield running
        finally:
            running.close()


class Locust:
    """A `locust` process with its web UI."""

    def __init__(self, url: str, log: Path, pid: int) -> None:
        self.url, self._log, self.pid = url, log, pid

    @property
    def said(self) -> str:
        """Its standard output and standard error so far."""
        return self._log.read_text(errors="replace")


@contextmanager
def locust(*words: str | Path, **env: str) -> Iterator[Locust]:
    """Start Locust's web UI on a free port with these options, and end it with the block."""
    port = free_port()
    command = [sys.executable, "-m", "locust", "--web-port", str(port), *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            patched = {**os.environ, "LOCUST_SKIP_MONKEY_PATCH": "", **env}
            process = subprocess.Popen(command, cwd=ROOT, env=patched, stdout=file, stderr=file)
        with ending(process):
            running = Locust(f"http://127.0.0.1:{port}/", log, process.pid)
            wait_until(lambda: _answers(running.url) or process.poll() is not None, "the web UI")
            assert process.poll() is None, running.said
            yield running


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            return bool(response.status == 200)
    except HTTPError as error:
        error.close()
        return True  # the UI is under a base path
    except URLError:
        return False


def start_test(page: Page, users: int, ramp: int, **fields: str) -> None:
    """Fill in the form that starts a test, including custom parameters by name, and start it."""
    page.locator('input[name="userCount"]').fill(str(users))
    page.locator('input[name="spawnRate"]').fill(str(ramp))
    custom = page.get_by_role("button", name="Custom parameters")
    if fields and custom.get_attribute("aria-expanded") != "true":
        custom.click()
    for name, value in fields.items():
        first, *more = name.split("_")
        field = page.locator(f'[name="{first}{"".join(map(str.capitalize, more))}"]')  # as named in Locust's page
        if field.evaluate("element => element.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)
    page.get_by_role("button", name="Start", exact=True).click()


def open_tab(page: Page, name: str = "Streaming") -> None:
    """Open a tab of the running test."""
    page.get_by_role("tab", name=name, exact=True).click()
