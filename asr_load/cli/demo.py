"""A first look: a speech recognizer on this machine, the sample's clips, a report, and the next command."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from asr_load import signals
from asr_load.cli.repeats import run_once
from asr_load.errors import InputError, OneLineParser
from asr_load.results.folders import RESULTS, folder_name, load_name
from asr_load.shipped import LOCUST_COMMAND, command, shipped
from asr_load.text import visible

MODEL = "moonshine-tiny"
USERS, REQUESTS = 4, 60
"""Four passes over the sample's 15 clips, which give the verdict enough requests to judge."""

MOST_S = 20
"""Maximum duration of the test in seconds, for a slow machine."""

START_S = 30.0
"""Seconds that the server may take to load the recognizer."""

SERVER_NICE = 10
"""Nice value of the server, so that the load generator, which shares the cores with it, reads responses in time."""


def main() -> int:
    """Command line of asr-load demo."""
    OneLineParser(
        "Start a small speech recognizer on this machine, test it with 15 short clips, and write a report. The packages"
        " for it come with: pip install 'asr-load[server]'"
    ).parse_args()
    results = RESULTS / folder_name(MODEL, load_name(USERS))
    print("Starting a speech server on this machine (a small speech recognizer on the CPU) …", flush=True)
    try:
        with signals.raising(), _server() as host, tempfile.TemporaryDirectory() as other:
            print(f"Sending the sample's 15 clips four times to {host}, with {USERS} requests in flight …", flush=True)
            code, stopped = run_once([*_locust(host, results), "--json-file", f"{other}/locust"])
    except signals.Interrupted as interrupted:
        signals.say(f"stopped ({signal.Signals(interrupted.number).name})")
        raise
    if stopped:
        return signals.exit_code(stopped)
    if code == 0:
        print_end(results)
    return code


@contextmanager
def _server() -> Iterator[str]:
    """The URL of a server with a recognizer, which runs within this block. Raises InputError if it does not start."""
    words = [sys.executable, "-m", "asr_load.cli.main", "serve", "--port", "0", "--model", MODEL]
    with tempfile.TemporaryFile("w+") as errors:
        server = None
        try:
            with signals.held():  # a held signal raises at the end of this block
                # Ctrl-C in a terminal does not reach another process group, so that requests in flight can finish.
                server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, process_group=0)
            os.setpriority(os.PRIO_PROCESS, server.pid, SERVER_NICE)
            yield _address(server, errors)
        finally:
            if server is not None:
                server.terminate()
                server.communicate()


def _address(server: subprocess.Popen[str], errors: TextIO) -> str:
    assert server.stdout is not None
    if not select.select([server.stdout], [], [], START_S)[0]:
        raise InputError(f"the demo's server was not ready within {START_S:g} s: close other programs, and try again")
    line = server.stdout.readline()
    if "http://" not in line:
        server.wait()
        errors.seek(0)
        raise InputError(f"the demo's server did not start: {errors.read().strip().removeprefix('error: ')}")
    return line.rpartition(" ")[2].strip()


def _locust(host: str, results: Path) -> list[str]:
    # fmt: off
    return [
        *LOCUST_COMMAND, "--config", str(shipped("locust.conf")), "-f", str(shipped("locustfiles/transcribe.py")),
        "--headless", "--only-summary", "--loglevel", "WARNING", "--host", host, "--model", MODEL,
        "-u", str(USERS), "-r", str(USERS), "--requests", str(REQUESTS), "-t", f"{MOST_S}s", "--results", str(results),
    ]
    # fmt: on


def print_end(results: Path) -> None:
    """Print what weakens the figures, the report, and the next command."""
    # Late, because these imports would delay the first line.
    from asr_load.report.page import REPORT
    from asr_load.results.summary import read_summary

    validity = read_summary(results).validity
    if validity.verdict != "valid":
        why = f"The figures are {validity.verdict}: {visible(validity.reasons[0])}"
        print(f"\n{why}. The server ran on this machine too. For a demo, this does not matter.")
    print(f"\nRead the report: {results / REPORT}\n\nNext, test your own server:\n")
    activate, on_path = Path(sys.executable).with_name("activate"), shutil.which("asr-load")
    is_active = on_path is not None and Path(on_path).resolve() == activate.with_name("asr-load").resolve()
    if activate.exists() and not is_active:
        here = Path.cwd()
        print(f"  . {shlex.quote(str(activate.relative_to(here) if activate.is_relative_to(here) else activate))}")
    print(f"  {command('run')} --headless -u {USERS} -t 1m --host http://ADDRESS:PORT")
