"""Check the options, and turn them into the settings of a test."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from asr_load.apis.dialects import DIALECTS
from asr_load.apis.realtime import RealtimeOptions
from asr_load.audio.sample import sample
from asr_load.engine.endpoint import Source
from asr_load.errors import InputError
from asr_load.http.transport import Timeouts, Transport, proxy_of_environment, read_transport
from asr_load.options.table import DEFAULT_MODEL, OPTIONS, SEARCH_OPTIONS, SHAPE_OPTIONS
from asr_load.results.slo import Goodput, Slo, check_unit, parse_slos
from asr_load.schedule.loop import Loop, parse_stages
from asr_load.schedule.mix import parse_mix
from asr_load.settings.credentials import Secrets
from asr_load.settings.host import check_endpoint, check_host, parse_proxy, parse_upstream, split_proxy, without_secrets
from asr_load.settings.request import RequestSettings, parse_extra_body, read_request
from asr_load.settings.server_metrics import NO_PAGES, metrics_pages
from asr_load.shipped import SAMPLE
from asr_load.text import Intake

PATH_CHARS = 200
"""Maximum length of an invalid path in a message."""


@dataclass(frozen=True)
class PlainOptions:
    """The options that a test uses with the value that was given, each by the name of its option."""

    unique: str
    reader: str
    requests: int
    retries: int
    sample: int
    seed: int
    warmup_requests: int
    warmup_time: float
    trim_start: float
    trim_end: float
    normalizer: str
    server_metrics_interval: float
    allow_client_bound: bool
    allow_lost_workers: bool


@dataclass(frozen=True)
class Settings(PlainOptions):
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
    keep_connections: bool
    shuffle: bool
    mix: str
    timeouts: Timeouts
    transport: Transport
    loop: Loop
    slos: list[Slo]
    goodput: str
    results: Path | None
    metadata: dict[str, str]
    given: dict[str, Any] = field(compare=False, repr=False)
    """The options that run.json holds or that a resumed search compares, as given, by their `dest`. May contain a
    secret, such as a proxy's password: `in_effect` is what may be shown."""
    metrics_pages: list[list[Source]] = field(repr=False)
    """For each metrics page of the server, the addresses to try in turn."""
    headers: dict[str, str] = field(repr=False)
    """May contain secrets, so they are never written anywhere."""
    secrets: tuple[str, ...] = field(repr=False)
    """Words to remove from all text that the server sends."""
    searching: bool = False
    """Whether a capacity search sets the load, step by step."""

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


def read_settings(
    options: Namespace, host: str | None, secrets: Secrets, model: str = "", dialect: str = ""
) -> Settings:
    """Check the options of a test. `secrets`: those for the server; `model`: the server's model, for options that name
    none; `dialect`: that in which the server accepted a trial session. Raises InputError."""
    headers = secrets.request_headers()
    _check(options)
    name = options.model if options.model != DEFAULT_MODEL or not model else model
    request = read_request(options, name, parse_extra_body(options.extra_body, options.omit))
    loop = _loop(options)
    slos, goodput = _limits(options)
    if options.seed and options.order == "sequential" and not loop.open and not options.sample:
        raise InputError("--seed has no effect with --order sequential; remove one of them")
    transport = _transport(options, host, secrets)
    endpoint = check_endpoint(options.endpoint, host or "", request.api)
    words = secrets.words(headers, transport.proxy_basic, endpoint)
    # Without a trial request, ask the server for nothing that was not named.
    pages = options.server_metrics or [NO_PAGES] * options.no_preflight
    return Settings(
        **{plain.name: getattr(options, plain.name) for plain in fields(PlainOptions)},
        host=check_host(host),
        endpoint=endpoint,
        data=_data_folder(options.data),
        request=request,
        server_model=model,
        server_dialect=dialect,
        realtime=_realtime(options, request, model, dialect) if request.api.is_websocket else None,
        keep_connections=options.connections == "keep",
        shuffle=options.order == "shuffle" or bool(options.order is None and options.seed and not loop.open),
        mix=options.mix.strip(),
        timeouts=Timeouts(options.connect_timeout, options.stall_timeout, options.total_timeout),
        transport=transport,
        loop=loop,
        slos=slos,
        goodput=goodput,
        results=Path(options.results).expanduser() if options.results else None,
        metadata=_metadata(options.metadata),
        given={o.dest: getattr(options, o.dest) for o in OPTIONS if (o.in_run_json or o.comparable) and not o.secret},
        metrics_pages=metrics_pages(pages, check_host(host), headers, transport, words),
        headers=headers,
        secrets=words,
    )


def _data_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    return sample() if name == SAMPLE and not folder.exists() else folder


def _limits(options: Namespace) -> tuple[list[Slo], str]:
    """Read --slo and --goodput. Raises InputError."""
    slos = options.slo or []
    goodput = " ".join(options.goodput).split()
    if goodput:
        Goodput(" ".join(goodput))
    parsed = parse_slos(slos)
    for option, words in (("--slo", slos), ("--goodput", goodput)):
        for word in words:
            check_unit(option, word)
    return parsed, " ".join(goodput)


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
    address = check_host(host)
    if options.proxy:
        proxy, basic = options.proxy, secrets.proxy_basic if options.proxy == secrets.proxy else ""
    else:
        proxy, basic = split_proxy(proxy_of_environment(address))
    proxy, upstream = parse_proxy(proxy), parse_upstream(options.upstream, address)
    if upstream and proxy:
        raise InputError(f"--upstream and the proxy {proxy} exclude each other; remove one of them")
    return read_transport(
        address,
        options.ca,
        options.cert,
        insecure=options.insecure,
        proxy=proxy,
        proxy_basic=basic,
        upstream=upstream,
    )


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
    loop.check()
    if not loop.open and options.arrivals != "poisson":
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
