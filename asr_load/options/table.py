"""The options that asr-load adds to Locust. Each is declared here, and nowhere else."""

from __future__ import annotations

from asr_load.apis import APIS
from asr_load.apis.envelopes import ENVELOPES, TEXT_FORMATS
from asr_load.apis.presets import PRESET_NAMES
from asr_load.options.option import Group, Option, Values, at_least, between, positive_seconds, seconds
from asr_load.schedule.arrivals import KINDS
from asr_load.shipped import SAMPLE
from asr_load.stream.record import Amount, Number

DEFAULT_MODEL = "default"
"""Model name that stands for the server's only model."""

DEFAULT_PROMPT = "Transcribe the audio. Answer with the transcript only."

GROUPS: tuple[Group, ...] = (
    Group(
        "Target",
        "the server, its API, and the request",
        (
            Option(
                "--api",
                help="API of the endpoint (auto: that of --endpoint or of the preset, else chat)",
                explanation=" ".join(f"`{api.name}` {api.summary}." for api in APIS.values()),
                choices=("auto", *APIS),
                default="auto",
                in_form=True,
                per_user_class=True,
                in_run_json="api",
                comparable=True,
            ),
            Option(
                "--model",
                help="Model name in requests ('default': the only model that the server lists)",
                explanation=(
                    "If the server lists several models, you must name one. The name may be missing from the list: "
                    "the trial request shows whether it works."
                ),
                default=DEFAULT_MODEL,
                in_form=True,
                per_user_class=True,
                in_run_json="model",
                comparable=True,
            ),
            Option(
                "--prompt",
                help="Instruction sent with the audio; a preset replaces the default",
                explanation=(
                    "A transcription's prompt is context, not an instruction, so `transcriptions` sends none unless"
                    " you set one."
                ),
                default=DEFAULT_PROMPT,
                in_form=True,
                per_user_class=True,
                in_run_json="prompt",
                comparable=True,
            ),
            Option(
                "--max-tokens",
                help="Maximum length of a response, in tokens",
                type=int,
                default=128,
                metavar="N",
                check=at_least(1),
                in_form=True,
                per_user_class=True,
                in_run_json="max_tokens",
                json_type=Number | None,
                comparable=True,
            ),
            Option(
                "--api-key",
                help="API key, sent as a bearer token (default: the variable OPENAI_API_KEY)",
                explanation="The key is written to no file, page or log.",
                metavar="KEY",
                in_form=True,
                secret=True,
            ),
            Option(
                "--preset",
                help="API, prompt and output format for a family of models (auto: by the model's name)",
                explanation=(
                    "[Models](models.md) lists the presets. An option that you set overrides the preset; `none` "
                    "uses no preset."
                ),
                choices=PRESET_NAMES,
                default="auto",
                per_user_class=True,
                in_run_json="preset",
                json_default="",
                comparable=True,
            ),
            Option(
                "--language",
                help="Language of the speech, sent to the server: a name or a code (German, de)",
                explanation=(
                    "Every [spelling](data.md#languages) of a language works. Transcriptions and realtime sessions "
                    "send the ISO 639-1 code. Chat requests have its English name in place of `{language}` in the "
                    "prompt. The normalizer does not depend on it, but on `prepare.py --language`."
                ),
                metavar="L",
                per_user_class=True,
                in_run_json="asked_language",
                comparable=True,
            ),
            Option(
                "--system",
                help="System message of chat requests",
                metavar="TEXT",
                per_user_class=True,
                in_run_json="system",
                comparable=True,
            ),
            Option(
                "--prompt-position",
                help="Place the prompt before or after the audio (default: as in the preset, else after)",
                choices=("before", "after"),
                default=None,
                per_user_class=True,
                in_run_json="prompt_position",
                json_default="after",
                comparable=True,
            ),
            Option(
                "--temperature",
                help="Sampling temperature, from 0 (default) to 2",
                type=float,
                default=0.0,
                metavar="T",
                check=between(0, 2),
                per_user_class=True,
                in_run_json="temperature",
                json_type=Amount,
                comparable=True,
            ),
            Option(
                "--text-format",
                help="Output format of the model; its envelope is removed from transcripts",
                explanation=(
                    f"{' '.join(f'`{name}`: {envelope.example}' for name, envelope in ENVELOPES.items())} `auto` "
                    "detects the envelope at the start of the text; `raw` keeps the text as it is. The record keeps "
                    "the original as `raw_text`, and `ttft_text` is the time to the first character after the "
                    "envelope."
                ),
                choices=TEXT_FORMATS,
                default="auto",
                per_user_class=True,
                in_run_json="text_format",
                json_default="raw",
                comparable=True,
            ),
            Option(
                "--endpoint",
                help="Path that requests are sent to, instead of the API's own (for example behind a gateway)",
                explanation=(
                    "Example: `--host http://gateway --endpoint /speech/v1/chat/completions`. `--host` itself may "
                    "end in `/v1`, `/v1/models` or the path of the API. If it has any other path, the error prints "
                    "the options to use. A user and password in `--host` become a header. Files and reports show a "
                    "key in the query of `--endpoint` as `***`."
                ),
                metavar="PATH",
                per_user_class=True,
                in_run_json="endpoint",
            ),
            Option(
                "--header",
                help="Additional HTTP header, also as NAME=VALUE; repeatable",
                values=Values.REPEATED,
                default=[],
                metavar="'NAME: VALUE'",
                in_run_json="header_names",
                json_type=list[str],
                secret=True,
            ),
            Option(
                "--extra-body",
                aliases=("--extra-request-body",),
                help="JSON object to merge into the request body",
                explanation="A field that is `null` is removed from the request.",
                metavar="JSON",
                per_user_class=True,
                in_run_json="extra_body_names",
                json_type=list[str],
                json_default=[],
                comparable=True,
                secret=True,
            ),
            Option(
                "--ca",
                help="CA certificates to trust, as a PEM file or a folder",
                explanation=(
                    "The default is the file in `REQUESTS_CA_BUNDLE` or `SSL_CERT_FILE`, or else the certificates "
                    "of the package certifi. In a fleet, each worker reads the files of `--ca` and `--cert` on its "
                    "own machine."
                ),
                metavar="FILE",
            ),
            Option(
                "--cert",
                help="Client certificate and key (PEM), in one file or as CERT,KEY",
                metavar="FILE",
            ),
            Option(
                "--insecure",
                help="Accept any server certificate without verifying it",
                explanation="The summary then says that the certificate was not verified.",
                values=Values.FLAG,
                default=False,
                in_run_json="insecure",
                json_type=bool,
            ),
            Option(
                "--proxy",
                help="HTTP proxy (default: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY)",
                explanation=(
                    "Example: `http://user:password@proxy:3128`. Only the proxy receives the password. HTTPS goes "
                    "through it by CONNECT. The environment's proxies are not used for servers on this machine."
                ),
                metavar="URL",
                in_run_json="proxy",
            ),
            Option(
                "--upstream",
                help="Replicas to connect to in turn, instead of the address of --host",
                explanation=(
                    "Requests and certificates still use the name in `--host`. Users are spread evenly over the "
                    "replicas, also in a fleet, and the summary shows the share and the latencies of each. A "
                    "replica that cannot be reached is skipped for ten seconds, with a warning. Without "
                    "`--upstream`, connections take turns over all addresses that DNS returns for `--host`."
                ),
                metavar="HOST:PORT,…",
                in_run_json="upstream",
                json_type=list[str],
                json_default=[],
            ),
            Option(
                "--omit",
                help="Fields to leave out of the request body",
                explanation=(
                    "For servers that reject fields they do not know, for example `--omit stream_options,max_tokens`."
                ),
                metavar="FIELD,…",
                per_user_class=True,
                in_run_json="omit",
                json_type=list[str],
                json_default=[],
                comparable=True,
            ),
            Option(
                "--ready-timeout",
                help="Wait up to S seconds for the server to become ready",
                explanation=(
                    "The test polls `/health`, or `/v1/models` if there is no `/health`, and prints what it waits for."
                ),
                type=float,
                default=0.0,
                metavar="S",
                check=seconds,
            ),
            Option(
                "--flush-cache",
                help="Empty SGLang's cache before the test",
                explanation=(
                    "It posts to `/flush_cache`, which SGLang accepts only when it is idle. SGLang keeps its cache "
                    "of audio embeddings: use `--unique` to make clips new."
                ),
                values=Values.FLAG,
                default=False,
            ),
            Option(
                "--no-preflight",
                help="Start without a trial request, and without asking the server for its model",
                explanation=(
                    "Otherwise the test sends one trial request that no metric or record includes, and a second one"
                    " if the first fails. If both fail, the test ends with exit code 2 and the server's error."
                ),
                values=Values.FLAG,
                default=False,
            ),
        ),
    ),
    Group(
        "Realtime",
        "how --api realtime streams speech",
        (
            Option(
                "--realtime-dialect",
                help="Realtime protocol of the server (auto: detect from its first event)",
                explanation="[Realtime](realtime.md) explains the options of this group.",
                choices=("auto", "vllm", "sglang", "omni", "openai"),
                default="auto",
                in_form=True,
                per_user_class=True,
                comparable=True,
            ),
            Option(
                "--packet-ms",
                help="Speech in each packet, in milliseconds",
                type=float,
                default=100.0,
                metavar="MS",
                check=between(5, 10_000),
                in_form=True,
                per_user_class=True,
                comparable=True,
            ),
            Option(
                "--pace",
                help="Speed of the speech: 1 is real time, 2 twice as fast, 0 as fast as the server accepts it",
                type=float,
                default=1.0,
                metavar="X",
                check=between(0, 100),
                in_form=True,
                per_user_class=True,
                comparable=True,
            ),
            Option(
                "--trailing-silence",
                help="Send S seconds of low noise after the speech",
                type=float,
                default=0.0,
                metavar="S",
                check=between(0, 60, " seconds"),
                per_user_class=True,
                comparable=True,
            ),
            Option(
                "--turn-detection",
                help="Who ends a turn: the client (none) or the server's voice activity detection (server_vad)",
                choices=("none", "server_vad"),
                default="none",
                per_user_class=True,
                comparable=True,
            ),
            Option(
                "--utterances-per-session",
                help="Send N clips over each connection",
                type=int,
                default=1,
                metavar="N",
                check=at_least(1),
                per_user_class=True,
                comparable=True,
            ),
        ),
    ),
    Group(
        "Data",
        "the clips, and how they are sent",
        (
            Option(
                "--data",
                aliases=("--dataset-path",),
                help="Folder of prepared clips",
                explanation="[Data sets](data.md) shows how to prepare one.",
                default=SAMPLE,
                metavar="DIR",
                in_form=True,
                per_user_class=True,
                in_run_json="data",
            ),
            Option(
                "--unique",
                help="Vary the audio so that server caches miss: per request (dither), per test (once) or not (none)",
                explanation=(
                    "[What a server may cache](data.md#caches) explains the three. With `once` and `none`, the "
                    "summary compares the TTFT of clips that were sent before with their first TTFT."
                ),
                choices=("dither", "once", "none"),
                default="dither",
                in_form=True,
                per_user_class=True,
                in_run_json="unique",
                comparable=True,
            ),
            Option(
                "--order",
                help="Order of the clips in each pass (default: sequential; in a closed loop with --seed: shuffle)",
                explanation="`shuffle` makes a new order for each pass over the clips.",
                choices=("sequential", "shuffle"),
                default=None,
                in_run_json="order",
                json_default="sequential",
                comparable=True,
            ),
            Option(
                "--sample",
                help="Send only N clips, chosen by --seed (default: all)",
                type=int,
                default=0,
                metavar="N",
                check=at_least(0, "all clips"),
                in_run_json="sample",
                json_type=Number,
                comparable=True,
            ),
            Option(
                "--mix",
                help="Clip lengths to send: ranges in seconds, each with its weight in the load",
                explanation=(
                    "With `0-5:70,5-15:25,15-:5`, 70 of every 100 requests have clips of up to 5 s, 25 of 5 to 15 "
                    "s, and 5 longer ones. They are spread evenly, also in a fleet. To mix data sets, use [classes "
                    "of users](locustfile.md#several-classes)."
                ),
                metavar="0-5:70,5-:30",
                in_run_json="mix",
                comparable=True,
            ),
            Option(
                "--seed",
                help="Random seed for --sample, for shuffling, and for the arrivals of an open loop",
                type=int,
                default=0,
                metavar="N",
                check=at_least(0),
                in_run_json="seed",
                json_type=int,
            ),
        ),
    ),
    Group(
        "Load",
        "when requests are sent; -u limits how many are in flight",
        (
            Option(
                "--request-rate",
                help="Open loop: requests per second of all workers together (not set: closed loop)",
                metavar="R",
                in_form=True,
            ),
            Option(
                "--arrivals",
                help="Arrival process of an open loop",
                explanation="[Load models](load-models.md) describes the three.",
                choices=KINDS,
                default="poisson",
                in_form=True,
            ),
            Option(
                "--requests",
                aliases=("--num-prompts",),
                help="Stop after N requests, not counting --warmup-requests (default: no limit)",
                explanation="Requests that start during `--warmup-time` count towards N.",
                type=int,
                default=0,
                metavar="N",
                check=at_least(0, "until stopped"),
                in_form=True,
                in_run_json="requests",
                json_type=Number,
            ),
            Option(
                "--retries",
                help="Retry a request up to N times after 429 or 503 with a Retry-After header",
                explanation=(
                    "The retry waits as long as the header says, at most 30 s. Each try has its own record and "
                    "counts as a request."
                ),
                type=int,
                default=0,
                metavar="N",
                check=at_least(0),
                in_run_json="retries",
                json_type=Number,
                comparable=True,
            ),
            Option(
                "--burstiness",
                help="Burstiness of gamma arrivals: 1 is Poisson, below 1 is burstier, above 1 more even",
                type=float,
                default=1.0,
                metavar="B",
            ),
            Option(
                "--rate-stages",
                help="Open loop whose rate changes: constant stages and linear ramps",
                explanation=(
                    "`60s:5,30s:5-20,2m:20` holds 5 requests per second for 60 s, rises to 20 within 30 s, and "
                    "holds 20. The last rate stays until the test ends."
                ),
                metavar="60s:5,30s:5-20,…",
            ),
            Option(
                "--arrival-trace",
                help="Open loop that replays arrival times, in seconds, from a .jsonl or .csv file",
                explanation=(
                    "A `.csv` file has a column `at` or `timestamp`. A `.jsonl` file has numbers, or objects with "
                    "one of these fields. Times must be in order."
                ),
                metavar="FILE",
            ),
            Option(
                "--trace-speed",
                help="Replay the trace X times as fast",
                type=float,
                default=1.0,
                metavar="X",
            ),
        ),
    ),
    Group(
        "Measuring",
        "what the metrics include",
        (
            Option(
                "--warmup-requests",
                aliases=("--num-warmups",),
                help="Exclude the first N requests from all metrics",
                explanation="Records mark them with `warmup: true`.",
                type=int,
                default=0,
                metavar="N",
                check=at_least(0),
                in_form=True,
                in_run_json="warmup_requests",
                json_type=Number,
            ),
            Option(
                "--warmup-time",
                help="Exclude from all metrics the requests that start in the first S seconds",
                type=float,
                default=0.0,
                metavar="S",
                check=seconds,
                in_form=True,
                in_run_json="warmup_time",
                json_type=Amount,
            ),
            Option(
                "--trim-start",
                help="Exclude from all metrics the requests that start in the first S seconds after warm-up",
                type=float,
                default=0.0,
                metavar="S",
                check=seconds,
                in_run_json="trim_start",
                json_type=Amount,
            ),
            Option(
                "--trim-end",
                help="Exclude from all metrics the requests that start in the last S seconds",
                type=float,
                default=0.0,
                metavar="S",
                check=seconds,
                in_run_json="trim_end",
                json_type=Amount,
            ),
            Option(
                "--normalizer",
                help="Text normalizer applied before computing WER and CER",
                explanation="[Metrics](metrics.md) describes the four.",
                choices=("whisper", "basic", "open-asr", "none"),
                default="whisper",
                in_run_json="normalizer",
                comparable=True,
            ),
        ),
    ),
    Group(
        "Limits",
        "what the run must meet to pass; latencies in ms, or with a unit: 500, 500ms, 0.5s",
        (
            Option(
                "--slo",
                help="Limit over all requests, for example ttft:p95:500; repeatable",
                explanation=(
                    "A latency limit below 5 needs a unit, here and in `--goodput`. Use `wer:mean`, "
                    "`cer:mean`, `errors:rate`, and `mean`, `max` or a percentile (`p95`, `p99.9`) of these "
                    "[metrics](metrics.md): $slo_metrics."
                ),
                values=Values.REPEATED,
                default=[],
                metavar="METRIC:STAT:LIMIT",
                in_form=True,
                in_run_json="slos",
                json_type=list[str],
            ),
            Option(
                "--goodput",
                help="Limits that each request must meet to count as goodput, for example ttft:500 tpot:40",
                explanation="The summary reports the requests per second that met them. Metrics: $goodput_metrics.",
                values=Values.SEVERAL,
                default=[],
                metavar="METRIC:LIMIT",
                in_form=True,
                in_run_json="goodput",
                json_default="",
            ),
            Option(
                "--allow-client-bound",
                help="Let a client-bound run pass if its SLOs hold",
                values=Values.FLAG,
                default=False,
                in_run_json="allow_client_bound",
                json_type=bool,
            ),
            Option(
                "--allow-lost-workers",
                help="Let a run that lost a worker pass if its SLOs hold",
                values=Values.FLAG,
                default=False,
                in_run_json="allow_lost_workers",
                json_type=bool,
            ),
        ),
    ),
    Group(
        "Output",
        "what is stored, and where",
        (
            Option(
                "--results",
                aliases=("--result-dir",),
                help="Folder for the results (default: results/DATE-TIME)",
                metavar="DIR",
            ),
            Option(
                "--metadata",
                help="Note to store with the results, for example gpu=H100; repeatable",
                explanation="Stored in `run.json` and `summary.json`, and printed in the summary.",
                values=Values.REPEATED,
                default=[],
                metavar="KEY=VALUE",
                in_run_json="metadata",
                json_type=dict[str, str],
                json_default={},
            ),
        ),
    ),
    Group(
        "Expert",
        "rarely needed",
        (
            Option(
                "--connect-timeout",
                help="Time limit for opening a connection with all its handshakes, in seconds",
                type=float,
                default=10.0,
                metavar="S",
                check=positive_seconds,
            ),
            Option(
                "--stall-timeout",
                help="Time limit without a byte from the server, in seconds",
                explanation="The limit includes the wait for the first byte.",
                type=float,
                default=120.0,
                metavar="S",
                check=positive_seconds,
            ),
            Option(
                "--total-timeout",
                help="Time limit for a whole response, in seconds",
                type=float,
                default=600.0,
                metavar="S",
                check=positive_seconds,
            ),
            Option(
                "--allow-host",
                help="Another server that may receive the API key and headers; repeatable",
                explanation=(
                    "Without it, only the server in `--host` receives them; see [SECURITY.md](../SECURITY.md)."
                ),
                values=Values.REPEATED,
                default=[],
                metavar="URL",
            ),
            Option(
                "--fleet-token-file",
                help="File with the token that master and workers share (default: the variable ASR_LOAD_FLEET_TOKEN)",
                explanation="See [several machines](distributed.md).",
                metavar="FILE",
            ),
            Option(
                "--web-allow-host",
                help="Another host name at which the web UI may be opened; repeatable",
                explanation="For example the name of a reverse proxy in front of it.",
                values=Values.REPEATED,
                default=[],
                metavar="NAME",
            ),
            Option(
                "--connections",
                help="Reuse connections (keep), or open one for each request (new)",
                explanation=(
                    "With `new`, the time to connect is the separate metric `connect`, and no latency includes it."
                ),
                choices=("keep", "new"),
                default="keep",
                in_run_json="connections",
                comparable=True,
            ),
            Option(
                "--reader",
                help="Implementation that reads responses (auto: compiled where available, else python)",
                explanation="[Accuracy of the load generator](accuracy-of-the-client.md) compares the two.",
                choices=("auto", "compiled", "python"),
                default="auto",
            ),
        ),
    ),
)
"""In the order of --help, of the web form and of docs/options.md."""

