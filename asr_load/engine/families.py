"""What servers call their metrics: one table from the names of engines and exporters to meanings.

Names are those of vLLM 0.9 to 0.33, SGLang 0.4 to 0.5.23, TensorRT-LLM, Triton, NIM, llama.cpp, WhisperLive,
moshi-server, dcgm-exporter and AMD's device-metrics-exporter. A renamed metric keeps its old name here, behind the new
one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """A metric of an engine. `name` is that of its samples, for a histogram without `_sum`, `_count` and `_bucket`."""

    name: str
    scale: float = 1.0
    """Factor to the unit of its meaning."""
    only: Mapping[str, str] = field(default_factory=dict)
    """Labels, and the value that a sample must have."""
    path: str = ""
    """The label with the path of the request; empty if samples have none."""


@dataclass(frozen=True)
class Meaning:
    """What a metric says, whatever an engine calls it. Times are in seconds."""

    name: str
    """Name in server.jsonl and summary.json."""
    title: str
    """Name in tables."""
    families: tuple[Family, ...]
    """The first one that a page has counts."""
    unit: str = ""
    over_engines: Callable[[list[float]], float] = sum
    """Combines the values of the engines behind one page: a sum, or for a share the highest."""


RANKS = ("tp_rank", "pp_rank", "moe_ep_rank")
"""Labels of SGLang's ranks. The ranks of one engine report the same, so only one of them counts."""


def _named(*names: str) -> tuple[Family, ...]:
    return tuple(map(Family, names))


GAUGES = (
    Meaning(
        "running",
        "Running",
        _named(
            "vllm:num_requests_running",
            "sglang:num_running_reqs",
            "trtllm_num_requests_running",
            "llamacpp:requests_processing",
            "num_requests_running",
            "whisperlive_connections_active",
            "asr_open_channels",
        ),
    ),
    Meaning(
        "waiting",
        "Waiting",
        _named(
            "vllm:num_requests_waiting",
            "sglang:num_queue_reqs",
            "trtllm_num_requests_waiting",
            "nv_inference_pending_request_count",
            "llamacpp:requests_deferred",
            "num_requests_waiting",
        ),
    ),
    Meaning(
        "kv_usage",
        "KV cache in use",
        _named(
            "vllm:kv_cache_usage_perc",  # a share in spite of its name
            "vllm:gpu_cache_usage_perc",  # until 0.11
            "sglang:token_usage",
            "trtllm_kv_cache_utilization",
            "llamacpp:kv_cache_usage_ratio",
            "gpu_cache_usage_perc",
        ),
        unit="share",
        over_engines=max,
    ),
    Meaning(
        "gpu_utilization",
        "GPU utilization",
        (
            Family("DCGM_FI_DEV_GPU_UTIL", 0.01),
            Family("gpu_gfx_activity", 0.01),
            Family("nv_gpu_utilization"),
            Family("gpu_utilization"),
        ),
        unit="share",
        over_engines=max,
    ),
    Meaning(
        "gpu_memory",
        "GPU memory",
        (
            Family("DCGM_FI_DEV_FB_USED", 2**20),
            Family("gpu_used_vram", 1e6),
            Family("nv_gpu_memory_used_bytes"),
            Family("gpu_memory_used_bytes"),
        ),
        unit="bytes",
    ),
    Meaning(
        "gpu_power",
        "GPU power",
        _named(
            "DCGM_FI_DEV_POWER_USAGE",
            "gpu_package_power",
            "gpu_average_package_power",
            "gpu_power_usage",
            "nv_gpu_power_usage",
            "gpu_power_usage_watts",
        ),
        unit="W",
    ),
)
"""Values of the moment."""

