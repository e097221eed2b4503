"""The metrics pages of a test: those of --server-metrics, else the server's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from asr_load.engine.endpoint import PATHS, Source
from asr_load.errors import InputError
from asr_load.http.transport import Transport
from asr_load.settings.host import secrets_in, split_host, without_credentials, without_secrets

NO_PAGES = "none"
"""Value of --server-metrics that turns polling off."""

OPTION = "--server-metrics"


def metrics_pages(
    words: Sequence[str], host: str, headers: dict[str, str], transport: Transport, secrets: tuple[str, ...]
) -> list[list[Source]]:
    """Read --server-metrics. Returns a list for each page, with the addresses to try in turn.

    `host` is the server's address; `headers`, `transport` and `secrets` are those of requests to it, which no other
    server receives. Raises InputError.
    """
    if NO_PAGES in words:
        if len(words) > 1:
            raise InputError(f"{OPTION} {NO_PAGES} and a page exclude each other; remove one of them")
        return []
    if words:
        return [[_named(word, host, headers, transport, secrets)] for word in words]
    # Each replica has its own page, under the same address.
    routes = [(f" at {name}:{port}", replace(transport, upstream=((name, port),))) for name, port in transport.upstream]
    return [
        [Source(f"{host}{path}", headers, route, secrets, f"{host}{path}{note}") for path in PATHS]
        for note, route in routes or [("", transport)]
    ]


def _named(word: str, host: str, headers: dict[str, str], transport: Transport, secrets: tuple[str, ...]) -> Source:
    address, basic = split_host(word)
    try:
        parts = urlsplit(address or "")
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.path
    except ValueError:  # unmatched brackets, or an invalid port
        usable = False
    if not usable:
        shown = without_secrets(without_credentials(word))
        cure = f": use {OPTION} http://{shown}" if "://" not in word and shown else ""
        raise InputError(f"{OPTION} {shown} is not an address such as http://127.0.0.1:9400/metrics{cure}")
    url = (address or "").partition("#")[0]
    if parts.path in ("", "/") and not parts.query:
        url = f"{parts.scheme}://{parts.netloc}{PATHS[0]}"
    if f"{parts.scheme}://{parts.netloc}" != host:
        headers, secrets = {}, ()
        transport = Transport(verify=transport.verify)
    if basic:
        headers = {**headers, "Authorization": f"Basic {basic}"}
    return Source(url, headers, transport, (*secrets, *filter(None, [basic]), *secrets_in(url)), without_secrets(url))
