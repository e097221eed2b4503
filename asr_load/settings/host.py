"""Addresses and paths in --host, --endpoint, --proxy and --upstream: accept those that requests can use, and for any
other suggest what to type."""

from __future__ import annotations

import base64
import re
import shlex
from urllib.parse import SplitResult, unquote, unquote_plus, urlsplit

from asr_load.apis import APIS
from asr_load.apis.api import MODELS, Api
from asr_load.apis.realtime import Realtime
from asr_load.errors import InputError
from asr_load.http.transport import PORTS
from asr_load.text import SECRET, STRUCK

VERSION = "/v1"
"""Last path component of the base URL that OpenAI's clients take."""

NEUTRAL = ("", VERSION, MODELS)
"""Paths that identify a server but no API."""

_OWN = re.compile(rf"({VERSION}(/.*)?|/(models|docs|redoc|openapi\.json|health|metrics|version))$")
"""A path that belongs to a server, at the end of a path to which a gateway may have added a prefix."""

REPLICAS = "it takes one server; name its replicas with --upstream HOST:PORT,HOST:PORT"


def check_host(host: str | None) -> str:
    """Return the address of a server, scheme://host:port, without its path, which check_endpoint checks. Addresses for
    WebSockets become those for HTTP. Raises InputError if it is not an address."""
    if not host:
        raise InputError("--host is missing: give the address of the server, for example --host http://127.0.0.1:30000")
    if (address := _address(host)) is None or "@" in urlsplit(host).path:
        shown = _shown(host)
        meant = _address(f"http://{shown}") if "://" not in host else None
        cure = f": {REPLICAS}" if "," in shown else f": use --host {meant}" if meant else ""
        raise InputError(f"--host {shown} is not an address such as http://127.0.0.1:30000{cure}")
    return address


def split_host(host: str | None) -> tuple[str | None, str]:
    """Split an address into the address without user and password, and these encoded for basic authentication (empty
    without any)."""
    scheme, separator, rest = (host or "").partition("://")
    place, slash, path = rest.partition("/")
    known, at, place = place.rpartition("@")
    if not at:
        return host, ""
    user, _, password = known.partition(":")
    basic = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return f"{scheme}{separator}{place}{slash}{path}", basic


def split_proxy(word: str) -> tuple[str, str]:
    """Split the address of a proxy like `split_host`; its scheme is optional."""
    proxy, basic = split_host(word if "://" in word or not word else f"http://{word}")
    return proxy or "", basic


def parse_proxy(address: str) -> str:
    """The address of a proxy as scheme://host:port; empty without one. Raises InputError."""
    if not address:
        return ""
    parts = _split_url(address)
    if parts is None or parts.scheme != "http":
        raise InputError(f"the proxy {_shown(address)} is not an address such as http://proxy:3128")
    return f"http://{parts.netloc}"


def without_credentials(text: str) -> str:
    """The text without users and passwords in its addresses."""
    return re.sub(r"//\S*@", "//***@", text)


def _shown(address: str) -> str:
    """An address, with or without a scheme, in a form that can be printed."""
    whole = address if "://" in address else f"//{address}"
    return without_secrets(without_credentials(whole)).removeprefix("//")


def parse_upstream(words: str, host: str) -> tuple[tuple[str, int], ...]:
    """Names or addresses with ports; the default port is that of the host. Raises InputError."""
    usual = urlsplit(host).port or PORTS[urlsplit(host).scheme]
    upstream = []
    for word in filter(None, map(str.strip, words.split(","))):
        place = _split_url(f"//{word}")
        if place is None or place.netloc != word or "@" in word:
            pasted = _split_url(word) if "://" in word and "@" not in word else None
            cure = f": use {pasted.netloc}" if pasted else ""
            raise InputError(f"--upstream {_shown(word)} is not an address such as 10.0.0.7:30000{cure}")
        upstream.append((place.hostname or "", place.port or usual))
    return tuple(upstream)


_HTTP = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def _address(url: str) -> str | None:
    parts = _split_url(url)
    return f"{_HTTP[parts.scheme]}://{parts.netloc}" if parts and parts.scheme in _HTTP else None


