"""Every option that is added to Locust's, and what they mean once they are checked."""

from __future__ import annotations

import hashlib
import os
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from locust.argument_parser import LocustArgumentParser

from asr_load.audio.payload import APIS
from asr_load.errors import InputError
from asr_load.load.arrivals import KINDS, Arrivals, make_arrivals, parse_stages
from asr_load.results.slo import Goodput, Slo, parse_slos

MIN_SECRET = 8
"""Characters of a header's word that is struck out of messages: "Bearer" and "gzip" are no secrets."""

UNIQUE = ["dither", "none"]
ORDERS = ["sequential", "shuffle"]
READERS = ["auto", "compiled", "python", "plain"]
DEFAULT_PROMPT = "Transcribe the audio. Answer with the transcript only."


def add_options(parser: LocustArgumentParser) -> None:
    """Add the harness's options to Locust's parser. Plain types only: Locust sends the values to workers and pages."""
    add = parser.add_argument
    add("--data", default="asr_data/sample", help="Prepared folder of clips (scripts/prepare.py)")
    add("--api", choices=list(APIS), default="chat", help="What the endpoint speaks")
    add("--model", default="default", help="Model name to ask for")
    add("--prompt", default=DEFAULT_PROMPT, help="Text beside the audio")
    add("--max-tokens", type=int, default=128, help="Longest answer, in tokens (not a field of transcriptions)")
    add("--unique", choices=UNIQUE, default="dither", help="dither: no request repeats another's bytes")
    # The key of the environment is no default here: Locust writes defaults into its page.
    add("--api-key", default="", is_secret=True, help="Bearer token (default: OPENAI_API_KEY)")
    # Words, not numbers: an empty field of the form is a closed loop.
    add("--request-rate", default="", metavar="R", help="Requests per second of the whole fleet (empty: closed loop)")
    add("--arrivals", choices=KINDS, default="poisson", help="How they arrive at that rate")
    hidden: dict[str, Any] = {"include_in_web_ui": False}
    add("--burstiness", type=float, default=1.0, help="Of gamma arrivals: 1 is Poisson, less comes in bursts", **hidden)
    add("--rate-stages", default="", metavar="60s:5,30s:5-20,…", help="A rate that changes: holds and ramps", **hidden)
    add("--arrival-trace", default="", metavar="FILE", help="Arrival times to replay (jsonl, csv)", **hidden)
    add("--trace-speed", type=float, default=1.0, help="How many times as fast", **hidden)
    add("--warmup-requests", type=int, default=0, metavar="N", help="The first N are in no figure", **hidden)
    add("--warmup-time", type=float, default=0.0, metavar="S", help="Nor those begun in the first S seconds", **hidden)
    add("--ramp-up-time", type=float, default=0.0, metavar="S", help="Leave the first S seconds out", **hidden)
    add("--cool-down-time", type=float, default=0.0, metavar="S", help="Leave the last S seconds out", **hidden)
    add("--requests", type=int, default=0, help="Send exactly N, then end the test; 0: until stopped", **hidden)
    add("--order", choices=ORDERS, default="sequential", help="Order of clips in a pass", **hidden)
    add("--seed", type=int, default=0, help="Seed of the shuffle", **hidden)
    add("--connect-timeout", type=float, default=10.0, help="Seconds to connect", **hidden)
    add("--stall-timeout", type=float, default=120.0, help="Seconds without a byte, the first included", **hidden)
    add("--total-timeout", type=float, default=600.0, help="Seconds for a whole answer", **hidden)
    add("--header", action="append", default=[], metavar="K=V", help="Header to send; repeatable", **hidden)
    add("--extra-body", default="", metavar="JSON", help="Object merged into the body; null: leave out", **hidden)
    add("--omit", default="", metavar="FIELD,…", help="Fields to leave out of the body", **hidden)
    add("--reader", choices=READERS, default="auto", help="How answers are read (README: how true)", **hidden)
    add("--slo", action="append", default=[], metavar="ttft:p95:500", help="Limit to keep (ms); repeatable", **hidden)
    add("--goodput", default="", metavar="'ttft:500 tpot:40'", help="Limits in ms for each request", **hidden)
    add("--allow-client-bound", action="store_true", help="SLOs may pass in a client-bound run", **hidden)
    add("--allow-lost-workers", action="store_true", help="SLOs may pass though a worker was lost", **hidden)
    add("--results", default="", metavar="DIR", help="Folder for the run (default: results/DATE-TIME)", **hidden)


