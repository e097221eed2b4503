"""The command line: `python scripts/serve.py --port 30000 [--engine moonshine|scripted] ...`."""

import argparse
import contextlib
import errno
import gc
import math
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from asr_server.engine import Engine

# Packages that only the server requires are imported late, so that a missing one is reported in one line.

_SCRIPTED = {
    "tokens": 64,
    "ttft_ms": 200.0,
    "itl_ms": 20.0,
    "tokens_per_chunk": 1,
    "text": None,
    "slots": 0,
    "sender": "auto",
    "final_ms": 100.0,
}
_MOONSHINE = {"threads": None}
_KEY_VARIABLE = "ASR_SERVER_API_KEY"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _fail(f"{message} (--help lists the options)")


def _fail(message: str) -> NoReturn:
    """Print one line and exit with code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            limits = f"at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {limits}, got {value}")
        return value

    whole_number.__name__ = "whole number"  # argparse prints it
    return whole_number


def _duration(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        description="Start an OpenAI-compatible speech server to test against. It uses SGLang's wire format.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="name or IP address to listen on (default: 127.0.0.1)")
    add("--port", type=_whole(0, 65535), default=30000, help="port to listen on; 0 takes a free one (default: 30000)")
    add(
        "--engine",
        choices=("moonshine", "scripted"),
        default="moonshine",
        help="recognize speech (moonshine), or send text on an exact schedule (scripted) (default: moonshine)",
    )
    add("--model", default="default", help="model name in /v1/models; requests may use any name (default: default)")
    add("--ssl-certfile", type=Path, metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    add(
        "--ssl-keyfile",
        type=Path,
        metavar="FILE",
        help="private key of the certificate (PEM), if it is in a separate file",
    )
    add("--api-key", help=f"bearer token that requests must carry (default: {_KEY_VARIABLE})")
    add("--realtime", choices=("vllm", "sglang", "omni", "openai"), help="serve /v1/realtime in this dialect")
    add(
        "--max-queued-requests",
        type=_whole(0),
        metavar="N",
        help="largest number of requests that may wait for a slot (default: no limit)",
    )
    add(
        "--stamps",
        type=Path,
        metavar="FILE",
        help="write one JSON line for each request, with the time at which each chunk was sent",
    )

    recogniser = parser.add_argument_group("--engine moonshine: a real recognizer")
    add = recogniser.add_argument
    add(
        "--threads",
        type=_whole(1),
        metavar="K",
        help="number of requests served in parallel (default: cores - 1, at least 1)",
    )

    scripted = parser.add_argument_group("--engine scripted: text on an exact schedule")
    add = scripted.add_argument
    add("--tokens", type=_whole(0), help="tokens in each response (default: 64)")
    add(
        "--ttft-ms",
        type=_duration,
        help="time from the last byte of the request to the first token, in ms (default: 200)",
    )
    add("--itl-ms", type=_duration, help="time between two tokens, in ms (default: 20)")
    add("--tokens-per-chunk", type=_whole(1), help="tokens in each chunk (default: 1)")
    add(
        "--final-ms",
        type=_duration,
        help="realtime: time from the end of the audio to the final text, in ms (default: 100)",
    )
    add("--text", type=Path, metavar="FILE", help="text file whose words are sent, in a loop")
    add("--slots", type=_whole(0), metavar="K", help="number of requests served in parallel (default: 0, no limit)")
    add(
        "--sender",
        choices=("auto", "compiled", "python"),
        help="send chunks from a compiled thread, for thousands of streams, or from the event loop (default: auto)",
    )

    faults = parser.add_argument_group("faults (a request can also ask for one with the header X-Fault)")
    add = faults.add_argument
    add(
        "--fault",
        action="append",
        default=[],
        metavar="NAME[=SHARE|@CLIP-ID]",
        help="inject a fault into all requests, a share of them (0 to 1), or those with this X-Clip-Id; repeatable",
    )
    add("--seed", type=int, default=0, help="random seed for the shares of --fault (default: 0)")
    add("--slow-s", type=_duration, default=5.0, help="delay of the fault slow-headers, in seconds (default: 5)")
    return parser


def _options(argv: list[str] | None) -> argparse.Namespace:
    options = _parser().parse_args(argv)
    fitting, others = (_SCRIPTED, _MOONSHINE) if options.engine == "scripted" else (_MOONSHINE, _SCRIPTED)
    for name in others:
        if getattr(options, name) is not None:
            _fail(f"--{name.replace('_', '-')} cannot be used with --engine {options.engine}")
    for name, default in fitting.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    if "://" in options.host:
        _fail(f"--host {options.host} is a URL: use a name or an IP address to listen on, for example 127.0.0.1")
    if options.ssl_keyfile and not options.ssl_certfile:
        _fail("--ssl-keyfile needs --ssl-certfile")
    if options.engine == "scripted" and options.max_queued_requests is not None and not options.slots:
        _fail("--max-queued-requests needs --slots, because otherwise no request waits")
    options.api_key = options.api_key or os.environ.get(_KEY_VARIABLE)
    return options


def main(argv: list[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then exit with 128 + the signal's number; exit with 2 if the server cannot
    start."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    options = _options(argv)
    try:
        _serve(options)
    except ModuleNotFoundError as error:
        files = "-r requirements-server.txt -r requirements-recognizer.txt"
        _fail(f"{error.name} is missing: pip install 'asr-load[server]' (in the checkout: pip install {files})")


def _leave(number: int, _: object) -> NoReturn:
    """End the process immediately: before it serves there is nothing to clean up, and uvicorn reraises a signal after
    it has stopped."""
    with contextlib.suppress(OSError):
        os.write(2, f"asr_server: stopped ({signal.Signals(number).name})\n".encode())
    os._exit(128 + number)


def _serve(options: argparse.Namespace) -> None:
    import uvicorn

    from asr_server.app import build_app
    from asr_server.chunk_sender import ChunkSender, compiled
    from asr_server.exchange import Service, Stamps
    from asr_server.faults import FaultPlan
    from asr_server.metrics import Metrics
    from asr_server.slots import Slots
    from asr_server.transport import Protocol, Server, WebSocketProtocol, listen, over_tls

    if options.sender == "compiled" and not compiled:
        _fail("--sender compiled: not compiled on this machine; use auto or python")
    try:
        faults = FaultPlan(options.fault, options.seed)
        engine = _scripted(options) if options.engine == "scripted" else _moonshine(options)
        stamps = Stamps(options.stamps) if options.stamps else None
    except (ValueError, OSError) as error:
        _fail(str(error))
    slots = Slots(engine.slots, options.max_queued_requests)
    metrics = Metrics(options.model, slots)
    service = Service(engine, slots, metrics, stamps, stamp_events=engine.name == "scripted", slow_s=options.slow_s)
    service.chunk_sender = ChunkSender() if compiled and options.sender in ("auto", "compiled") else None
    try:
        sock = listen(options.host, options.port)
    except OSError as error:
        cure = "; choose another --port, or 0 for a free one" if error.errno == errno.EADDRINUSE else ""
        _fail(f"cannot listen on {options.host}:{options.port}: {error.strerror or error}{cure}")
    tls = _tls(options)
    config = uvicorn.Config(
        build_app(service, options.model, faults, options.api_key, options.realtime),
        http=over_tls(tls) if tls else Protocol,  # type: ignore[arg-type]
        loop="uvloop",
        ws=WebSocketProtocol if options.realtime else "none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        proxy_headers=False,  # otherwise each request has an extra layer, for addresses that are not used
        timeout_graceful_shutdown=1,
    )
    service.server = Server(config, on_ready=lambda: print(_ready_lines(options, sock), flush=True))
    _allow_many_files()
    gc.freeze()  # imported objects stay: without this, streams would wait while full collections traverse them
    try:
        service.server.run([sock])
    finally:
        if service.chunk_sender is not None:
            service.chunk_sender.close()


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.ssl_certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile, password=lambda: "")
    except (OSError, ValueError) as error:
        _fail(f"--ssl-certfile {options.ssl_certfile} is not a certificate with its key (PEM): {error}")
    return context


def _allow_many_files() -> None:
    """Raise the limit of open files to the maximum: a stream takes two, and the default is often only 1,024."""
    import resource  # not on every system

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has another limit that it does not report
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _ready_lines(options: argparse.Namespace, sock: socket.socket) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    line = f"asr_server: {options.engine} on http{'s' * bool(options.ssl_certfile)}://{host}:{sock.getsockname()[1]}"
    if options.engine == "scripted":
        line += "\nIt sends a fixed text and ignores the audio, so WER has no meaning."
    return line


def _scripted(options: argparse.Namespace) -> "Engine":
    from asr_server.scripted import DEFAULT_TEXT, ScriptedEngine

    words = (options.text.read_text(encoding="utf-8") if options.text else DEFAULT_TEXT).split()
    if not words:
        raise ValueError(f"{options.text} has no words")
    return ScriptedEngine(
        tokens=options.tokens,
        ttft=options.ttft_ms / 1000,
        itl=options.itl_ms / 1000,
        tokens_per_chunk=options.tokens_per_chunk,
        words=words,
        slots=options.slots,
        final=options.final_ms / 1000,
    )


def _moonshine(options: argparse.Namespace) -> "Engine":
    from asr_server.moonshine import ModelMissingError, MoonshineEngine

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        return MoonshineEngine(options.threads or max(1, cores - 1))
    except ModelMissingError as error:
        raise ModuleNotFoundError(name=str(error)) from None