def _split_url(url: str) -> SplitResult | None:
    """The parts of an address with a host and, if it has one, a valid port; None for others."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:  # unmatched brackets, or an invalid port
        return None


def _check_host_path(host: str, address: str, endpoint: str, api: type[Api]) -> None:
    """Raise InputError if `host` has another path than requests use, which is `endpoint` of `api` on the server at
    `address`. The message says what to type instead."""
    parts = urlsplit(host)
    path = parts.path.rstrip("/")
    query = f"?{parts.query}" if parts.query not in ("", api.query) else ""
    if parts.scheme in ("ws", "wss") and not api.is_websocket:
        raise InputError(
            f"--host {parts.scheme}://{parts.netloc} is an address for realtime sessions, but this test uses --api"
            f" {api.name}: add --api {Realtime.name}, or use --host {address}"
        )
    if path + query in (*NEUTRAL, endpoint.rstrip("/")):
        return
    other = api_of_path(path)
    if other is not None and other.path == path and not query:
        if other.path != api.path:
            raise InputError(
                f"--host {address}{path} is the path of --api {other.name}, but this test uses --api {api.name}: add"
                f" --api {other.name}, or use --host {address}"
            )
        raise InputError(f"--host {address}{path} and --endpoint {endpoint} differ: use --host {address}")
    prefix = _OWN.sub("", path)
    if other is None and not (prefix or query):
        raise InputError(f"--host cannot have this path: use --host {address}")
    if other is not None:
        whole, option = path, f" --api {other.name}" if other.path != api.path else ""
    else:
        whole, option = f"{prefix}{api.path}", ""
    typed = shlex.quote(whole + without_secrets(query))
    raise InputError(f"--host cannot have this path: use --host {address} --endpoint {typed}{option}")


def check_endpoint(path: str, host: str, api: type[Api]) -> str:
    """The path of requests: that of --endpoint, which may be empty, else the API's. Raises InputError if it is invalid
    or another API's, or if --host has another path."""
    if path:
        _check_path(path, api)
    endpoint = path or api.path
    _check_host_path(host, check_host(host), endpoint, api)
    return endpoint


def _check_path(path: str, api: type[Api]) -> None:
    shown = without_secrets(path)
    if "://" in path.partition("?")[0]:
        inner = shown.partition("://")[2].partition("/")[2]
        # A slash may belong to a password.
        cure = f"/{inner}" if inner and "@" not in inner else api.path
        raise InputError(f"--endpoint needs a path, not an address: use --endpoint {shlex.quote(cure)}")
    if not (path.startswith("/") and path.isascii() and path.isprintable() and not set(path) & set(" #")):
        raise InputError(f"--endpoint {shown} is not a path such as /openai/v1/chat/completions")
    other = api_of_path(path.partition("?")[0].rstrip("/"))
    if other is not None and other.path != api.path:
        raise InputError(
            f"--endpoint {shown} is the path of --api {other.name}, but this test uses --api {api.name}: add --api"
            f" {other.name}"
        )


def api_of_path(path: str) -> type[Api] | None:
    """The first API with a path, under any prefix; None if the path belongs to none."""
    return next((api for api in APIS.values() if path.endswith(api.path.removeprefix(VERSION))), None)


_FIELD = re.compile(r"(?P<name>[?&#][^=&#]*)=(?P<value>[^&#]*)")
"""A field in a query or fragment."""


def without_secrets(path: str) -> str:
    """An address or path with the values of keys and tokens in its query or fragment replaced by ***."""
    return _FIELD.sub(lambda field: f"{field['name']}={STRUCK}" if _is_secret(field) else field[0], path)


def secrets_in(path: str) -> list[str]:
    """Values of keys and tokens in the query of a path, both as written and as the server decodes them."""
    found = [field["value"] for field in _FIELD.finditer(path) if _is_secret(field)]
    return [form for value in found for form in (value, unquote_plus(value))]


def _is_secret(field: re.Match[str]) -> bool:
    return bool(field["value"] and SECRET.search(field["name"].lstrip("?&#").replace("-", "_")))
