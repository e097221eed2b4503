"""The environment of a test as text: engine, model, GPU, data, load and command line."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import PurePath
from typing import Any

from asr_load.results.runfile import RunInfo
from asr_load.text import count_of, visible

ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "asr_server": "asr_server", "llamacpp": "llama.cpp", "nvidia": "NIM"}
"""Engines by `owned_by` in their list of models."""

OWN = "asr_server"

MOST_CHARS = 300
"""Maximum length of a fact, because a server's description of itself may be long."""


def environment(info: RunInfo) -> Iterator[tuple[str, str]]:
    """Facts on the server, the data and the load, each with its name."""
    if engine := engine_of(info):
        yield "Engine", engine
    yield "Model", info.model
    if gpu := gpu_of(info):
        yield "GPU", gpu
    yield "API", f"{info.api}, {info.endpoint or 'default path'}" + (f", preset {info.preset}" if info.preset else "")
    yield "Data", f"{info.data}: {count_of(info.data_clips, 'clip')}, manifest {info.data_sha256[:12]}"
    yield "Load", load_of(info)
    began = datetime.fromtimestamp(info.began_at).astimezone()
    yield "Began", began.strftime("%Y-%m-%d %H:%M:%S %z")
    if info.metadata:
        yield "Metadata", ", ".join(f"{key}={value}" for key, value in info.metadata.items())
    if info.command:
        yield "Command", visible(command_of(info))


def command_of(info: RunInfo) -> str:
    """The command line, with the name of the program in place of its path on the machine that ran it."""
    program, *words = info.command
    path = PurePath(program)
    return shlex.join([path.parent.name if path.name == "__main__.py" else path.name, *words])


def engine_of(info: RunInfo) -> str:
    """The engine with its version, from the server's description of itself; empty if unknown. The name of its HTTP
    server (uvicorn) says nothing about it."""
    models = _first_model(info.server)
    owner = models.get("owned_by")
    sglang, version = info.server.get("/get_server_info"), info.server.get("/version")
    name = ENGINES.get(owner.lower(), "") if isinstance(owner, str) else ""
    if not name and isinstance(sglang, Mapping):
        name = "SGLang"
    found = next((each["version"] for each in (sglang, version) if isinstance(each, Mapping) and "version" in each), "")
    if name == OWN:
        found = info.version
    if not name:
        servers = {worker.server for worker in info.workers if worker.server}
        name = next(
            (engine for engine in ENGINES.values() if any(engine.lower() in each.lower() for each in servers)), ""
        )
    return visible(f"{name or 'unknown engine,'} {found}".strip() if name or found else "")[:MOST_CHARS]


def gpu_of(info: RunInfo) -> str:
    """The GPU: as noted with --metadata gpu=NAME, else as the server describes itself; empty if unknown."""
    noted = next((value for key, value in info.metadata.items() if key.lower() == "gpu"), "")
    described = info.server.get("/get_server_info")
    if not noted and isinstance(described, Mapping):
        noted = next((described[key] for key in ("gpu", "gpu_name", "device_name") if key in described), "")
    return visible(str(noted))[:MOST_CHARS]


def _first_model(server: Mapping[str, Any]) -> Mapping[str, Any]:
    listing = server.get("/v1/models")
    models = listing.get("data") if isinstance(listing, Mapping) else None
    first = models[0] if isinstance(models, list) and models else {}
    return first if isinstance(first, Mapping) else {}


def load_of(info: RunInfo) -> str:
    """The requested load: closed or open loop, shape and end."""
    if info.loop:
        rate = f"{info.loop['rate']:g} requests/s" if info.loop.get("rate") else info.loop.get("stages") or "a trace"
        load = f"open loop, {rate}, {info.loop.get('arrivals', '')}"
    else:
        streams = info.num_users or max((count for _, count in info.users), default=0)
        load = f"closed loop, {count_of(streams, 'stream')}"
    requests = f", {count_of(info.requests, 'request')}" if info.requests else ""
    limit = requests or (f", {info.run_time:g} s" if info.run_time else "")
    shape = f", shape {info.shape}" if info.shape != "none" else ""
    return load + shape + limit
