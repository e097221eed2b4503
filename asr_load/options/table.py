"""The options that asr-load adds to Locust. Each is declared here, and nowhere else."""

from __future__ import annotations

from asr_load.apis import APIS
from asr_load.apis.envelopes import ENVELOPES, TEXT_FORMATS
from asr_load.apis.presets import PRESET_NAMES
from asr_load.options.option import Group, Option, at_least, between, positive_seconds, seconds
from asr_load.schedule.loop import PROCESSES
from asr_load.shipped import SAMPLE
from asr_load.stream.record import Amount, Number

DEFAULT_MODEL = "default"
"""Model name that stands for the server's only model."""

DEFAULT_PROMPT = "Transcribe the audio. Answer with the transcript only."

# fmt: off
# For each option: its values; where it is used; its words.
GROUPS: tuple[Group, ...] = (
    Group("Target", "the server, its API, and the request", (
        Option("--api", choices=("auto", *APIS), default="auto",
               in_form=True, label="API", per_user_class=True, in_run_json="api", comparable=True,
               help="API of the endpoint (auto: that of --endpoint or of the preset, else chat)",
               explanation=" ".join(f"`{api.name}` {api.summary}." for api in APIS.values())),
        Option("--model", default=DEFAULT_MODEL,
               in_form=True, label="Model", per_user_class=True, in_run_json="model", comparable=True,
               help="Model name in requests ('default': the only model that the server lists)",
               explanation="If the server lists several models, you must name one. The name may be missing from the "
                   "list: the trial request shows whether it works."),
        Option("--prompt", default=DEFAULT_PROMPT,
               in_form=True, label="Prompt", per_user_class=True, in_run_json="prompt", comparable=True,
               help="Instruction sent with the audio; a preset replaces the default",
               explanation="A transcription's prompt is context, not an instruction, so `transcriptions` sends none "
                   "unless you set one."),
        Option("--max-tokens", type=int, default=128, metavar="N", check=at_least(1),
               in_form=True, label="Maximum length of a response (tokens)",
               per_user_class=True, in_run_json="max_tokens", json_type=Number | None, comparable=True,
               help="Maximum length of a response, in tokens"),
        Option("--api-key", metavar="KEY", in_form=True, label="API key", secret=True,
               help="API key, sent as a bearer token (default: the variable OPENAI_API_KEY)",
               explanation="The key is written to no file, page or log."),
        Option("--preset", choices=PRESET_NAMES, default="auto",
               per_user_class=True, in_run_json="preset", json_default="", comparable=True,
               help="API, prompt and output format for a family of models (auto: by the model's name)",
               explanation="[Models](models.md) lists the presets. An option that you set overrides the preset; "
                   "`none` uses no preset."),
        Option("--language", metavar="L", per_user_class=True, in_run_json="asked_language", comparable=True,
               help="Language of the speech, sent to the server: a name or a code (German, de)",
               explanation="Every [spelling](data.md#languages) of a language works. Transcriptions and realtime "
                   "sessions send the ISO 639-1 code. Chat requests have its English name in place of `{language}` in "
                   "the prompt. The normalizer does not depend on it, but on `prepare.py --language`."),
        Option("--system", metavar="TEXT", per_user_class=True, in_run_json="system", comparable=True,
               help="System message of chat requests"),
        Option("--prompt-position", choices=("before", "after"), default=None,
               per_user_class=True, in_run_json="prompt_position", json_default="after", comparable=True,
               help="Place the prompt before or after the audio (default: as in the preset, else after)"),
        Option("--temperature", type=float, default=0.0, metavar="T", check=between(0, 2),
               per_user_class=True, in_run_json="temperature", json_type=Amount, comparable=True,
               help="Sampling temperature, from 0 (default) to 2"),
        Option("--text-format", choices=TEXT_FORMATS, default="auto",
               per_user_class=True, in_run_json="text_format", json_default="raw", comparable=True,
               help="Output format of the model; its envelope is removed from transcripts",
               explanation=" ".join(f"`{name}`: {envelope.example}" for name, envelope in ENVELOPES.items())
                   + " `auto` detects the envelope at the start of the text; `raw` keeps the text as it is. The record "
                   "keeps the original as `raw_text`, and `ttft_text` is the time to the first character after the "
                   "envelope."),
        Option("--endpoint", metavar="PATH", per_user_class=True, in_run_json="endpoint",
               help="Path that requests are sent to, instead of the API's own (for example behind a gateway)",
               explanation="Example: `--host http://gateway --endpoint /speech/v1/chat/completions`. `--host` itself "
                   "may end in `/v1`, `/v1/models` or the path of the API. If it has any other path, the error prints "
                   "the options to use. A user and password in `--host` become a header. Files and reports show a key "
                   "in the query of `--endpoint` as `***`."),
        Option("--header", action="append", default=[], metavar="'NAME: VALUE'",
               in_run_json="header_names", json_type=list[str], secret=True,
               help="Additional HTTP header, also as NAME=VALUE; repeatable"),
        Option("--extra-body", aliases=("--extra-request-body",), metavar="JSON",
               per_user_class=True, in_run_json="extra_body_names", json_type=list[str], json_default=[],
               comparable=True, secret=True,
               help="JSON object to merge into the request body",
               explanation="A field that is `null` is removed from the request."),
        Option("--ca", metavar="FILE",
               help="CA certificates to trust, as a PEM file or a folder",
               explanation="The default is the file in `REQUESTS_CA_BUNDLE` or `SSL_CERT_FILE`, or else the "
                   "certificates of the package certifi. In a fleet, each worker reads the files of `--ca` and "
                   "`--cert` on its own machine."),
        Option("--cert", metavar="FILE",
               help="Client certificate and key (PEM), in one file or as CERT,KEY"),
        Option("--insecure", action="store_true", default=False, in_run_json="insecure", json_type=bool,
               help="Accept any server certificate without verifying it",
               explanation="The summary then says that the certificate was not verified."),
        Option("--proxy", metavar="URL", in_run_json="proxy",
               help="HTTP proxy (default: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY)",
               explanation="Example: `http://user:password@proxy:3128`. Only the proxy receives the password. HTTPS "
                   "goes through it by CONNECT. The environment's proxies are not used for servers on this machine."),
        Option("--upstream", metavar="HOST:PORT,…", in_run_json="upstream", json_type=list[str], json_default=[],
               help="Replicas to connect to in turn, instead of the address of --host",
               explanation="Requests and certificates still use the name in `--host`. Users are spread evenly over "
                   "the replicas, also in a fleet, and the summary shows the share and the latencies of each. A "
                   "replica that cannot be reached is skipped for ten seconds, with a warning. Without `--upstream`, "
                   "connections take turns over all addresses that DNS returns for `--host`."),
        Option("--omit", metavar="FIELD,…",
               per_user_class=True, in_run_json="omit", json_type=list[str], json_default=[], comparable=True,
               help="Fields to leave out of the request body",
               explanation="For servers that reject fields they do not know, for example `--omit "
                   "stream_options,max_tokens`."),
        Option("--ready-timeout", type=float, default=0.0, metavar="S", check=seconds,
               help="Wait up to S seconds for the server to become ready",
               explanation="The test polls `/health`, or `/v1/models` if there is no `/health`, and prints what it "
                   "waits for."),
        Option("--flush-cache", action="store_true", default=False,
               help="Empty SGLang's cache before the test",
               explanation="It posts to `/flush_cache`, which SGLang accepts only when it is idle. SGLang keeps its "
                   "cache of audio embeddings: use `--unique` to make clips new."),
        Option("--no-preflight", action="store_true", default=False,
               help="Start without a trial request, and without asking the server for its model",
               explanation="Otherwise the test sends one trial request that no metric or record includes, and a "
                   "second one if the first fails. If both fail, the test ends with exit code 2 and the server's "
                   "error."),
    )),
    Group("Realtime", "how --api realtime streams speech", (
        Option("--realtime-dialect", choices=("auto", "vllm", "sglang", "omni", "openai"), default="auto",
               in_form=True, label="Realtime protocol", per_user_class=True, comparable=True,
               help="Realtime protocol of the server (auto: detect from its first event)",
               explanation="[Realtime](realtime.md) explains the options of this group."),
        Option("--packet-ms", type=float, default=100.0, metavar="MS", check=between(5, 10_000),
               in_form=True, label="Packet length (ms)", per_user_class=True, comparable=True,
               help="Speech in each packet, in milliseconds"),
        Option("--pace", type=float, default=1.0, metavar="X", check=between(0, 100),
               in_form=True, label="Speed of the speech (times real time)", per_user_class=True, comparable=True,
               help="Speed of the speech: 1 is real time, 2 twice as fast, 0 as fast as the server accepts it"),
        Option("--trailing-silence", type=float, default=0.0, metavar="S", check=between(0, 60, " seconds"),
               per_user_class=True, comparable=True,
               help="Send S seconds of low noise after the speech"),
        Option("--turn-detection", choices=("none", "server_vad"), default="none", per_user_class=True, comparable=True,
               help="Who ends a turn: the client (none) or the server's voice activity detection (server_vad)"),
        Option("--utterances-per-session", type=int, default=1, metavar="N", check=at_least(1),
               per_user_class=True, comparable=True,
               help="Send N clips over each connection"),
    )),
    Group("Data", "the clips, and how they are sent", (
        Option("--data", aliases=("--dataset-path",), default=SAMPLE, metavar="DIR",
               in_form=True, label="Data (prepared folder)", per_user_class=True, in_run_json="data",
               help="Folder of prepared clips",
               explanation="[Data sets](data.md) shows how to prepare one."),
        Option("--unique", choices=("dither", "once", "none"), default="dither",
               in_form=True, label="Variation of the audio", per_user_class=True, in_run_json="unique", comparable=True,
               help="Vary the audio so that server caches miss: per request (dither), per test (once) or not (none)",
               explanation="[What a server may cache](data.md#caches) explains the three. With `once` and `none`, the "
                   "summary compares the TTFT of clips that were sent before with their first TTFT."),
        Option("--order", choices=("sequential", "shuffle"), default=None,
               in_run_json="order", json_default="sequential", comparable=True,
               help="Order of the clips in each pass (default: sequential; in a closed loop with --seed: shuffle)",
               explanation="`shuffle` makes a new order for each pass over the clips."),
        Option("--sample", type=int, default=0, metavar="N", check=at_least(0, "all clips"),
               in_run_json="sample", json_type=Number, comparable=True,
               help="Send only N clips, chosen by --seed (default: all)"),
        Option("--mix", metavar="0-5:70,5-:30", in_run_json="mix", comparable=True,
               help="Clip lengths to send: ranges in seconds, each with its weight in the load",
               explanation="With `0-5:70,5-15:25,15-:5`, 70 of every 100 requests have clips of up to 5 s, 25 of 5 to "
                   "15 s, and 5 longer ones. They are spread evenly, also in a fleet. To mix data sets, use [classes "
                   "of users](locustfile.md#several-classes)."),
        Option("--seed", type=int, default=0, metavar="N", check=at_least(0), in_run_json="seed", json_type=int,
               help="Random seed for --sample, for shuffling, and for the arrivals of an open loop"),
    )),
    Group("Load", "when requests are sent; -u limits how many are in flight", (
        Option("--request-rate", metavar="R", in_form=True, label="Request rate (requests/s)",
               help="Open loop: requests per second of all workers together (not set: closed loop)"),
        Option("--arrivals", choices=PROCESSES, default="poisson", in_form=True, label="Arrival process",
               help="Arrival process of an open loop",
               explanation="[Load models](load-models.md) describes the three."),
        Option("--requests", aliases=("--num-prompts",), type=int, default=0, metavar="N",
               check=at_least(0, "until stopped"),
               in_form=True, label="Number of requests", in_run_json="requests", json_type=Number,
               help="Stop after N requests, not counting --warmup-requests (default: no limit)",
               explanation="Requests that start during `--warmup-time` count towards N."),
        Option("--retries", type=int, default=0, metavar="N", check=at_least(0),
               in_run_json="retries", json_type=Number, comparable=True,
               help="Retry a request up to N times after 429 or 503 with a Retry-After header",
               explanation="The retry waits as long as the header says, at most 30 s. Each try has its own record and "
                   "counts as a request."),
        Option("--burstiness", type=float, default=1.0, metavar="B",
               help="Burstiness of gamma arrivals: 1 is Poisson, below 1 is burstier, above 1 more even"),
        Option("--rate-stages", metavar="60s:5,30s:5-20,…",
               help="Open loop whose rate changes: constant stages and linear ramps",
               explanation="`60s:5,30s:5-20,2m:20` holds 5 requests per second for 60 s, rises to 20 within 30 s, and "
                   "holds 20. The last rate stays until the test ends."),
        Option("--arrival-trace", metavar="FILE",
               help="Open loop that replays arrival times, in seconds, from a .jsonl or .csv file",
               explanation="A `.csv` file has a column `at` or `timestamp`. A `.jsonl` file has numbers, or objects "
                   "with one of these fields. Times must be in order."),
        Option("--trace-speed", type=float, default=1.0, metavar="X",
               help="Replay the trace X times as fast"),
    )),
    Group("Measuring", "what the metrics include", (
        Option("--warmup-requests", aliases=("--num-warmups",), type=int, default=0, metavar="N", check=at_least(0),
               in_form=True, label="Warm-up (requests)", in_run_json="warmup_requests", json_type=Number,
               help="Exclude the first N requests from all metrics",
               explanation="Records mark them with `warmup: true`."),
        Option("--warmup-time", type=float, default=0.0, metavar="S", check=seconds,
               in_form=True, label="Warm-up (s)", in_run_json="warmup_time", json_type=Amount,
               help="Exclude from all metrics the requests that start in the first S seconds"),
        Option("--trim-start", type=float, default=0.0, metavar="S", check=seconds,
               in_run_json="trim_start", json_type=Amount,
               help="Exclude from all metrics the requests that start in the first S seconds after warm-up"),
        Option("--trim-end", type=float, default=0.0, metavar="S", check=seconds,
               in_run_json="trim_end", json_type=Amount,
               help="Exclude from all metrics the requests that start in the last S seconds"),
        Option("--normalizer", choices=("whisper", "basic", "open-asr", "none"), default="whisper",
               in_run_json="normalizer", comparable=True,
               help="Text normalizer applied before computing WER and CER",
               explanation="[Metrics](metrics.md) describes the four."),
    )),
    Group("Server's view", "what the server reports about itself", (
        Option("--server-metrics", action="append", default=[], metavar="URL", secret=True,
               help="Metrics page in Prometheus' format, of an engine or a GPU exporter; repeatable, or none"
                   " (default: the server's own, if it has one)",
               explanation="Without it, the test looks for a page at the `/metrics`, `/prometheus/metrics` and "
                   "`/v1/metrics` of `--host`, unless you set `--no-preflight`. An API key and headers are only sent "
                   "to `--host`. [The server's view](server-view.md) explains what is read."),
        Option("--server-metrics-interval", type=float, default=1.0, metavar="S", check=between(0.1, 3600, " seconds"),
               help="Seconds between two polls of a metrics page"),
        Option("--price", type=float, default=0.0, metavar="P", check=between(0, 1e9),
               in_run_json="price", json_type=Amount,
               help="Price of the whole server for an hour: the summary then states the cost of an hour of audio"),
        Option("--currency", default="USD", metavar="NAME", in_run_json="currency",
               help="Currency of --price"),
    )),
    Group("Limits", "what the run must meet to pass; latencies in ms, or with a unit: 500, 500ms, 0.5s", (
        Option("--slo", action="append", default=[], metavar="METRIC:STAT:LIMIT",
               in_form=True, label="Limits (SLO)", in_run_json="slos", json_type=list[str],
               help="Limit over all requests, for example ttft:p95:500; repeatable",
               explanation="A latency limit below 5 needs a unit, here and in `--goodput`. Use `wer:mean`, "
                   "`cer:mean`, `errors:rate`, and `mean`, `max` or a percentile (`p95`, `p99.9`) of these "
                   "[metrics](metrics.md): $slo_metrics."),
        Option("--goodput", nargs="+", default=[], metavar="METRIC:LIMIT",
               in_form=True, label="Limits for goodput", in_run_json="goodput", json_default="",
               help="Limits that each request must meet to count as goodput, for example ttft:500 tpot:40",
               explanation="The summary reports the requests per second that met them. Metrics: $goodput_metrics."),
        Option("--allow-client-bound", action="store_true", default=False,
               in_run_json="allow_client_bound", json_type=bool,
               help="Let a client-bound run pass if its SLOs hold"),
        Option("--allow-lost-workers", action="store_true", default=False,
               in_run_json="allow_lost_workers", json_type=bool,
               help="Let a run that lost a worker pass if its SLOs hold"),
    )),
    Group("Output", "what is stored, and where", (
        Option("--results", aliases=("--result-dir",), metavar="DIR",
               help="Folder for the results (default: results/TIME_MODEL_LOAD)"),
        Option("--metrics-port", type=int, default=0, metavar="PORT", check=between(0, 65535),
               help="Serve the running test as a metrics page for Prometheus on this port",
               explanation="With a web UI, the page is also at `/metrics` of its port."),
        Option("--metadata", action="append", default=[], metavar="KEY=VALUE",
               in_run_json="metadata", json_type=dict[str, str], json_default={},
               help="Note to store with the results, for example gpu=H100; repeatable",
               explanation="Stored in `run.json` and `summary.json`, and printed in the summary."),
    )),
    Group("Expert", "rarely needed", (
        Option("--connect-timeout", type=float, default=10.0, metavar="S", check=positive_seconds,
               help="Time limit for opening a connection with all its handshakes, in seconds"),
        Option("--stall-timeout", type=float, default=120.0, metavar="S", check=positive_seconds,
               help="Time limit without a byte from the server, in seconds",
               explanation="The limit includes the wait for the first byte."),
        Option("--total-timeout", type=float, default=600.0, metavar="S", check=positive_seconds,
               help="Time limit for a whole response, in seconds"),
        Option("--allow-host", action="append", default=[], metavar="URL",
               help="Another server that may receive the API key and headers; repeatable",
               explanation="Without it, only the server in `--host` receives them; see [SECURITY.md](../SECURITY.md)."),
        Option("--fleet-token-file", metavar="FILE",
               help="File with the token that master and workers share (default: the variable ASR_LOAD_FLEET_TOKEN)",
               explanation="See [several machines](distributed.md)."),
        Option("--web-allow-host", action="append", default=[], metavar="NAME",
               help="Another host name at which the web UI may be opened; repeatable",
               explanation="For example the name of a reverse proxy in front of it."),
        Option("--connections", choices=("keep", "new"), default="keep", in_run_json="connections", comparable=True,
               help="Reuse connections (keep), or open one for each request (new)",
               explanation="With `new`, the time to connect is the separate metric `connect`, and no latency includes "
                   "it."),
        Option("--reader", choices=("auto", "compiled", "python"), default="auto",
               help="Implementation that reads responses (auto: compiled where available, else python)",
               explanation="[Accuracy of the load generator](accuracy-of-the-client.md) compares the two."),
    )),
)
"""In the order of --help, of the web form and of docs/options.md."""

