"""Where a metrics page is. Apart from metrics_page.py, because programs that only read results must not import requests
before Locust has patched sockets."""

from __future__ import annotations

import msgspec

from asr_load.http.transport import Transport

PATHS = ("/metrics", "/prometheus/metrics", "/v1/metrics")
"""Paths of metrics pages: of vLLM, SGLang, llama.cpp and exporters; of TensorRT-LLM; of NIM."""


class Source(msgspec.Struct, frozen=True):
    """A metrics page and how to reach it."""

    url: str
    headers: dict[str, str]
    """May contain secrets."""
    transport: Transport
    secrets: tuple[str, ...]
    """Words to remove from all text of the server."""
    name: str
    """The address without secrets, to store and show."""
