"""Check Locust's command line before Locust acts on it: a mistake prints one line, and the process exits with code
2."""

from __future__ import annotations

import copy
import difflib
import errno
import functools
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from locust import User
from locust.argument_parser import LocustArgumentParser
from locust.util.url import is_url

from asr_load.errors import InputError
from asr_load.options.table import OPTIONS, SEARCH_OPTIONS, SHAPE_OPTIONS
from asr_load.settings.credentials import TOKEN, read_token
from asr_load.settings.host import REPLICAS, without_credentials
from asr_load.settings.other_tools import ADVICE
from asr_load.settings.settings import check_paths
from asr_load.shipped import locust_command
from asr_load.text import striker, visible

OF_LOCUSTFILES = {
    "locustfiles/transcribe.py,locustfiles/shapes.py": [option.name for option in SHAPE_OPTIONS],
    "locustfiles/capacity.py": [option.name for option in SEARCH_OPTIONS],
}
"""Names of the options that exist only with these locustfiles."""

HELP = "(see asr-load options, and locust --help for Locust's own)"

CLOSE_ENOUGH = 0.75
"""difflib's similarity from which an option is suggested; from 0.6, --concurrency would suggest Locust's --config."""

NAMED_AFTER_S = 5.0
"""Seconds for which to look up a master's name that does not resolve."""

WORD_EVERY_S, LOOK_EVERY_S = 10.0, 1.0
"""Seconds between a worker's messages that it waits for its master, and between its attempts to connect."""


LOOPBACK = "127.0.0.1"

_given: Namespace | None = None


def given_options() -> Namespace | None:
    """A copy of this process's command line options, which Locust overwrites with values from a form or a master."""
    return copy.copy(_given)


def judge_command_line(parser: LocustArgumentParser) -> None:
    """Make a parser print errors as one line, and check the options that it reads from this process's command line."""

    def error(message: str) -> NoReturn:
        print(f"error: {visible(_in_our_words(parser, message))}", file=sys.stderr)
        sys.exit(2)

    parse = parser.parse_args

    @functools.wraps(parse)
    def parse_and_judge(args: Any = None, *rest: Any, **words: Any) -> Namespace:
        global _given  # noqa: PLW0603 (a process has one command line)
        if args is None:
            _refuse_abbreviations_of_others(parser)
        options: Namespace = parse(args, *rest, **words)
        # Locust parses the command line again for each page, and other words to get the defaults.
        if args is None and _given is None:
            _given = copy.copy(options)
            try:
                _judge(options)
            except InputError as mistake:
                print(f"error: {mistake}", file=sys.stderr)
                sys.exit(2)
        return options

    anything: Any = parser
    anything.error, anything.parse_args = error, parse_and_judge


def check_locustfiles(names: str) -> None:
    """Raise InputError if one of the names in Locust's -f, separated by commas, is not a Python file or folder."""
    for name in map(str.strip, names.split(",")):
        path = Path(name)
        if name == "-" or is_url(name) or path.is_dir() or (path.is_file() and path.suffix == ".py"):
            continue
        what = "is not a Python file" if path.exists() else "does not exist"
        raise InputError(f"-f {name} {what}: use a locustfile that ends in .py, or omit -f for the standard one")


_SECRETS = ("--web-login", *(name for option in OPTIONS if option.secret for name in (option.name, *option.aliases)))
"""Options whose values are never shown."""


def shown_command(words: Sequence[str], secrets: Collection[str]) -> list[str]:
    """A command line without secrets."""
    shown: list[str] = []
    strike = striker(secrets)
    for word in words:
        option, equals, _ = word.partition("=")
        if shown and _is_secret(shown[-1]):
            shown.append("***")
        elif equals and _is_secret(option):
            shown.append(f"{option}=***")
        else:
            shown.append(strike(without_credentials(word)))
    return shown


def _is_secret(option: str) -> bool:
    # argparse accepts abbreviated names.
    return len(option) > len("--") and any(name.startswith(option) for name in _SECRETS)


def _in_our_words(parser: LocustArgumentParser, message: str) -> str:
    _, found, rest = message.partition("unrecognized arguments: ")
    if not found:
        return f"{' '.join(message.split())} {HELP}"
    name = rest.split()[0].partition("=")[0]
    if name in ADVICE:
        return f"there is no option {name}: {ADVICE[name]}"
    if locustfiles := next((files for files, options in OF_LOCUSTFILES.items() if name in options), ""):
        return f"{name} needs -f {locustfiles}"
    close = difflib.get_close_matches(name, parser._option_string_actions, n=1, cutoff=CLOSE_ENOUGH)
    return f"there is no option {name}" + (f"; did you mean {close[0]}? " if close else " ") + HELP


