"""The environment of a test as text."""

from __future__ import annotations

from typing import Any

import pytest

from asr_load.report.environment import command_of, engine_of, environment, gpu_of, load_of
from harness.records import run_info, worker_info


def listing(owner: str) -> dict[str, Any]:
    return {"/v1/models": {"object": "list", "data": [{"id": "m", "owned_by": owner}]}}


@pytest.mark.parametrize(
    ("server", "name"),
    [
        (listing("vllm") | {"/version": {"version": "0.32.0"}}, "vLLM 0.32.0"),
        (listing("sglang") | {"/get_server_info": {"version": "0.5.23"}}, "SGLang 0.5.23"),
        ({"/get_server_info": {"version": "0.5.23"}}, "SGLang 0.5.23"),
        (listing("sglang"), "SGLang"),
        (listing("asr_server"), "asr_server 0"),
        (listing("me"), ""),
        ({"/version": {"version": "1.2"}}, "unknown engine, 1.2"),
        ({"/v1/models": ["odd"], "/version": "odd", "/get_server_info": None}, ""),
        ({"/v1/models": {"data": ["odd"]}}, ""),
        ({"/version": {"version": "1\x1b[31m"}}, "unknown engine, 1\\x1b[31m"),
        ({}, ""),
    ],
)
def test_engine_is_named_by_its_description_of_itself_and_not_by_its_http_server(
    server: dict[str, Any], name: str
) -> None:
    info = run_info(server=server, workers=[worker_info(server="uvicorn")])
    assert engine_of(info) == name
    assert dict(environment(info)).get("Engine", "") == name
    assert "uvicorn" not in str(list(environment(info)))


def test_engine_is_named_by_a_header_that_names_an_engine() -> None:
    assert engine_of(run_info(workers=[worker_info(server="llama.cpp")])) == "llama.cpp"


def test_gpu_is_the_noted_one_or_the_servers() -> None:
    described = {"/get_server_info": {"gpu_name": "NVIDIA L4"}}
    assert gpu_of(run_info(metadata={"GPU": "H100"}, server=described)) == "H100"
    assert gpu_of(run_info(server=described)) == "NVIDIA L4"
    assert "GPU" not in dict(environment(run_info()))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_users": 1, "requests": 60}, "closed loop, 1 stream, 60 requests"),
        ({"num_users": 8, "run_time": 60.0, "shape": "steps"}, "closed loop, 8 streams, shape steps, 60 s"),
        ({"loop": {"rate": 2.5, "arrivals": "poisson"}}, "open loop, 2.5 requests/s, poisson"),
    ],
)
def test_load_in_words(changes: dict[str, Any], text: str) -> None:
    assert load_of(run_info(**changes)) == text


def test_command_line_can_be_run_again() -> None:
    assert dict(environment(run_info(command=["locust", "--prompt", "two words"])))["Command"] == (
        "locust --prompt 'two words'"
    )


@pytest.mark.parametrize("program", ["/home/me/.venv/bin/locust", "/opt/site-packages/locust/__main__.py", "locust"])
def test_command_names_its_program_without_its_path(program: str) -> None:
    info = run_info(command=[program, "-u", "4", "--prompt", "two words"])
    assert command_of(info) == "locust -u 4 --prompt 'two words'"
    assert dict(environment(info))["Command"] == command_of(info)