COUNTERS = (
    Meaning(
        "requests",
        "Requests",
        (
            Family("http_requests_total", only={"method": "POST"}, path="handler"),  # vLLM
            Family("sglang:http_requests_total", only={"method": "POST"}, path="endpoint"),
        ),
    ),
    Meaning(
        "sessions",
        "Sessions",
        _named("vllm:websocket_connections_total", "whisperlive_connections_total", "asr_connect"),
    ),
    Meaning(
        "engine_requests",
        "Engine requests",
        _named(
            "vllm:request_success_total",
            "sglang:num_requests_total",
            "trtllm_num_requests_completed_total",
            "nv_inference_request_success",
        ),
    ),
    Meaning(
        "prompt_tokens",
        "Prompt tokens",
        _named(
            "vllm:prompt_tokens_total",
            "sglang:prompt_tokens_total",
            "trtllm_prompt_tokens_total",
            "llamacpp:prompt_tokens_total",
            "prompt_tokens_total",
        ),
    ),
    Meaning(
        "output_tokens",
        "Output tokens",
        _named(
            "vllm:generation_tokens_total",
            "sglang:generation_tokens_total",
            "trtllm_generation_tokens_total",
            "llamacpp:tokens_predicted_total",
            "generation_tokens_total",
        ),
    ),
    Meaning(
        "cached_tokens",
        "Cached prompt tokens",
        (
            Family("vllm:prefix_cache_hits_total"),
            Family("vllm:gpu_prefix_cache_hits_total"),  # until 0.11
            # Sources and their total may both be there.
            Family("sglang:cached_tokens_total", only={"cache_source": "total"}),
            Family("sglang:cached_tokens_total"),
            Family("trtllm_prompt_cached_tokens_total"),
            Family("llamacpp:prompt_tokens_cached_total"),
        ),
    ),
    Meaning(
        "audio_cache_hits",
        "Audio cache hits",
        _named("vllm:mm_cache_hits_total", "sglang:encoder_cache_hit_files_total"),
    ),
    Meaning(
        "audio_cache_queries",
        "Audio cache queries",
        _named("vllm:mm_cache_queries_total", "sglang:encoder_cache_total_files_total"),
    ),
    Meaning(
        "preemptions",
        "Preemptions",
        _named("vllm:num_preemptions_total", "sglang:num_retracted_requests_total"),
    ),
    Meaning("audio", "Audio", _named("whisperlive_audio_processed_seconds_total"), unit="s"),
    Meaning(
        "energy",
        "Energy",
        (
            Family("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 1e-3),
            Family("gpu_energy_consumed", 1e-6),
            Family("nv_energy_consumption"),
            Family("gpu_total_energy_consumption_joules"),
        ),
        unit="J",
    ),
)
"""Values that only rise, until the server restarts."""


def _histogram(name: str, title: str, *names: str) -> Meaning:
    return Meaning(name, title, _named(*names), unit="s")


HISTOGRAMS = (
    _histogram(
        "ttft",
        "TTFT",
        "vllm:time_to_first_token_seconds",
        "sglang:time_to_first_token_seconds",
        "trtllm_time_to_first_token_seconds",
        "time_to_first_token_seconds",
    ),
    _histogram(
        "itl",
        "ITL",
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",  # until 0.12
        "sglang:inter_token_latency_seconds",
        "time_per_output_token_seconds",
    ),
    _histogram(
        "tpot",
        "TPOT",
        "vllm:request_time_per_output_token_seconds",
        "sglang:request_time_per_output_token_seconds",
        "trtllm_time_per_output_token_seconds",
    ),
    _histogram(
        "e2el",
        "E2E",
        "vllm:e2e_request_latency_seconds",
        "sglang:e2e_request_latency_seconds",
        "trtllm_e2e_request_latency_seconds",
        "e2e_request_latency_seconds",
        "whisperlive_transcription_latency_seconds",
    ),
    _histogram(
        "queue",
        "Queue",
        "vllm:request_queue_time_seconds",
        "sglang:queue_time_seconds",
        "trtllm_request_queue_time_seconds",
        "request_queue_time_seconds",
    ),
    _histogram(
        "prefill",
        "Prefill",
        "vllm:request_prefill_time_seconds",
        "trtllm_request_prefill_time_seconds",
        "request_prefill_time_seconds",
    ),
)
"""Times of requests: their sum, their number, and how many lie below each bound."""

ENGINES = {"vllm:": "vLLM", "sglang:": "SGLang", "trtllm_": "TensorRT-LLM", "nv_": "Triton", "llamacpp:": "llama.cpp"}
"""Engines by the prefix of their metrics."""
