"""SGLang's ASR benchmark through Locust, with its command line: prepare the data if necessary, send each clip once."""

from __future__ import annotations

import argparse
import hashlib
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from asr_load import signals
from asr_load.audio.prepare import describe
from asr_load.cli.prepare import add_source_arguments, prepare_from_arguments
from asr_load.cli.repeats import become_locust, take_repeats
from asr_load.errors import InputError, OneLineParser, exits_on_bad_input
from asr_load.shipped import CHECKOUT, shipped


def folder_name(args: argparse.Namespace) -> str:
    """The prepared folder's name: data set, subset, split and limit, in characters that every file system allows.

    A local data set gets a few digits of its path's hash, because several folders may have the same name.
    """
    path = Path(args.dataset).expanduser()
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8] if path.exists() else None
    words = [path.name, args.subset, args.split, f"first{args.limit}" if args.limit else None, place]
    return re.sub(r"[^\w.]+", "-", "-".join(word for word in words if word))


PORT = 30000


def server_address(host: str | None, port: int | None) -> str:
    """Locust's --host, from SGLang's host name and port or from a URL. Raises InputError for two different ports."""
    url = host if host and "://" in host else f"http://{host or '127.0.0.1'}"
    try:
        parts = urlsplit(url)
        given = parts.port
    except ValueError:
        return url  # Locust reports what is wrong with its --host
    if given is not None and port not in (None, given):
        raise InputError(f"--host has port {given}, but --port is {port}: give only one of them")
    if given is not None or (port is None and url == host):
        return url
    return parts._replace(netloc=f"{parts.netloc}:{PORT if port is None else port}").geturl()


@exits_on_bad_input
def main() -> int:
    """Command line of scripts/bench.py. On valid input this process becomes Locust, unless --repeats is given."""
    parser = OneLineParser(
        "Send every clip of a data set once and print the summary.",
        "All other options go to Locust (see asr-load options and locust --help), for example --model or --api."
        " --repeats N runs the benchmark N times and prints the spread.",
    )
    add_source_arguments(parser)
    add = parser.add_argument
    # fmt: off
    add("--port", type=int, help="port of the server (default: 30000)")
    add("--host", help="server, as http://gpu:30000, a name or an IP address (default: this machine)")
    add("--concurrency", type=int, default=4, metavar="N", help="number of requests in flight (default: 4)")
    add("--max-tokens", type=int, default=128, metavar="N",
        help="maximum length of a response, in tokens (default: 128)")
    add("--cache-ratio", action="store_true",
        help="send every clip twice, and report how much the server's cache shortens TTFT")
    # fmt: on
    args, rest = parser.parse_known_args()
    if args.concurrency < 1:
        parser.error(f"--concurrency must be 1 or more, not {args.concurrency}")
    if args.port is not None and not 0 < args.port < 65536:
        parser.error(f"--port must be from 1 to 65535, not {args.port}")
    host = server_address(args.host, args.port)

    take_repeats(rest)
    out = (CHECKOUT or Path()) / "asr_data" / folder_name(args)
    # The number of requests is unknown until the data is prepared; 1 stands for it in the check.
    if code := _check(args.audio_format, _command(args, host, out, 1, rest)):
        return code
    print(f"preparing {args.dataset} …", file=sys.stderr, flush=True)
    manifest = prepare_from_arguments(args, out)
    print(f"{out.name}: {describe(manifest)}", flush=True)
    return become_locust(_command(args, host, out, manifest.clips * (2 if args.cache_ratio else 1), rest))


def _command(args: argparse.Namespace, host: str, out: Path, requests: int, rest: list[str]) -> list[str]:
    # fmt: off
    return [
        "--locustfile", str(shipped("locustfiles/transcribe.py")),
        "--headless", "--only-summary", "--loglevel", "WARNING",
        "--host", host,
        "--users", str(args.concurrency), "--spawn-rate", str(args.concurrency),
        "--requests", str(requests),
        *(["--unique", "once"] if args.cache_ratio else []), "--data", str(out), "--max-tokens", str(args.max_tokens),
        *rest,
    ]
    # fmt: on


def _check(audio_format: str, command: list[str]) -> int:
    """Check Locust's options before preparing data, which may take hours. Returns 0, or prints the mistake and returns
    its exit code."""
    # In a separate process: importing Locust patches sockets and threads, and prepare uses worker processes.
    words = [sys.executable, "-c", CHECK, audio_format, *take_repeats(command)[1]]
    try:
        # Ctrl-C in the terminal does not reach another session, so this process ends the check.
        with signals.raising():
            return subprocess.run(words, check=False, stdout=subprocess.DEVNULL, start_new_session=True).returncode
    except signals.Interrupted as stopped:
        signals.say(f"stopped ({signal.Signals(stopped.number).name})")
        raise


CHECK = "import sys; from asr_load.cli.bench import check_options; sys.exit(check_options())"


@exits_on_bad_input
def check_options() -> int:
    """Check sys.argv, the format of the clips and then Locust's command line, as far as possible without data. Raises
    InputError."""
    audio_format = sys.argv.pop(1)
    from locust.argument_parser import get_locustfiles_locally, get_parser, parse_locustfile_option
    from locust.env import Environment
    from locust.main import merge_locustfiles_content

    from asr_load.load.checks import Checks, check_format, check_new
    from asr_load.settings.credentials import Credentials

    merge_locustfiles_content(get_locustfiles_locally(parse_locustfile_option()))
    options = get_parser().parse_args()
    settings, _ = Checks(Environment(parsed_options=options), Credentials(options)).settings(options, options.host)
    check_format(settings, audio_format)
    if settings.results is not None:
        check_new(settings.results)
    return 0