SHAPE_OPTIONS: tuple[Option, ...] = (
    Option(
        "--shape",
        help="How the number of users changes over time; -u is the peak",
        explanation="Needs `-f locustfiles/transcribe.py,locustfiles/shapes.py`; see [the web UI](web-ui.md).",
        choices=("none", "ramp", "steps", "spike"),
        default="none",
        in_form=True,
    ),
    Option(
        "--stages",
        help="Number of steps; a ramp lasts N times --stage-time",
        type=int,
        default=5,
        metavar="N",
        check=at_least(1),
        in_form=True,
    ),
    Option(
        "--stage-time",
        help="Length of a stage, in seconds",
        type=float,
        default=30.0,
        metavar="S",
        check=positive_seconds,
        in_form=True,
    ),
)
"""The options that locustfiles/shapes.py adds to the group Load."""

SEARCH_OPTIONS: tuple[Option, ...] = (
    Option(
        "--step-time",
        help="Longest measurement of one step of a capacity search, in seconds",
        explanation="Only for the [search for capacity](capacity.md), like `--resume`.",
        type=float,
        default=60.0,
        metavar="S",
        check=positive_seconds,
        in_form=True,
    ),
    Option(
        "--resume",
        help="Continue the unfinished search in this results folder",
        explanation="The server, the data and the options of the request must be the same as in that search.",
        metavar="DIR",
        in_form=True,
    ),
)
"""The options that locustfiles/capacity.py adds to the group Load."""

OPTIONS = tuple(option for group in GROUPS for option in group.options)
"""The options of every test."""

PER_USER_CLASS = tuple(option for option in OPTIONS if option.per_user_class)
"""The options that a user class may set for its own requests."""
