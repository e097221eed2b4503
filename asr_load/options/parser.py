"""Define the options that asr-load adds to Locust's."""

from __future__ import annotations

from argparse import Action
from typing import Any, Protocol

from locust.argument_parser import LocustArgumentParser

from asr_load.audio.payload import APIS
from asr_load.options.presets import PRESET_NAMES
from asr_load.results.normalizers import NORMALIZERS
from asr_load.schedule.arrivals import KINDS
from asr_load.shipped import SAMPLE
from asr_load.stream.text_format import TEXT_FORMATS

UNIQUE = ["dither", "once", "none"]
ORDERS = ["sequential", "shuffle"]
CONNECTIONS = ["keep", "new"]
HTTP_VERSIONS = ["1.1"]
REALTIME_DIALECTS = ["auto", "vllm", "sglang", "omni", "openai"]
TURN_DETECTION = ["none", "server_vad"]
READERS = ["auto", "compiled", "python", "plain"]
APIS_OR_AUTO = ["auto", *APIS]
POSITIONS = ["before", "after"]
DEFAULT_MODEL = "default"
"""Model name that stands for the server's only model."""

DEFAULT_PROMPT = "Transcribe the audio. Answer with the transcript only."

GROUPS = {
    "Target": "the server, its API, and the request",
    "Realtime": "how --api realtime streams speech",
    "Data": "the clips, and how they are sent",
    "Load": "when requests are sent; -u limits how many are in flight",
    "Measuring": "what the metrics include",
    "Limits": "what the run must meet to pass; latencies in ms, or with a unit: 500, 500ms, 0.5s",
    "Output": "what is stored, and where",
    "Expert": "rarely needed",
}


