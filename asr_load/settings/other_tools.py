"""Options of other load tests and benchmarks, and the equivalent options of asr-load."""

from __future__ import annotations

from asr_load.apis import APIS
from asr_load.shipped import command

_MEANINGS = {
    "-u N sets the number of concurrent streams": (
        "--concurrency", "--max-concurrency", "--num-concurrency", "--vus", "--clients", "--num-clients", "--num-users",
        "--parallel", "-c",
    ),
    "--host http://ADDRESS:PORT names the server": (
        "--port", "--base-url", "--target", "--url", "--server", "--server-url", "--api-base",
    ),
    f"'{command('prepare')} --dataset NAME --out DIR' prepares a data set, and --data DIR sends it": (
        "--dataset-name", "--split", "--subset", "--skip-long", "--hf-name", "--hf-split", "--hf-subset",
        "--input-file", "--public-dataset", "--audio-dir", "--audio-file", "--audio-path",
    ),
    "--requests N ends the test after N requests": (
        "--limit", "--num-requests", "--request-count", "--max-requests", "--max-requests-per-run", "--iterations",
        "-n",
    ),
    "-t 60s ends the test after 60 seconds": (
        "--duration", "--max-seconds", "--benchmark-duration", "--max-time-per-run", "--time-limit", "-d",
    ),
    "--request-rate R sends R requests per second, and -u N limits those in flight": ("--rate", "--rps", "--qps"),
    "--request-rate R sends R requests per second; without it, each of -u N streams sends requests one by one": (
        "--rate-type", "--traffic-scenario",
    ),
    "--arrivals takes poisson, constant or gamma": ("--arrival-pattern", "--request-rate-mode"),
    "--rate-stages 30s:5-20 ramps the request rate, and --shape ramp the number of streams": (
        "--ramp-up-strategy", "--ramp-up-start-rps", "--ramp-up-end-rps", "--stage",
    ),
    "remove it, because every response is streamed": ("--streaming", "--stream"),
    "remove it: every response is streamed, because TTFT needs a stream": ("--no-stream", "--disable-stream"),
    f"--api takes {', '.join(APIS)}": (
        "--backend", "--backend-type", "--api-backend", "--endpoint-type", "--request-type", "--task",
    ),
    "--model NAME names the model": ("--model-name", "--model-names", "--api-model-name", "--served-model-name"),
    "remove it, because the server counts the tokens": ("--tokenizer", "--processor", "--model-tokenizer"),
    "--max-tokens N limits the response": ("--max-new-tokens", "--max-output-len", "--output-len", "--hf-output-len"),
    "--extra-body takes a JSON object with additional request fields": ("--extra-inputs", "--ignore-eos"),
    "--warmup-requests N excludes the first N requests": (
        "--warmup-request-count", "--num-warmup-requests", "--warmups",
    ),
    "--warmup-time S excludes requests that start in the first S seconds": ("--warmup-duration",),
    "--trim-start S and --trim-end S exclude the first and the last S seconds": (
        "--ramp-up-time", "--cool-down-time", "--warmup-percent", "--cooldown-percent",
    ),
    "--results DIR sets the folder of the results, which are always written": (
        "--output-path", "--output-file", "--output-dir", "--output", "--artifact-dir", "--save-result",
        "--result-filename", "--experiment-folder-name",
    ),
    "remove it, because the summary has percentiles of every metric": ("--percentile-metrics", "--metric-percentiles"),
    "--seed N sets the random seed": ("--random-seed",),
    "--total-timeout S limits the time of a whole response": ("--timeout", "--request-timeout-seconds"),
    "--ready-timeout S waits for the server": ("--ready-check-timeout-sec",),
    "remove it; --only-summary prints less": ("--disable-tqdm", "--ui-type"),
    "-r N starts N streams per second": ("--hatch-rate",),
    "--headless runs without the web UI": ("--no-web",),
}  # fmt: skip

ADVICE = {name: meaning for meaning, names in _MEANINGS.items() for name in names}
"""Equivalent options, by option of vllm bench serve, SGLang's benchmarks, GuideLLM, AIPerf, GenAI-Perf, genai-bench,
k6, hey, oha, ab and older versions of Locust."""
