"""Start a process of asr-load: the command `asr-load` and its verbs, the scripts, and Locust."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from asr_load import signals

# Import everything else after catching signals.

VERBS = {
    "demo": ("asr_load.cli.demo", "test a speech recognizer on this machine: a first look, in less than a minute"),
    "prepare": ("asr_load.cli.prepare", "prepare a speech data set for load tests"),
    "run": (
        "locustfiles/transcribe.py,locustfiles/shapes.py",
        "run a load test: Locust with the standard locustfile, and all its options",
    ),
    "capacity": ("locustfiles/capacity.py", "find the highest load at which every --slo holds"),
    "bench": ("asr_load.cli.bench", "send every clip of a data set once, and print the summary"),
    "report": ("asr_load.report.main", "rewrite the summary and report of a run, or compare it with others"),
    "list": ("asr_load.cli.list_runs", "list runs, the newest first, each with its result in a sentence"),
    "compare": ("asr_load.cli.compare_runs", "compare two runs: folders, names, or last and last-1"),
    "calibrate": ("asr_load.selftest.calibrate", "measure how many streams this machine can receive accurately"),
    "serve": ("asr_server.main", "start a server to test against"),
    "options": ("asr_load.cli.options_page", "list the options that asr-load adds to Locust's"),
}
"""Each verb's module, whose main() runs it, or its locustfiles; and its description."""

LOCUST = "locust"
"""The word that runs Locust with signals caught from the first line on (shipped.LOCUST_COMMAND)."""


def main() -> int:
    """Command line of asr-load. Each verb has its options: asr-load COMMAND --help."""
    is_locust = sys.argv[1:2] == [LOCUST]
    if is_locust:
        sys.argv[:2] = [LOCUST]
        signals.catch_before_test()
    else:
        signals.catch()
    from asr_load.errors import exits_on_bad_input

    return exits_on_bad_input(_be_locust if is_locust else _run_command)()


def run_verb(verb: str) -> int:
    """Run the module of a verb with this process's command line. Returns its exit code."""
    signals.catch()
    code: int = importlib.import_module(VERBS[verb][0]).main()
    return code


def _run_command() -> int:
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-V", "--version"):
        from importlib.metadata import version

        print(f"asr-load {version('asr-load')} (Locust {version('locust')}, Python {sys.version.split()[0]})")
        return 0
    if verb in ("-h", "--help"):
        print("usage: asr-load COMMAND [options]\n       asr-load --version\n")
        print("\n".join(f"  {name:10} {what}" for name, (_, what) in VERBS.items()))
        return 0
    if verb not in VERBS:
        print(f"error: unknown command {verb!r}; the commands are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    home = VERBS[verb][0]
    if home.endswith(".py"):
        return _start_locust(home.split(","), sys.argv[2:])
    sys.argv[:2] = [f"asr-load {verb}"]
    return run_verb(verb)


def _start_locust(locustfiles: list[str], words: list[str]) -> int:
    from asr_load.cli.repeats import run_repeatedly, take_repeats
    from asr_load.shipped import LOCUST_COMMAND, shipped

    files = ",".join(str(shipped(file)) for file in locustfiles)
    # Locust reads ./locust.conf. Without one, pass the one that a checkout has.
    config = [] if Path("locust.conf").exists() else ["--config", str(shipped("locust.conf"))]
    # A later -f overrides this one.
    times, left = take_repeats([*config, "-f", files, *words])
    if times > 1:
        return run_repeatedly([*LOCUST_COMMAND, *left], times)
    sys.argv = [LOCUST, *left]
    signals.catch_before_test()
    return _be_locust()


def _be_locust() -> int:
    """Run Locust in this process, with its command line. Raises InputError if a locustfile is missing."""
    # Late: importing Locust takes most of a second.
    import locust.main
    from locust.argument_parser import parse_locustfile_option

    from asr_load.settings.commandline import check_locustfiles

    named: Any = parse_locustfile_option()  # Locust annotates the wrong type
    check_locustfiles(named.locustfile)
    locust.main.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
