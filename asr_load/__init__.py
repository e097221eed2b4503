"""A load test for speech recognition behind OpenAI-compatible endpoints.

A minimal locustfile (docs/locustfile.md describes more):

    import asr_load

    class Dictation(asr_load.SpeechUser):
        wait_time = constant(1)
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any

# pip and make check this too, but another Python can run a script or Locust from the checkout.
if sys.version_info < (3, 11):  # noqa: UP036
    print(f"error: asr-load needs Python 3.11 or newer, but this is {sys.version.split()[0]}", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from asr_load.audio.clip import Clip
    from asr_load.audio.shard import open_shards
    from asr_load.load.user import SpeechUser
    from asr_load.results.record_file import read_records
    from asr_load.results.summary import summarise, summarise_folder
    from asr_load.stream.record import Record

    __version__: str

__all__ = ["Clip", "Record", "SpeechUser", "open_shards", "read_records", "summarise", "summarise_folder"]

_HOMES = {
    "Clip": "asr_load.audio.clip",
    "Record": "asr_load.stream.record",
    "SpeechUser": "asr_load.load.user",
    "open_shards": "asr_load.audio.shard",
    "read_records": "asr_load.results.record_file",
    "summarise": "asr_load.results.summary",
    "summarise_folder": "asr_load.results.summary",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: code that only reads records must not import Locust, which patches sockets."""
    if name == "__version__":
        from importlib.metadata import version  # slow to import; a command must catch signals first

        return version("asr-load")
    if name not in _HOMES:
        raise AttributeError(f"module 'asr_load' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


@functools.cache
def git_state() -> str:
    """The commit of this checkout, with -dirty if tracked files were modified; empty outside a checkout."""
    import re  # late, as above
    import subprocess

    from asr_load.shipped import CHECKOUT

    if CHECKOUT is None or not (CHECKOUT / ".git").exists():
        return ""
    # `git describe --dirty` would lock the index, and a commit made at that moment would fail.
    command = ["git", "--no-optional-locks", "-C", str(CHECKOUT), "status", "--porcelain=v2", "--branch"]
    try:
        done = subprocess.run([*command, "--untracked-files=no"], capture_output=True, text=True, check=True, timeout=2)
    except (OSError, subprocess.SubprocessError):
        return ""
    commit = re.search(r"^# branch\.oid ([0-9a-f]+)$", done.stdout, re.MULTILINE)
    changed = any(not line.startswith("#") for line in done.stdout.splitlines())
    return f"{commit[1]}{'-dirty' * changed}" if commit else ""
