"""Make the pictures in docs/images: the Streaming tab and the HTML report, light, dark and narrow, of a short real run.

    python scripts/screenshots.py

Needs Chromium, and what requirements-dev.txt names.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from playwright.sync_api import Browser  # noqa: E402

from browser import browser, locust, open_tab, start_test  # noqa: E402
from serving import serve  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SECONDS = 25
SERVER = ["--engine", "scripted", "--tokens", "24", "--ttft-ms", "160", "--itl-ms", "18", "--slots", "6", "--fault", "503=0.03", "--fault", "early-end=0.015", "--fault", "multi=0.1"]


def main() -> None:
    """Run, look, and write the pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(*SERVER) as host,
        locust("--host", host, "--results", Path(folder) / "run") as ui,
        browser() as chromium,
    ):
        page = chromium.new_page(color_scheme="light")
        page.goto(ui.url)
        start_test(page, users=10, ramp=1)
        open_tab(page)
        time.sleep(SECONDS)
        tab = f"{ui.url}?tab=streaming"
        _picture(chromium, tab, "streaming-light", "light", 1280)
        _picture(chromium, tab, "streaming-dark", "dark", 1280)
        _picture(chromium, tab, "streaming-narrow", "light", 400)
        page.get_by_role("button", name="Stop").click()
        page.locator("text=whole test").wait_for()
        for theme in ("light", "dark"):
            _picture(chromium, f"{ui.url}stats/report?theme={theme}", f"report-{theme}", "light", 1280)


def _picture(chromium: Browser, url: str, name: str, scheme: str, width: int) -> None:
    context = chromium.new_context(
        color_scheme="dark" if scheme == "dark" else "light",
        viewport={"width": width, "height": 900},
        device_scale_factor=1,
        locale="en-US",
    )
    page = context.new_page()
    page.goto(url)
    page.locator(".asr-chart path.asr-series").first.wait_for()
    page.locator(".asr-verdict[data-verdict]").first.wait_for()
    if name.startswith("report"):
        page.get_by_text("Request Statistics").wait_for()
    elif width > 600:
        page.locator(".asr-chart svg").first.hover(position={"x": 330, "y": 100})
    file = IMAGES / f"{name}.png"
    if name.startswith("report"):
        page.locator("section.asr-report").screenshot(path=file)
    else:
        page.screenshot(path=file, full_page=True)
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size // 1000} kB")
    context.close()


if __name__ == "__main__":
    main()
