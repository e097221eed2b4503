"""Every option that is added to Locust's."""

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
"""A name for whatever the server has."""

DEFAULT_PROMPT = "Transcribe the audio. Answer with the transcript only."

GROUPS = {
    "Target": "what is asked",
    "Realtime": "how speech is sent with --api realtime",
    "Data": "what is sent",
    "Load": "when it is sent; -u is how many streams at once",
    "Measuring": "what is in the figures",
    "Limits": "what makes the run pass; latencies in ms, or with a unit: 500, 500ms, 0.5s",
    "Output": "what is kept",
    "Expert": "what is seldom needed",
}


def add_options(parser: LocustArgumentParser) -> None:
    """Add the harness's options to Locust's parser. Plain types only: Locust sends the values to workers and pages.

    A second name is that of the serving benchmarks of vLLM, SGLang or NVIDIA.
    """
    add = option_group(parser, "Target", in_form=True)
    add(
        "--api",
        choices=APIS_OR_AUTO,
        default="auto",
        help="API of the endpoint (auto: that of --endpoint or --preset, else chat)",
    )
    add("--model", default=DEFAULT_MODEL, help="Model to ask for, one that the server lists (default: its only one)")
    add("--prompt", default=DEFAULT_PROMPT, help="Text beside the audio")
    add("--max-tokens", type=int, default=128, metavar="N", help="Longest answer, in tokens")
    # The key of the environment is no default here: Locust writes defaults into its page.
    add("--api-key", default="", metavar="KEY", is_secret=True, help="Bearer token (default: OPENAI_API_KEY)")
    add = option_group(parser, "Target")
    add("--preset", choices=PRESET_NAMES, default="auto", help="How its model is asked (auto: by the model's name)")
    add(
        "--language",
        default="",
        metavar="L",
        help="Language of the speech, sent to the server: name or code (German, de)",
    )
    add("--system", default="", metavar="TEXT", help="System message of a chat")
    add("--prompt-position", choices=POSITIONS, default=None, help="Of the prompt and the audio (default: after it)")
    add("--temperature", type=float, default=0.0, metavar="T", help="Of sampling")
    add("--text-format", choices=TEXT_FORMATS, default="auto", help="What the model puts around a transcript")
    add("--endpoint", default="", metavar="PATH", help="Path to post to in place of the API's own, behind a gateway")
    add("--header", action="append", default=[], metavar="'K: V'", help="Header to send, also as K=V; repeatable")
    add("--extra-body", "--extra-request-body", default="", metavar="JSON", help="Object merged into the body")
    add("--ca", default="", metavar="FILE", help="Certificates of the authorities to trust (PEM)")
    add("--cert", default="", metavar="FILE", help="Own certificate and key, in one file or as CERT,KEY (PEM)")
    add("--insecure", action="store_true", help="Trust any certificate")
    add("--proxy", default="", metavar="URL", help="HTTP proxy (default: HTTPS_PROXY, HTTP_PROXY, NO_PROXY)")
    add("--upstream", default="", metavar="HOST:PORT,…", help="Replicas to connect to in turn, in place of --host")
    add("--omit", default="", metavar="FIELD,…", help="Fields to leave out of the body")

    add("--ready-timeout", type=float, default=0.0, metavar="S", help="Wait so long for the server to be ready")
    add("--flush-cache", action="store_true", help="Let SGLang empty its cache before the test")
    add("--no-preflight", action="store_true", help="Send no trial request, and ask for no model, before the test")

    _add_realtime(parser)

    add = option_group(parser, "Data", in_form=True)
    add("--data", "--dataset-path", default=SAMPLE, metavar="DIR", help="Prepared folder of clips")
    add(
        "--unique",
        choices=UNIQUE,
        default="dither",
        help="dither: no bytes are sent twice; once: none of an earlier test",
    )
    add = option_group(parser, "Data")
    add("--order", choices=ORDERS, default=None, help="Of clips in a pass (default: sequential; shuffle with a --seed)")
    add("--sample", type=int, default=0, metavar="N", help="Send N clips of the data, chosen by the seed (0: all)")
    add("--mix", default="", metavar="0-5:70,5-:30", help="Lengths in seconds, each with its weight in the load")
    add("--seed", type=int, default=0, metavar="N", help="Of the sample, the shuffle, and an open loop's arrivals")

    add = option_group(parser, "Load", in_form=True)
    # Words, not numbers: an empty field of the form is a closed loop.
    add("--request-rate", default="", metavar="R", help="Requests per second of the whole fleet (empty: closed loop)")
    add("--arrivals", choices=KINDS, default="poisson", help="How they arrive at that rate")
    add(
        "--requests",
        "--num-prompts",
        type=int,
        default=0,
        metavar="N",
        help="Send N, then end; 0: until stopped",
    )
    add = option_group(parser, "Load")
    add("--retries", type=int, default=0, metavar="N", help="Send what 429 or 503 with Retry-After refuse again")
    add("--burstiness", type=float, default=1.0, metavar="B", help="Of gamma arrivals: 1 is Poisson, less is bursts")
    add("--rate-stages", default="", metavar="60s:5,30s:5-20,…", help="A rate that changes: holds and ramps")
    add("--arrival-trace", default="", metavar="FILE", help="Arrival times to replay (jsonl, csv)")
    add("--trace-speed", type=float, default=1.0, metavar="X", help="How many times as fast")

    _add_measuring_and_output(parser)


