"""Make the pictures in docs/images from short test runs: the Streaming tab and report.html, in light, dark and narrow
versions, and the tab during realtime sessions.

    python scripts/screenshots.py

Needs Chromium and the packages of requirements-long.txt.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from asr_load.audio.clip import Rules  # noqa: E402
from asr_load.audio.open import open_source  # noqa: E402
from asr_load.audio.prepare import prepare  # noqa: E402
from asr_load.audio.prepared import Options  # noqa: E402
from asr_load.audio.source import DatasetSpec  # noqa: E402
from asr_load.errors import OneLineParser  # noqa: E402
from asr_load.report.page import REPORT  # noqa: E402
from harness.browser import browser, locust, start_test  # noqa: E402
from harness.serving import serve  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

IMAGES = ROOT / "docs" / "images"
SERVER = ["--engine", "scripted", "--tokens", "24", "--ttft-ms", "160", "--itl-ms", "18", "--slots", "6"]
SESSIONS = ["--engine", "scripted", "--realtime", "vllm", "--tokens", "12", "--itl-ms", "300", "--final-ms", "250"]
SESSIONS += ["--fault", "ws-close-1011=0.02"]
SPOKEN = ["--api", "realtime", "--slo", "ttfs:p95:400", "--goodput", "ttfs:400", "-t", "24s"]
FAULTS = ["503=0.03", "early-end=0.015", "multi=0.02"]
SHAPE = ["--shape", "steps", "--stages", "3", "--stage-time", "9"]
PICTURE_AT_S = 20
"""Seconds after the start of the test, within its last stage."""


def main() -> None:
    """Run the tests and write the pictures."""
    OneLineParser("Make the pictures in docs/images, replacing the existing ones.").parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    files = "locustfiles/transcribe.py,locustfiles/shapes.py"
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(*SERVER, *(word for fault in FAULTS for word in ("--fault", fault))) as host,
        serve(*SESSIONS) as live_host,
        locust("-f", files, *SHAPE, "--host", host, "--data", _clips(Path(folder)), "--results", f"{folder}/run") as ui,
        locust(*SPOKEN, "--host", live_host, "--data", f"{folder}/prepared", "--results", f"{folder}/live") as live_ui,
    ):
        # Lower the priority, so that the browser does not take CPU from the test that it shows.
        os.nice(10)
        with browser() as chromium:
            _tab(chromium, ui.url, "streaming", 12, LOOKS[1:])
            _tab(chromium, live_ui.url, "realtime", 40, ())
        # Run the report's test without a browser, because a server, a client and a browser are too much for two cores.
        command = [sys.executable, "-m", "locust", "-f", files, *SHAPE, "--host", host, "--headless", "-u", "12"]
        command += ["--data", f"{folder}/prepared", "--results", f"{folder}/quiet", "--only-summary"]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        with browser() as chromium:
            for name, scheme, width in LOOKS:
                _picture(chromium, (Path(folder) / "quiet" / REPORT).as_uri(), f"report-{name}", scheme, width)


LOOKS = (("light", "light", 1280), ("dark", "dark", 1280), ("narrow", "light", 400))


def _tab(chromium: Browser, url: str, name: str, users: int, looks: Sequence[tuple[str, str, int]]) -> None:
    """Take the first picture of the page that is already open, because loading another one uses a core for a second."""
    page = chromium.new_page(color_scheme="light", viewport={"width": 1280, "height": 1400}, locale="en-US")
    page.goto(url)
    start_test(page, users, ramp=users // 2)
    time.sleep(PICTURE_AT_S)
    _shoot(page, f"{name}-light", 1280)
    for look, scheme, width in looks:
        _picture(chromium, f"{url}?tab=streaming", f"{name}-{look}", scheme, width)
    page.get_by_text("exact figures of the whole test").wait_for()


def _clips(folder: Path) -> Path:
    """The sample's recordings without references: the scripted server does not transcribe, so WER is useless."""
    source = folder / "set"
    source.mkdir()
    rows = []
    for file in sorted((ROOT / "asr_data" / "sample").glob("*.flac")):
        shutil.copy(file, source)
        rows.append(json.dumps({"file": file.name}) + "\n")
    (source / "manifest.jsonl").write_text("".join(rows))
    prepare(open_source(DatasetSpec(str(source))), Options(Rules(), 0, "en"), folder / "prepared")
    return folder / "prepared"


def _picture(chromium: Browser, url: str, name: str, scheme: str, width: int) -> None:
    context = chromium.new_context(
        color_scheme="dark" if scheme == "dark" else "light",
        viewport={"width": width, "height": 700},
        device_scale_factor=1,
        locale="en-US",
    )
    page = context.new_page()
    page.goto(url)
    _shoot(page, name, width)
    context.close()


def _shoot(page: Page, name: str, width: int) -> None:
    page.locator(".plot svg:visible").last.wait_for()
    if width > 600:
        page.locator(".plot").first.hover(position={"x": 330, "y": 150})
    page.wait_for_timeout(300)
    file = IMAGES / f"{name}.png"
    page.screenshot(path=file, full_page=True)
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
