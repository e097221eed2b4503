"""Commands of containers, run as plain processes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from harness.patience import PATIENCE_S


def start(command: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    # The image's PATH has these two programs. Here they are those of the test environment.
    words = shlex.split(command)
    programs = {"python": [sys.executable], "locust": [sys.executable, "-m", "locust"]}
    return subprocess.Popen(
        [*programs[words[0]], *words[1:]],
        cwd=cwd,
        env={**os.environ, "LOCUST_SKIP_MONKEY_PATCH": "", **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=PATIENCE_S) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
