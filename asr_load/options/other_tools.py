"""Options of other load tests and benchmarks, each with the option that does the same here."""

from __future__ import annotations

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
    "--request-rate R sends at a rate; without it, each of -u N streams sends one request after the other": (
        "--rate-type", "--traffic-scenario",
    ),
    "--arrivals takes poisson, constant or gamma": ("--arrival-pattern", "--request-rate-mode"),
    "--rate-stages 30s:5-20 ramps the request rate, and --shape ramp the number of streams": (
        "--ramp-up-strategy", "--ramp-up-start-rps", "--ramp-up-end-rps", "--stage",
    ),
    "every answer is streamed: remove it": ("--streaming", "--stream"),
    "every answer is streamed, since only a stream has a TTFT: remove it": ("--no-stream", "--disable-stream"),
    "--api takes chat, chat-input-audio, transcriptions or realtime": (
        "--backend", "--backend-type", "--api-backend", "--endpoint-type", "--request-type", "--task",
    ),
    "--model NAME names the model": ("--model-name", "--model-names", "--api-model-name", "--served-model-name"),
    "the server counts the tokens: remove it": ("--tokenizer", "--processor", "--model-tokenizer"),
    "--max-tokens N limits the answer": ("--max-new-tokens", "--max-output-len", "--output-len", "--hf-output-len"),
    "--extra-body takes a JSON object with further fields of the request": ("--extra-inputs", "--ignore-eos"),
    "--warmup-requests N excludes the first N requests": (
        "--warmup-request-count", "--num-warmup-requests", "--warmups",
    ),
    "--warmup-time S excludes the requests of the first S seconds": ("--warmup-duration",),
    "--trim-start S and --trim-end S exclude the first and the last S seconds": (
        "--ramp-up-time", "--cool-down-time", "--warmup-percent", "--cooldown-percent",
    ),
    "--results DIR names the folder of the run, which is always written": (
        "--output-path", "--output-file", "--output-dir", "--output", "--artifact-dir", "--save-result",
        "--result-filename", "--experiment-folder-name",
    ),
    "the summary has the percentiles of every metric: remove it": ("--percentile-metrics", "--metric-percentiles"),
    "--seed N sets the seed": ("--random-seed",),
    "--total-timeout S limits a whole answer": ("--timeout", "--request-timeout-seconds"),
    "--ready-timeout S waits for the server": ("--ready-check-timeout-sec",),
    "remove it; --only-summary prints less": ("--disable-tqdm", "--ui-type"),
    "-r N starts N streams per second": ("--hatch-rate",),
    "--headless runs without the web UI": ("--no-web",),
}  # fmt: skip

ADVICE = {name: meaning for meaning, names in _MEANINGS.items() for name in names}
"""What does the same here, by the option of vllm bench serve, SGLang's benchmarks, GuideLLM, AIPerf and GenAI-Perf,
genai-bench, k6, hey, oha, ab or an older Locust."""
