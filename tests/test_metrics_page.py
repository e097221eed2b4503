"""Metrics pages of engines and exporters, as they write them."""

from __future__ import annotations

import pytest

from asr_load.engine.metrics_page import Distribution, Page, read_page

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.796e+09
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 7.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 1.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 3.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 3.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 0.5
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.1",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="+Inf",model_name="m"} 1.0
vllm:time_to_first_token_seconds_count{engine="1",model_name="m"} 1.0
vllm:time_to_first_token_seconds_sum{engine="1",model_name="m"} 0.25
# TYPE http_requests_total counter
http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"} 8.0
http_requests_total{handler="/v1/chat/completions",method="POST",status="4xx"} 2.0
http_requests_total{handler="/v1/models",method="GET",status="2xx"} 5.0
"""

RANK = 'engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="{rank}"'


def test_page_of_vllm_is_read() -> None:
    assert read_page(VLLM) == Page(
        engine="vLLM",
        gauges={"running": 5.0, "kv_usage": 0.5},
        counters={"engine_requests": 8.0, "prompt_tokens": 100.0},
        requests={"/v1/chat/completions": 10.0},
        histograms={"ttft": Distribution(0.75, 4.0, [(0.1, 3.0)])},
    )


def test_ranks_of_one_engine_are_not_summed() -> None:
    ranks = [RANK.format(rank=rank) for rank in range(4)]
    page = "".join(f"sglang:num_running_reqs{{{labels}}} 3.0\n" for labels in ranks)
    assert read_page(page).gauges == {"running": 3.0}
    replicas = "".join(f'sglang:num_running_reqs{{dp_rank="{rank}",{ranks[0]}}} 3.0\n' for rank in range(2))
    assert read_page(replicas).gauges == {"running": 6.0}


def test_cached_tokens_are_not_counted_twice() -> None:
    counts = {"device": 30.0, "host": 12.0}
    lines = [f'sglang:cached_tokens_total{{cache_source="{name}"}} {count}\n' for name, count in counts.items()]
    assert read_page("".join(lines)).counters == {"cached_tokens": 42.0}
    total = 'sglang:cached_tokens_total{cache_source="total"} 42.0\n'
    assert read_page("".join([*lines, total])).counters == {"cached_tokens": 42.0}


@pytest.mark.parametrize(
    ("line", "gauges", "counters"),
    [
        ("vllm:gpu_cache_usage_perc 0.5", {"kv_usage": 0.5}, {}),
        ("vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.25", {"kv_usage": 0.25}, {}),
        ("num_requests_running 2", {"running": 2.0}, {}),
        ("trtllm_prompt_tokens_total 5", {}, {"prompt_tokens": 5.0}),
        ("llamacpp:requests_deferred 1", {"waiting": 1.0}, {}),
        (
            'DCGM_FI_DEV_GPU_UTIL{gpu="0"} 90\nDCGM_FI_DEV_GPU_UTIL{gpu="1"} 50\n'
            'DCGM_FI_DEV_FB_USED{gpu="0"} 1024\nDCGM_FI_DEV_FB_USED{gpu="1"} 1024\n'
            'DCGM_FI_DEV_POWER_USAGE{gpu="0"} 300\nDCGM_FI_DEV_POWER_USAGE{gpu="1"} 200\n'
            'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0"} 5000',
            {"gpu_utilization": 0.9, "gpu_memory": 2.0 * 2**30, "gpu_power": 500.0},
            {"energy": 5.0},
        ),
        ("gpu_energy_consumed 2e6\ngpu_used_vram 1000", {"gpu_memory": 1e9}, {"energy": 2.0}),
        ("vllm:num_requests_running NaN\nvllm:num_requests_waiting 4", {"waiting": 4.0}, {}),
        ("vllm:num_requests_running 1\nvllm:num_requests_running 2", {"running": 2.0}, {}),
    ],
)
def test_metrics_of_other_engines_versions_and_exporters(
    line: str, gauges: dict[str, float], counters: dict[str, float]
) -> None:
    page = read_page(line + "\n")
    assert (page.gauges, page.counters) == (gauges, counters)


def test_histogram_may_have_no_buckets() -> None:
    page = read_page("sglang:queue_time_seconds_sum 1.5\nsglang:queue_time_seconds_count 3\n")
    assert page.histograms == {"queue": Distribution(1.5, 3.0, [])}
    assert not read_page("sglang:queue_time_seconds_sum 1.5\n")


@pytest.mark.parametrize("text", ['{"a": 1}', "<html><body>not found</body></html>", 'a{b="c} 1\n'])
def test_what_is_no_metrics_page_raises(text: str) -> None:
    with pytest.raises(ValueError):  # the parser's words vary
        read_page(text)


@pytest.mark.parametrize("text", ["", "# nothing\n", "node_cpu_seconds_total 5\n"])
def test_page_without_known_metrics_is_false(text: str) -> None:
    assert not read_page(text)