SHAPE_OPTIONS: tuple[Option, ...] = (
    Option("--shape", choices=("none", "ramp", "steps", "spike"), default="none",
           in_form=True, label="Shape of the load",
           help="How the number of users changes over time; -u is the peak",
           explanation="Needs `-f locustfiles/transcribe.py,locustfiles/shapes.py`; see [the web UI](web-ui.md)."),
    Option("--stages", type=int, default=5, metavar="N", check=at_least(1), in_form=True, label="Number of stages",
           help="Number of steps; a ramp lasts N times --stage-time"),
    Option("--stage-time", type=float, default=30.0, metavar="S", check=positive_seconds,
           in_form=True, label="Length of a stage (s)",
           help="Length of a stage, in seconds"),
)
"""The options that locustfiles/shapes.py adds to the group Load."""

SEARCH_OPTIONS: tuple[Option, ...] = (
    Option("--step-time", type=float, default=60.0, metavar="S", check=positive_seconds,
           in_form=True, label="Longest step of the search (s)",
           help="Longest measurement of one step of a capacity search, in seconds",
           explanation="Only for the [search for capacity](capacity.md), like `--resume`."),
    Option("--resume", metavar="DIR", in_form=True, label="Search to continue (results folder)",
           help="Continue the unfinished search in this results folder",
           explanation="The server, the data and the options of the request must be the same as in that search."),
)
"""The options that locustfiles/capacity.py adds to the group Load."""
# fmt: on

OPTIONS = tuple(option for group in GROUPS for option in group.options)
"""The options of every test."""

PER_USER_CLASS = tuple(option for option in OPTIONS if option.per_user_class)
"""The options that a user class may set for its own requests."""
