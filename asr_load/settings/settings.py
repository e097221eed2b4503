"""Check the options, and turn them into the settings of a test."""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from asr_load.apis.api import Api
from asr_load.apis.dialects import DIALECTS
from asr_load.apis.realtime import RealtimeOptions
from asr_load.decode import Malformed, decode
from asr_load.errors import InputError
from asr_load.http.timeouts import Timeouts
from asr_load.http.transport import PORTS, Transport, proxy_of_environment, read_transport
from asr_load.options.table import DEFAULT_MODEL, OPTIONS, SEARCH_OPTIONS, SHAPE_OPTIONS
from asr_load.results.slo import Goodput, Slo, check_unit, parse_slos
from asr_load.schedule.arrivals import Arrivals, Stage, make_arrivals, parse_stages
from asr_load.schedule.mix import parse_mix
from asr_load.settings.host_path import check_endpoint, check_host_path, secrets_in, without_secrets
from asr_load.settings.request import RequestSettings, read_request
from asr_load.shipped import SAMPLE, sample
from asr_load.text import MIN_SECRET, Intake

REPLICAS = "it takes one server; name its replicas with --upstream HOST:PORT,HOST:PORT"

RESULTS = Path("results")
"""Default parent of the runs' folders."""


@dataclass(frozen=True)
class Loop:
    """The requested arrivals. In an open loop, one of rate, stages and trace is set."""

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
        """Hash of the trace's file; empty without one."""
        return hashlib.sha256(Path(self.trace).expanduser().read_bytes()).hexdigest() if self.trace else ""

    def make(self, announced: Sequence[Stage] = ()) -> Arrivals | None:
        """Create the arrivals; None for a closed loop. `announced`: stages of a search, which replace the requested
        ones. Raises InputError."""
        return make_arrivals(
            self.arrivals,
            rate=self.rate,
            burstiness=self.burstiness,
            stages=announced or self.stages,
            trace=self.trace,
            speed=self.speed,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Settings:
    """The options of one test, checked."""

    host: str
    endpoint: str
    """Path of requests, with a query if it has one."""
    data: Path
    request: RequestSettings
    server_model: str
    """The server's only model; empty if the server was not asked, or lists none."""
    server_dialect: str
    """Realtime dialect in which the server accepted a trial session; empty without one."""
    realtime: RealtimeOptions | None
    """Options of realtime sessions; None for other APIs."""
    unique: str
    reader: str
    requests: int
    retries: int
    keep_connections: bool
    shuffle: bool
    sample: int
    mix: str
    seed: int
    timeouts: Timeouts
    transport: Transport
    loop: Loop
    warmup_requests: int
    warmup_time: float
    trim_start: float
    trim_end: float
    normalizer: str
    slos: list[Slo]
    goodput: str
    allow_client_bound: bool
    allow_lost_workers: bool
    searching: bool
    """Whether a capacity search sets the load, step by step."""
    results: Path | None
    metadata: dict[str, str]
    given: dict[str, Any] = field(compare=False, repr=False)
    """The options that run.json holds or that a resumed search compares, as given, by their `dest`. May contain a
    secret, such as a proxy's password: `in_effect` is what may be shown."""
    headers: dict[str, str] = field(repr=False)
    """May contain secrets, so they are never written anywhere."""
    secrets: tuple[str, ...] = field(repr=False)
    """Words to remove from all text that the server sends."""

    @cached_property
    def intake(self) -> Intake:
        """The filter for text from this server and its proxy."""
        return Intake(self.secrets)

    @property
    def in_effect(self) -> dict[str, Any]:
        """The options that run.json holds or that a resumed search compares, by their `dest`: as the test uses them,
        since a preset or another option may decide their values, and without secrets."""
        request, fields, transport = self.request, self.request.fields, self.transport
        return {
            **self.given,
            "api": request.api.name,
            "endpoint": self.shown_endpoint,
            "model": fields.model,
            "data": str(self.data),
            "preset": request.preset,
            "prompt": fields.prompt,
            "prompt_position": "before" if fields.prompt_first else "after",
            "system": fields.system,
            "language": request.language,
            "text_format": request.text_format,
            "max_tokens": request.api.token_limit(fields),
            "header": sorted(self.headers),
            "extra_body": sorted(name for name, value in fields.extra.items() if value is not None),
            "omit": sorted(name for name, value in fields.extra.items() if value is None),
            "proxy": transport.proxy,
            "upstream": [f"{host}:{port}" for host, port in transport.upstream],
            "order": "shuffle" if self.shuffle else "sequential",
            "mix": self.mix,
            "slo": [slo.text for slo in self.slos],
            "goodput": self.goodput,
            "metadata": self.metadata,
        }

    @property
    def shown_endpoint(self) -> str:
        """The endpoint without keys in its query, to print and store."""
        return without_secrets(self.endpoint)


@dataclass(frozen=True)
class Secrets:
    """Credentials for one server; `headers` are in the form of --header."""

    key: str = field(default="", repr=False)
    basic: str = field(default="", repr=False)
    """User and password, encoded for basic authentication."""
    headers: tuple[str, ...] = field(default=(), repr=False)
    proxy: str = ""
    proxy_basic: str = field(default="", repr=False)
    """User and password for this proxy, which no other proxy receives."""


def _data_folder(named: str) -> Path:
    folder = Path(named).expanduser()
    return sample() if named == SAMPLE and not folder.exists() else folder


def read_settings(
    options: Namespace, host: str | None, secrets: Secrets, model: str = "", dialect: str = ""
) -> Settings:
    """Check the options of a test. `secrets`: those for the server; `model`: the server's model, for options that name
    none; `dialect`: that in which the server accepted a trial session. Raises InputError."""
    key, basic = secrets.key, secrets.basic
    headers = dict(_header(word) for word in secrets.headers)
    if basic and key:
        raise InputError(
            "--host has a user and a password, and there is an API key: a request can carry only one of them"
        )
    if basic:
        headers["Authorization"] = f"Basic {basic}"
    if key:
        headers["Authorization"] = f"Bearer {_printable('the API key', key)}"
    _check(options)
    named = options.model if options.model != DEFAULT_MODEL or not model else model
    request = read_request(options, named, _extra_body(options.extra_body, options.omit))
    loop = _loop(options)
    goodput = " ".join(" ".join(options.goodput).split())
    if goodput:
        Goodput(goodput)
    slos = parse_slos(options.slo or [])
    for option, words in (("--slo", options.slo or []), ("--goodput", goodput.split())):
        for word in words:
            check_unit(option, word)
    if options.seed and options.order == "sequential" and not loop.open and not options.sample:
        raise InputError("--seed has no effect with --order sequential; remove one of them")
    transport = _transport(options, host, secrets)
    endpoint = _endpoint(options.endpoint, host or "", request.api)
    return Settings(
        host=check_host(host),
        endpoint=endpoint,
        data=_data_folder(options.data),
        request=request,
        server_model=model,
        server_dialect=dialect,
        realtime=_realtime(options, request, model, dialect) if request.api.is_websocket else None,
        unique=options.unique,
        reader=options.reader,
        requests=options.requests,
        retries=options.retries,
        keep_connections=options.connections == "keep",
        shuffle=options.order == "shuffle" or bool(options.order is None and options.seed and not loop.open),
        sample=options.sample,
        mix=options.mix.strip(),
        seed=options.seed,
        timeouts=Timeouts(options.connect_timeout, options.stall_timeout, options.total_timeout),
        transport=transport,
        loop=loop,
        warmup_requests=options.warmup_requests,
        warmup_time=options.warmup_time,
        trim_start=options.trim_start,
        trim_end=options.trim_end,
        normalizer=options.normalizer,
        slos=slos,
        goodput=goodput,
        allow_client_bound=options.allow_client_bound,
        allow_lost_workers=options.allow_lost_workers,
        searching=False,
        results=Path(options.results).expanduser() if options.results else None,
        metadata=_metadata(options.metadata),
        given={o.dest: getattr(options, o.dest) for o in OPTIONS if (o.in_run_json or o.comparable) and not o.secret},
        headers=headers,
        # Split into words, because a server may repeat a token without the "Bearer" before it.
        secrets=(
            *([key] if key else []),
            *_parts_of(basic),
            *_parts_of(transport.proxy_basic),
            *(word for word in (*_words_of(headers), *secrets_in(endpoint)) if len(word) >= MIN_SECRET),
        ),
    )


def _realtime(options: Namespace, request: RequestSettings, server_model: str, found: str) -> RealtimeOptions:
    """Read the options of realtime sessions. `server_model`: the server's only model; `found`: the dialect of a trial
    session; both empty if unknown. Raises InputError."""
    server_vad = options.turn_detection == "server_vad"
    dialect = DIALECTS.get(options.realtime_dialect)
    if dialect is not None and server_vad and not dialect.has_vad:
        raise InputError(f"--turn-detection server_vad does not work with {dialect.name}: remove it")
    if server_vad and not options.trailing_silence:
        raise InputError(
            "--turn-detection server_vad needs silence to detect the end of a turn: add --trailing-silence 1"
        )
    if dialect is not None and dialect.alone and options.utterances_per_session > 1:
        raise InputError(f"--utterances-per-session: a session of {dialect.name} has one transcript; remove the option")
    return RealtimeOptions(
        dialect=options.realtime_dialect,
        packet_s=options.packet_ms / 1e3,
        pace=options.pace,
        silence_s=options.trailing_silence,
        server_vad=server_vad,
        utterances=options.utterances_per_session,
        # The server's model may be named like DEFAULT_MODEL.
        model=server_model if request.fields.model == DEFAULT_MODEL else request.fields.model,
        language=request.fields.language,
        found=found,
    )


def _transport(options: Namespace, host: str | None, secrets: Secrets) -> Transport:
    if options.proxy:
        proxy, basic = options.proxy, secrets.proxy_basic if options.proxy == secrets.proxy else ""
    else:
        proxy, basic = split_proxy(proxy_of_environment(check_host(host)))
    if proxy:
        parts = _place(proxy)
        if parts is None or parts.scheme != "http":
            raise InputError(f"the proxy {_shown(proxy)} is not an address such as http://proxy:3128")
        proxy = f"http://{parts.netloc}"
    upstream = _upstream(options.upstream, check_host(host))
    if upstream and proxy:
        raise InputError(f"--upstream and the proxy {proxy} exclude each other; remove one of them")
    return read_transport(
        check_host(host),
        options.ca,
        options.cert,
        insecure=options.insecure,
        proxy=proxy,
        proxy_basic=basic,
        upstream=upstream,
    )


def _upstream(words: str, host: str) -> tuple[tuple[str, int], ...]:
    """Names or addresses with ports; the default port is that of the host. Raises InputError."""
    usual = urlsplit(host).port or PORTS[urlsplit(host).scheme]
    upstream = []
    for word in filter(None, map(str.strip, words.split(","))):
        place = _place(f"//{word}")
        if place is None or place.netloc != word or "@" in word:
            pasted = _place(word) if "://" in word and "@" not in word else None
            cure = f": use {pasted.netloc}" if pasted else ""
            raise InputError(f"--upstream {_shown(word)} is not an address such as 10.0.0.7:30000{cure}")
        upstream.append((place.hostname or "", place.port or usual))
    return tuple(upstream)


def _place(url: str) -> SplitResult | None:
    """The parts of an address with a host and, if it has one, a valid port; None for others."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:  # unmatched brackets, or an invalid port
        return None


def check_paths(paths: Mapping[str, str | None]) -> None:
    """Raise InputError if an option names a file or folder that cannot even be looked up, because its name is too long
    or a folder above it is closed. `paths`: options and their values."""
    for option, value in paths.items():
        word = value or ""
        try:
            Path(word).expanduser().stat()
        except (FileNotFoundError, NotADirectoryError):
            pass  # other checks decide whether it must exist
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error  # for a null byte, which a form can contain
            raise InputError(f"{option} {word[:PATH_CHARS]}: {why}") from None


PATH_CHARS = 200
"""Maximum length of an invalid path in a message."""


def _check(options: Namespace) -> None:
    check_paths({"--data": options.data, "--results": options.results, "--arrival-trace": options.arrival_trace})
    for option in (*OPTIONS, *SHAPE_OPTIONS, *SEARCH_OPTIONS):
        if hasattr(options, option.dest):  # those of a load shape are there if its locustfile is
            option.verify(getattr(options, option.dest))
    if options.mix.strip():
        parse_mix(options.mix)


def _loop(options: Namespace) -> Loop:
    word = str(options.request_rate).strip()
    try:
        rate = float(word) if word else None
    except ValueError:
        raise InputError(f"--request-rate must be a number of requests per second, not {word!r}") from None
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
        raise InputError(f"--rate-stages {loop.stages}: at least one rate must be above 0")
    if loop.make() is None and options.arrivals != "poisson":
        raise InputError(f"--arrivals {options.arrivals} needs a rate: add --request-rate or --rate-stages")
    return loop


def check_writable(folder: Path) -> None:
    """Raise InputError if a folder is not writable and cannot be created."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".asr-load-"):
            pass
    except OSError as error:
        why = f"{existing} is not a writable folder ({error.strerror})"
        raise InputError(f"--results {folder}: {why}") from None


def split_host(host: str | None) -> tuple[str | None, str]:
    """Split an address into the address without user and password, and these encoded for basic authentication (empty
    without any)."""
    scheme, separator, rest = (host or "").partition("://")
    place, slash, path = rest.partition("/")
    known, at, place = place.rpartition("@")
    if not at:
        return host, ""
    user, _, password = known.partition(":")
    basic = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return f"{scheme}{separator}{place}{slash}{path}", basic


def split_proxy(word: str) -> tuple[str, str]:
    """Split the address of a proxy like `split_host`; its scheme is optional."""
    proxy, basic = split_host(word if "://" in word or not word else f"http://{word}")
    return proxy or "", basic


def without_credentials(text: str) -> str:
    """The text without users and passwords in its addresses."""
    return re.sub(r"//\S*@", "//***@", text)


def _words_of(headers: dict[str, str]) -> list[str]:
    return [word for value in headers.values() for word in value.split()]


def _parts_of(basic: str) -> list[str]:
    """The secrets in a header of basic authentication: its word, and the password in it."""
    return [basic, base64.b64decode(basic).decode().partition(":")[2]] if basic else []


def check_host(host: str | None) -> str:
    """Return the address of a server, scheme://host:port, without its path, which check_host_path checks. Addresses for
    WebSockets become those for HTTP. Raises InputError if it is not an address."""
    if not host:
        raise InputError("--host is missing: give the address of the server, for example --host http://127.0.0.1:30000")
    if (address := _address(host)) is None or "@" in urlsplit(host).path:
        shown = _shown(host)
        meant = _address(f"http://{shown}") if "://" not in host else None
        cure = f": {REPLICAS}" if "," in shown else f": use --host {meant}" if meant else ""
        raise InputError(f"--host {shown} is not an address such as http://127.0.0.1:30000{cure}")
    return address


def _shown(address: str) -> str:
    """An address, with or without a scheme, in a form that can be printed."""
    whole = address if "://" in address else f"//{address}"
    return without_secrets(without_credentials(whole)).removeprefix("//")


_HTTP = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def _address(url: str) -> str | None:
    parts = _place(url)
    return f"{_HTTP[parts.scheme]}://{parts.netloc}" if parts and parts.scheme in _HTTP else None


def _endpoint(path: str, host: str, api: type[Api]) -> str:
    """The path of requests, with a query if it has one. Raises InputError."""
    endpoint = check_endpoint(path, api) or api.path
    check_host_path(host, check_host(host), endpoint, api)
    return endpoint


def _metadata(words: list[str]) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--metadata needs KEY=VALUE, such as gpu=H100, not {word!r}")
        if key.strip() in metadata:
            raise InputError(f"--metadata {key.strip()} is given twice")
        metadata[key.strip()] = value.strip()
    return metadata


_HEADER = re.compile(r"\s*([\w-]+)\s*[=:](.*)", re.ASCII | re.DOTALL)


def _header(word: str) -> tuple[str, str]:
    match = _HEADER.fullmatch(word)
    if match is None:
        # Print only the name, because the value may be a secret.
        name = re.split("[=:]", word)[0]
        raise InputError(f"--header needs 'NAME: VALUE' or NAME=VALUE, not {name[:40]!r} …")
    return match[1], _printable(f"--header {match[1]}", match[2].strip())


def _printable(what: str, value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise InputError(f"{what} contains characters that are not allowed in a header")
    return value


def _extra_body(text: str, omit: str) -> dict[str, Any]:
    try:
        extra = decode(text, dict[str, Any]) if text else {}
    except Malformed as error:
        raise InputError(f"--extra-body is not a JSON object: {error}") from error
    for name in filter(None, map(str.strip, omit.split(","))):
        if extra.get(name) is not None:
            raise InputError(f"--omit removes {name!r}, but --extra-body sets it; use only one of them")
        extra[name] = None
    return extra