def add_options(parser: LocustArgumentParser) -> None:
    """Add asr-load's options to Locust's parser. Use plain types, because Locust sends values to workers and pages.

    Second names are those of the serving benchmarks of vLLM, SGLang or NVIDIA.
    """
    add = option_group(parser, "Target", in_form=True)
    add(
        "--api",
        choices=APIS_OR_AUTO,
        default="auto",
        help="API of the endpoint (auto: that of --endpoint or of the preset, else chat)",
    )
    add(
        "--model",
        default=DEFAULT_MODEL,
        help="Model name in requests ('default': the only model that the server lists)",
    )
    add("--prompt", default=DEFAULT_PROMPT, help="Instruction sent with the audio; a preset replaces the default")
    add("--max-tokens", type=int, default=128, metavar="N", help="Maximum length of a response, in tokens")
    # Do not use the environment's key as default here, because Locust writes defaults into its page.
    add(
        "--api-key",
        default="",
        metavar="KEY",
        is_secret=True,
        help="API key, sent as a bearer token (default: OPENAI_API_KEY)",
    )
    add = option_group(parser, "Target")
    add(
        "--preset",
        choices=PRESET_NAMES,
        default="auto",
        help="API, prompt and output format for a family of models (auto: by the model's name)",
    )
    add(
        "--language",
        default="",
        metavar="L",
        help="Language of the speech, sent to the server: a name or a code (German, de)",
    )
    add("--system", default="", metavar="TEXT", help="System message of chat requests")
    add(
        "--prompt-position",
        choices=POSITIONS,
        default=None,
        help="Place the prompt before or after the audio (default: as in the preset, else after)",
    )
    add("--temperature", type=float, default=0.0, metavar="T", help="Sampling temperature, from 0 (default) to 2")
    add(
        "--text-format",
        choices=TEXT_FORMATS,
        default="auto",
        help="Output format of the model; its envelope is removed from transcripts",
    )
    add(
        "--endpoint",
        default="",
        metavar="PATH",
        help="Path that requests are sent to, instead of the API's own (for example behind a gateway)",
    )
    add(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="Additional HTTP header, also as NAME=VALUE; repeatable",
    )
    add(
        "--extra-body",
        "--extra-request-body",
        default="",
        metavar="JSON",
        help="JSON object to merge into the request body",
    )
    add("--ca", default="", metavar="FILE", help="CA certificates to trust, as a PEM file or a folder")
    add("--cert", default="", metavar="FILE", help="Client certificate and key (PEM), in one file or as CERT,KEY")
    add("--insecure", action="store_true", help="Accept any server certificate without verifying it")
    add(
        "--proxy",
        default="",
        metavar="URL",
        help="HTTP proxy (default: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY)",
    )
    add(
        "--upstream",
        default="",
        metavar="HOST:PORT,…",
        help="Replicas to connect to in turn, instead of the address of --host",
    )
    add("--omit", default="", metavar="FIELD,…", help="Fields to leave out of the request body")

    add(
        "--ready-timeout",
        type=float,
        default=0.0,
        metavar="S",
        help="Wait up to S seconds for the server to become ready",
    )
    add("--flush-cache", action="store_true", help="Empty SGLang's cache before the test")
    add(
        "--no-preflight",
        action="store_true",
        help="Start without a trial request, and without asking the server for its model",
    )

    _add_realtime(parser)

    add = option_group(parser, "Data", in_form=True)
    add("--data", "--dataset-path", default=SAMPLE, metavar="DIR", help="Folder of prepared clips")
    add(
        "--unique",
        choices=UNIQUE,
        default="dither",
        help="Vary the audio so that server caches miss: per request (dither), per test (once) or not (none)",
    )
    add = option_group(parser, "Data")
    add(
        "--order",
        choices=ORDERS,
        default=None,
        help="Order of the clips in each pass (default: sequential; in a closed loop with --seed: shuffle)",
    )
    add("--sample", type=int, default=0, metavar="N", help="Send only N clips, chosen by --seed (default: all)")
    add(
        "--mix",
        default="",
        metavar="0-5:70,5-:30",
        help="Clip lengths to send: ranges in seconds, each with its weight in the load",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="Random seed for --sample, for shuffling, and for the arrivals of an open loop",
    )

    add = option_group(parser, "Load", in_form=True)
    # A string, because an empty field of the form means a closed loop.
    add(
        "--request-rate",
        default="",
        metavar="R",
        help="Open loop: requests per second of all workers together (empty: closed loop)",
    )
    add("--arrivals", choices=KINDS, default="poisson", help="Arrival process of an open loop")
    add(
        "--requests",
        "--num-prompts",
        type=int,
        default=0,
        metavar="N",
        help="Stop after N requests, not counting --warmup-requests (default: no limit)",
    )
    add = option_group(parser, "Load")
    add(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="Retry a request up to N times after 429 or 503 with a Retry-After header",
    )
    add(
        "--burstiness",
        type=float,
        default=1.0,
        metavar="B",
        help="Burstiness of gamma arrivals: 1 is Poisson, less comes in bursts, more is more even",
    )
    add(
        "--rate-stages",
        default="",
        metavar="60s:5,30s:5-20,…",
        help="Open loop whose rate changes: constant stages and linear ramps",
    )
    add(
        "--arrival-trace",
        default="",
        metavar="FILE",
        help="Open loop that replays arrival times, in seconds, from a .jsonl or .csv file",
    )
    add("--trace-speed", type=float, default=1.0, metavar="X", help="Replay the trace X times as fast")

    _add_measuring_and_output(parser)


def _add_realtime(parser: LocustArgumentParser) -> None:
    add = option_group(parser, "Realtime", in_form=True)
    add(
        "--realtime-dialect",
        choices=REALTIME_DIALECTS,
        default="auto",
        help="Realtime protocol of the server (auto: detect from its first event)",
    )
    add("--packet-ms", type=float, default=100.0, metavar="MS", help="Speech in each packet, in milliseconds")
    add(
        "--pace",
        type=float,
        default=1.0,
        metavar="X",
        help="Speed of the speech: 1 is real time, 2 twice as fast, 0 as fast as the server accepts it",
    )
    add = option_group(parser, "Realtime")
    add("--trailing-silence", type=float, default=0.0, metavar="S", help="Send S seconds of low noise after the speech")
    add(
        "--turn-detection",
        choices=TURN_DETECTION,
        default="none",
        help="Who ends a turn: the client (none) or the server's voice activity detection (server_vad)",
    )
    add("--utterances-per-session", type=int, default=1, metavar="N", help="Send N clips over each connection")