def _refuse_abbreviations_of_others(parser: LocustArgumentParser) -> None:
    """Reject another tool's option that argparse would take for an abbreviation, such as --rate for --rate-stages."""
    for word in sys.argv[1:]:
        name = word.partition("=")[0]
        if name in ADVICE and name not in parser._option_string_actions:
            parser.error(f"unrecognized arguments: {name}")


def _judge(options: Namespace) -> None:
    """Raise InputError for mistakes that Locust would report too late or not at all."""
    if unknown := sorted(set(options.user_classes or ()) - {user.__name__ for user in _users(User)}):
        known = ", ".join(sorted(user.__name__ for user in _users(User) if not user.abstract))
        raise InputError(f"{unknown[0]!r} is neither a user class nor an option's value; user classes: {known}")
    if options.list_commands or options.show_task_ratio or options.show_task_ratio_json:
        return
    if sum(word == "--host" or word.startswith(("-H", "--host=")) for word in sys.argv[1:]) > 1:
        raise InputError(f"--host is given twice: {REPLICAS}")
    for name, number in (("-u", options.num_users), ("-t", options.run_time)):
        if number is not None and number <= 0:  # Locust would run forever
            raise InputError(f"{name} must be above 0, not {number:g}")
    check_paths({"--csv": options.csv_prefix, "--html": options.html_file, "--json-file": options.json_file})
    token = read_token(options)
    if options.worker:
        _wait_for_master(options.master_host, options.master_port, f"{locust_command(options.locustfile)} --master")
        return
    if options.master or options.processes:
        options.master_bind_host = options.master_bind_host or "*"  # ZMQ accepts no empty address
        if options.processes and options.master_port != options.master_bind_port:
            raise InputError(
                f"--processes: the master would listen on port {options.master_bind_port}, but its workers connect to"
                f" {options.master_port}: set --master-bind-port and --master-port to the same port"
            )
        if not token:
            _keep_strangers_out(options)
        _check_free("--master-bind-host", options.master_bind_host, options.master_bind_port, "--master-bind-port")
    if not options.headless:
        _check_free("--web-host", options.web_host, options.web_port, "--web-port")


def _keep_strangers_out(options: Namespace) -> None:
    """Let a master without a token listen only on the loopback, unless an address was given."""
    host, cure = options.master_bind_host, f"set {TOKEN} or --fleet-token-file on master and workers"
    if host == "*":
        options.master_bind_host = LOOPBACK
        if options.master:
            cure += ", or an address with --master-bind-host"
            print(f"no fleet token: only workers on this machine can join ({cure})", file=sys.stderr)
    elif host not in (LOOPBACK, "localhost", "::1"):
        print(f"no fleet token: anyone who can reach {host} can join as a worker ({cure})", file=sys.stderr)


def _users(base: type[User]) -> Iterator[type[User]]:
    for user in base.__subclasses__():
        yield user
        yield from _users(user)


def _check_free(host_option: str, host: str, port: int, port_option: str) -> None:
    """Raise InputError if this machine cannot listen on the port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            None if host in ("", "*") else host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            # Like servers do, ignore the remains of closed connections.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} is taken, perhaps by another Locust: choose a free one with {port_option}"
            ) from None
        where = f"{host_option} {host} {port_option} {port}" if host else f"{port_option} {port}"
        raise InputError(f"{where}: this machine cannot listen there ({error.strerror})") from None


def _wait_for_master(host: str, port: int, start: str) -> None:
    """Wait until a master listens, and print every ten seconds how to `start` one, because Locust waits silently.
    Raises InputError if the host does not exist."""
    began, printed = time.monotonic(), -WORD_EVERY_S
    while True:
        try:
            with socket.create_connection((host, port), timeout=WORD_EVERY_S):
                return
        except socket.gaierror as error:
            # A container's name resolves only some time after its start.
            known_later = error.errno == socket.EAI_AGAIN or time.monotonic() - began < NAMED_AFTER_S
            if not known_later:
                raise InputError(f"--master-host {host} cannot be resolved ({error.strerror})") from None
            time.sleep(LOOK_EVERY_S)
            continue
        except (OSError, OverflowError):
            pass
        if time.monotonic() - printed >= WORD_EVERY_S:
            printed = time.monotonic()
            line = f"waiting for a master on {host}:{port}; start one with: {start}"
            print(line, file=sys.stderr, flush=True)
        time.sleep(LOOK_EVERY_S)