def _add_realtime(parser: LocustArgumentParser) -> None:
    add = option_group(parser, "Realtime", in_form=True)
    add("--realtime-dialect", choices=REALTIME_DIALECTS, default="auto", help="The server's (auto: by what it says)")
    add("--packet-ms", type=float, default=100.0, metavar="MS", help="Speech in a packet")
    add("--pace", type=float, default=1.0, metavar="X", help="1: as spoken, 2: twice as fast, 0: as fast as it goes")
    add = option_group(parser, "Realtime")
    add("--trailing-silence", type=float, default=0.0, metavar="S", help="Seconds of low noise after the speech")
    add("--turn-detection", choices=TURN_DETECTION, default="none", help="Whether the server finds the ends of turns")
    add("--utterances-per-session", type=int, default=1, metavar="N", help="Clips on one connection")


def _add_measuring_and_output(parser: LocustArgumentParser) -> None:
    add = option_group(parser, "Measuring", in_form=True)
    add("--warmup-requests", "--num-warmups", type=int, default=0, metavar="N", help="First N in no figure")
    add("--warmup-time", type=float, default=0.0, metavar="S", help="Nor those begun in the first S seconds")
    add = option_group(parser, "Measuring")
    add("--trim-start", type=float, default=0.0, metavar="S", help="The summary leaves out the first S seconds")
    add("--trim-end", type=float, default=0.0, metavar="S", help="The summary leaves out the last S seconds")

    add("--normalizer", choices=NORMALIZERS, default="whisper", help="How text is written alike before it is compared")

    add = option_group(parser, "Limits", in_form=True)
    add("--slo", action="append", default=[], metavar="METRIC:STAT:LIMIT", help="As ttft:p95:500; repeatable")
    add("--goodput", nargs="+", default=[], metavar="METRIC:LIMIT", help="For each request, as ttft:500 tpot:40")
    add = option_group(parser, "Limits")
    add("--allow-client-bound", action="store_true", help="SLOs may pass in a client-bound run")
    add("--allow-lost-workers", action="store_true", help="SLOs may pass though a worker was lost")

    add = option_group(parser, "Output")
    add("--results", "--result-dir", default="", metavar="DIR", help="Of the run (default: results/DATE-TIME)")
    add("--metadata", action="append", default=[], metavar="KEY=VALUE", help="To keep with the figures; repeatable")

    add = option_group(parser, "Expert")
    add("--connect-timeout", type=float, default=10.0, metavar="S", help="Seconds to connect, with all handshakes")
    add("--stall-timeout", type=float, default=120.0, metavar="S", help="Seconds without a byte, the first included")
    add("--total-timeout", type=float, default=600.0, metavar="S", help="Seconds for a whole answer")
    add("--allow-host", action="append", default=[], metavar="URL", help="Other server that key and headers may go to")
    add("--fleet-token-file", default="", metavar="FILE", help="Secret of master and workers, or ASR_LOAD_FLEET_TOKEN")
    add("--web-allow-host", action="append", default=[], metavar="NAME", help="Name that the web UI may be called by")
    add("--connections", choices=CONNECTIONS, default="keep", help="new: a connection for each request")
    add("--http-version", choices=HTTP_VERSIONS, default=HTTP_VERSIONS[0], help="Of requests")
    add("--reader", choices=READERS, default="auto", help="How answers are read")


class _Add(Protocol):
    def __call__(self, *flags: str, is_secret: bool = False, **words: Any) -> Action: ...


def option_group(parser: LocustArgumentParser, title: str, *, in_form: bool = False) -> _Add:
    """What adds options to a group of GROUPS; `in_form`: the web form has them too."""
    present = next((group for group in parser._action_groups if group.title == title), None)
    group = present or parser.add_argument_group(title, GROUPS[title])

    def add(*flags: str, is_secret: bool = False, **words: Any) -> Action:
        action: Action = group.add_argument(*flags, **words)
        # As LocustArgumentParser.add_argument does, which knows no groups.
        vars(action).update(include_in_web_ui=in_form, is_secret=is_secret, is_required=False, is_multiple=False)
        return action

    return add
