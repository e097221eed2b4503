"""Options as Locust parses them."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from locust.argument_parser import LocustArgumentParser

from asr_load.options.parser import add_options
from asr_load.settings.credentials import Credentials, Secrets
from asr_load.settings.request import RequestSettings, read_request
from asr_load.settings.settings import Settings, read_settings

HOST = "http://127.0.0.1:30000"


def parse(*words: str) -> Namespace:
    parser = LocustArgumentParser()
    add_options(parser)
    options: Namespace = parser.parse_args(list(words))
    return options


def settings(*words: str, host: str | None = HOST) -> Settings:
    options = parse(*words)
    options.host = host
    return read_settings(options, host, Credentials(options).for_host(host) if host else Secrets())


def request(model: str, extra: dict[str, Any] | None = None, **options: Any) -> RequestSettings:
    """The content of requests to a model; `extra` is the parsed --extra-body."""
    named = parse()
    vars(named).update(options)
    return read_request(named, model, extra or {})
