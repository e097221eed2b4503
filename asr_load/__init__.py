"""A load test for speech recognition behind OpenAI-compatible endpoints.

    import asr_load

    class Dictation(asr_load.SpeechUser):
        wait_time = constant(1)

is a locustfile; docs/locustfile.md tells what else can be in it.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any

# pip and make say so too; not so a Locust or a script that another Python runs here.
if sys.version_info < (3, 11):  # noqa: UP036
    print(f"error: Python 3.11 or newer is needed, and this is {sys.version.split()[0]}", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from asr_load.audio.clip import Clip
    from asr_load.audio.shard import open_shards
    from asr_load.load.user import SpeechUser
    from asr_load.results.summary import summarise, summarise_folder
    from asr_load.stream.record import Record, read_records

    __version__: str

__all__ = ["Clip", "Record", "SpeechUser", "open_shards", "read_records", "summarise", "summarise_folder"]

_HOMES = {
    "Clip": "asr_load.audio.clip",
    "Record": "asr_load.stream.record",
    "SpeechUser": "asr_load.load.user",
    "open_shards": "asr_load.audio.shard",
    "read_records": "asr_load.stream.record",
    "summarise": "asr_load.results.summary",
    "summarise_folder": "asr_load.results.summary",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: who reads records needs no Locust, which changes sockets."""
    if name == "__version__":
        from importlib.metadata import version  # a command catches signals before it imports that much

        return version("asr-load")
    if name not in _HOMES:
        raise AttributeError(f"module 'asr_load' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


@functools.cache
def git_state() -> str:
    """The commit of the checkout that this is, with -dirty where files are not as in it; empty where it is none."""
    import re  # late, as above
    import subprocess

    from asr_load.shipped import CHECKOUT

    if CHECKOUT is None or not (CHECKOUT / ".git").exists():
        return ""
    # `git describe --dirty` would lock the index: a commit that is made at the same moment would fail.
    command = ["git", "--no-optional-locks", "-C", str(CHECKOUT), "status", "--porcelain=v2", "--branch"]
    try:
        done = subprocess.run([*command, "--untracked-files=no"], capture_output=True, text=True, check=True, timeout=2)
    except (OSError, subprocess.SubprocessError):
        return ""
    commit = re.search(r"^# branch\.oid ([0-9a-f]+)$", done.stdout, re.MULTILINE)
    changed = any(not line.startswith("#") for line in done.stdout.splitlines())
    return f"{commit[1]}{'-dirty' * changed}" if commit else ""