@dataclass(frozen=True)
class Limits:
    """Time limits of a request, in seconds."""

    connect: float
    stall: float
    total: float


@dataclass(frozen=True)
class Loop:
    """When requests are sent, as it was asked for. In an open loop one of rate, stages and trace is set."""

    rate: float | None
    arrivals: str
    burstiness: float
    stages: str
    trace: str
    speed: float
    seed: int

    @property
    def open(self) -> bool:
        return self.rate is not None or bool(self.stages) or bool(self.trace)

    @property
    def trace_sha256(self) -> str:
        """Of the trace's file; empty without one."""
        return hashlib.sha256(Path(self.trace).expanduser().read_bytes()).hexdigest() if self.trace else ""

    def make(self) -> Arrivals | None:
        """The arrivals; None for a closed loop. Raises InputError."""
        return make_arrivals(
            self.arrivals,
            rate=self.rate,
            burstiness=self.burstiness,
            stages=self.stages,
            trace=self.trace,
            speed=self.speed,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Settings:
    """The options of one test, checked."""

    host: str
    data: Path
    api: str
    model: str
    prompt: str
    max_tokens: int
    unique: bool
    reader: str
    requests: int
    shuffle: bool
    seed: int
    limits: Limits
    loop: Loop
    warmup_requests: int
    warmup_time: float
    ramp_up_time: float
    cool_down_time: float
    slos: list[Slo]
    goodput: str
    allow_client_bound: bool
    allow_lost_workers: bool
    searching: bool
    """Whether a search for capacity announces the load, step by step."""
    results: Path | None
    extra_body: dict[str, Any]
    """Fields of the body, over those that it has otherwise; None: left out."""
    headers: dict[str, str] = field(repr=False)
    """May hold secrets: never written anywhere."""
    secrets: tuple[str, ...] = field(repr=False)
    """What must be struck out of whatever a server says."""


def read_settings(options: Namespace, host: str | None, key: str = "") -> Settings:
    """Check the options of a test; `key` is the API key where they hold none. Raises InputError."""
    key = options.api_key or key or os.environ.get("OPENAI_API_KEY", "")
    headers = dict(_header(word) for word in options.header or [])
    if key:
        headers["Authorization"] = f"Bearer {_printable('the API key', key)}"
    _check_words_and_numbers(options)
    loop = _loop(options)
    if options.goodput.strip():
        Goodput(options.goodput)
    if options.seed and options.order == "sequential" and not loop.open:
        raise InputError("--seed shuffles nothing with --order sequential: add --order shuffle, or a --request-rate")
    return Settings(
        host=check_host(host),
        data=Path(options.data).expanduser(),
        api=options.api,
        model=options.model,
        prompt=options.prompt,
        max_tokens=options.max_tokens,
        unique=options.unique == "dither",
        reader=options.reader,
        requests=options.requests,
        shuffle=options.order == "shuffle",
        seed=options.seed,
        limits=Limits(options.connect_timeout, options.stall_timeout, options.total_timeout),
        loop=loop,
        warmup_requests=options.warmup_requests,
        warmup_time=options.warmup_time,
        ramp_up_time=options.ramp_up_time,
        cool_down_time=options.cool_down_time,
        slos=parse_slos(options.slo or []),
        goodput=" ".join(options.goodput.split()),
        allow_client_bound=options.allow_client_bound,
        allow_lost_workers=options.allow_lost_workers,
        searching=False,
        results=Path(options.results).expanduser() if options.results else None,
        extra_body=_extra_body(options.extra_body, options.omit),
        headers=headers,
        # By words: a server may repeat a token without the "Bearer" before it.
        secrets=(
            *([key] if key else []),
            *(word for value in headers.values() for word in value.split() if len(word) >= MIN_SECRET),
        ),
    )


def _check_words_and_numbers(options: Namespace) -> None:
    for name in ("connect_timeout", "stall_timeout", "total_timeout"):
        if not 0 < getattr(options, name) < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be above 0 seconds, not {getattr(options, name)}")
    # The command line has checked these; the web form takes any word.
    for name, allowed in (("api", list(APIS)), ("unique", UNIQUE), ("order", ORDERS), ("arrivals", KINDS)):
        if getattr(options, name) not in allowed:
            raise InputError(f"--{name} {getattr(options, name)!r} is none of {', '.join(allowed)}")
    if options.requests < 0:
        raise InputError(f"--requests must be 0 (until stopped) or more, not {options.requests}")
    if options.seed < 0:
        raise InputError(f"--seed must be 0 or more, not {options.seed}")
    if options.warmup_requests < 0:
        raise InputError(f"--warmup-requests must be 0 or more, not {options.warmup_requests}")
    for name in ("warmup_time", "ramp_up_time", "cool_down_time"):
        if not 0 <= getattr(options, name) < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be 0 seconds or more, not {getattr(options, name)}")
    if options.max_tokens < 1:
        raise InputError(f"--max-tokens must be 1 or more, not {options.max_tokens}")


def _loop(options: Namespace) -> Loop:
    word = str(options.request_rate).strip()
    try:
        rate = float(word) if word else None
    except ValueError:
        raise InputError(f"--request-rate takes requests per second, not {word!r}") from None
    loop = Loop(
        rate,
        options.arrivals,
        options.burstiness,
        options.rate_stages.strip(),
        options.arrival_trace,
        options.trace_speed,
        options.seed,
    )
    if loop.stages and not any(stage.first or stage.last for stage in parse_stages(loop.stages)):
        raise InputError(f"--rate-stages {loop.stages}: some rate must be above 0")
    if loop.make() is None and options.arrivals != "poisson":
        raise InputError(f"--arrivals {options.arrivals} needs a rate: add --request-rate or --rate-stages")
    return loop


def check_writable(folder: Path) -> None:
    """Raise InputError if a folder is none, or could not be made."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"--results {folder}: {existing} is no folder that can be written to")


def check_host(host: str | None) -> str:
    """An address without a trailing slash. Raises InputError where it is none."""
    try:
        parts = urlsplit(host or "")
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is no number or too large
        known = False
    if not known:
        raise InputError(f"--host {host or '(none)'} is not an address like http://127.0.0.1:30000")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise InputError(f"--host carries no path: give {parts.scheme}://HOST:PORT, the API's path is added (--api)")
    return f"{parts.scheme}://{parts.netloc}"


def _header(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or not name.strip() or not all(char.isalnum() or char in "-_" for char in name.strip()):
        # The value may be a secret: only the name is shown.
        raise InputError(f"--header takes NAME=VALUE, not {name[:40]!r} …")
    return name.strip(), _printable(f"--header {name.strip()}", value.strip())


def _printable(what: str, value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise InputError(f"{what} holds characters that a header cannot carry")
    return value


def _extra_body(text: str, omit: str) -> dict[str, Any]:
    try:
        extra = msgspec.json.decode(text, type=dict[str, Any]) if text else {}
    except msgspec.DecodeError as error:
        raise InputError(f"--extra-body is not a JSON object: {error}") from error
    for name in filter(None, map(str.strip, omit.split(","))):
        if extra.get(name) is not None:
            raise InputError(f"--omit leaves out {name!r}, which --extra-body sets: give one of the two")
        extra[name] = None
    return extra