def _add_measuring_and_output(parser: LocustArgumentParser) -> None:
    add = option_group(parser, "Measuring", in_form=True)
    add(
        "--warmup-requests",
        "--num-warmups",
        type=int,
        default=0,
        metavar="N",
        help="Exclude the first N requests from all metrics",
    )
    add(
        "--warmup-time",
        type=float,
        default=0.0,
        metavar="S",
        help="Exclude requests that start in the first S seconds from all metrics",
    )
    add = option_group(parser, "Measuring")
    add(
        "--trim-start",
        type=float,
        default=0.0,
        metavar="S",
        help="Exclude requests that start in the first S seconds after warm-up from the summary",
    )
    add(
        "--trim-end",
        type=float,
        default=0.0,
        metavar="S",
        help="Exclude requests that start in the last S seconds from the summary",
    )

    add(
        "--normalizer",
        choices=NORMALIZERS,
        default="whisper",
        help="Text normalizer applied before computing WER and CER",
    )

    add = option_group(parser, "Limits", in_form=True)
    add(
        "--slo",
        action="append",
        default=[],
        metavar="METRIC:STAT:LIMIT",
        help="Limit over all requests, for example ttft:p95:500; repeatable",
    )
    add(
        "--goodput",
        nargs="+",
        default=[],
        metavar="METRIC:LIMIT",
        help="Limits that each request must meet to count as goodput, for example ttft:500 tpot:40",
    )
    add = option_group(parser, "Limits")
    add("--allow-client-bound", action="store_true", help="Let a client-bound run pass if its SLOs hold")
    add("--allow-lost-workers", action="store_true", help="Let a run that lost a worker pass if its SLOs hold")

    add = option_group(parser, "Output")
    add(
        "--results",
        "--result-dir",
        default="",
        metavar="DIR",
        help="Folder for the results (default: results/DATE-TIME)",
    )
    add(
        "--metadata",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="Note to store with the results, for example gpu=H100; repeatable",
    )

    add = option_group(parser, "Expert")
    add(
        "--connect-timeout",
        type=float,
        default=10.0,
        metavar="S",
        help="Time limit for opening a connection with all its handshakes, in seconds",
    )
    add(
        "--stall-timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="Time limit without a byte from the server, in seconds",
    )
    add("--total-timeout", type=float, default=600.0, metavar="S", help="Time limit for a whole response, in seconds")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="URL",
        help="Another server that may receive the API key and headers; repeatable",
    )
    add(
        "--fleet-token-file",
        default="",
        metavar="FILE",
        help="File with the token that master and workers share (default: ASR_LOAD_FLEET_TOKEN)",
    )
    add(
        "--web-allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="Another host name at which the web UI may be opened; repeatable",
    )
    add(
        "--connections",
        choices=CONNECTIONS,
        default="keep",
        help="Reuse connections (keep), or open one for each request (new)",
    )
    add("--http-version", choices=HTTP_VERSIONS, default=HTTP_VERSIONS[0], help="HTTP version of the requests")
    add(
        "--reader",
        choices=READERS,
        default="auto",
        help="Implementation that reads responses (auto: compiled where available, else python)",
    )


class _Add(Protocol):
    def __call__(self, *flags: str, is_secret: bool = False, **words: Any) -> Action: ...


def option_group(parser: LocustArgumentParser, title: str, *, in_form: bool = False) -> _Add:
    """Return a function that adds options to a group of GROUPS; with `in_form`, they also appear in the web form."""
    present = next((group for group in parser._action_groups if group.title == title), None)
    group = present or parser.add_argument_group(title, GROUPS[title])

    def add(*flags: str, is_secret: bool = False, **words: Any) -> Action:
        action: Action = group.add_argument(*flags, **words)
        # LocustArgumentParser.add_argument sets these, but does not support groups.
        vars(action).update(include_in_web_ui=in_form, is_secret=is_secret, is_required=False, is_multiple=False)
        return action

    return add
